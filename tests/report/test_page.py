"""The report page without a browser: what it says, what it escapes, what it does without files."""

from __future__ import annotations

import base64
import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_study import EVIL, Study, build_study

from kdpipe.errors import DataError
from kdpipe.protocols import get_protocol
from kdpipe.report.page.packing import pack
from kdpipe.report.page.write import write_report

_VOID = {"meta", "input", "img", "br", "path", "rect", "line", "circle"}


class Reader(HTMLParser):
    """Collects elements, texts by section, and checks that elements are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.section = ""
        self.texts: dict[str, str] = {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section" and (name := dict(attrs).get("id")):
            self.section = str(name)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            text = f"{self.texts.get(self.section, '')} {data}"
            self.texts[self.section] = re.sub(r"\s+", " ", text)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(study: Study, out: Path) -> tuple[str, Reader]:
    write_report(study.run, study.tables, study.figures, study.overlays, out)
    text = out.read_text(encoding="utf-8")
    return text, Reader(text)


def unpack(packed: str) -> dict[str, Any]:
    return json.loads(gzip.decompress(base64.b64decode(packed)))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return build_study(tmp_path)


def test_the_answer_comes_first(study: Study, tmp_path: Path) -> None:
    _, page = page_of(study, tmp_path / "r.html")
    answer = page.texts["answer"]
    assert "mine, split default, student tiny, teacher big" in answer
    assert (
        "kd is better than the same student without distillation: +1.25 points of Dice (95 % "
        "interval +0.50 to +2.00, Holm-corrected p 0.012, 6 cases, 2 seeds). 1 of 3 methods is "
        "better."
    ) in answer
    assert "Better than no distillation: kd." in answer
    assert "No difference from no distillation larger than 0.50 points: cwd." in answer
    assert "Worse than no distillation: mskd†." in answer
    assert "Not to be told apart from the best, kd: cwd." in answer
    assert list(page.texts)[1:3] == ["answer", "results"]


def test_nothing_better_is_said_so(study: Study, tmp_path: Path) -> None:
    study.edit("comparisons", verdict="cannot tell")
    _, page = page_of(study, tmp_path / "r.html")
    assert "No method was shown to be better than the same student" in page.texts["answer"]
    assert "The first by its mean is kd: +1.25 points" in page.texts["answer"]
    assert "Cannot tell from these cases: kd, cwd, mskd†." in page.texts["answer"]
    assert "Better than" not in page.texts["answer"]


def test_distances_are_told_beside_dice(study: Study, tmp_path: Path) -> None:
    file = study.tables / "comparisons.csv"
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    distances = table.assign(metric="hd95_max", unit="mm", low="-1.5", high="2.0")
    pd.concat([table, distances]).to_csv(file, index=False)
    _, page = page_of(study, tmp_path / "r.html")
    assert (
        "By HD95 max: 1 better, 1 equivalent, 1 worse. The first by its mean is kd: +0.01 mm "
        "(\u22121.50 to +2.00), better."
    ) in page.texts["answer"]


def test_teachers_are_named_where_there_are_several(study: Study, tmp_path: Path) -> None:
    study.run["cells"].append({**study.run["cells"][-1], "teacher": "other"})
    _, page = page_of(study, tmp_path / "r.html")
    assert "kd from big is better" in page.texts["answer"]


@pytest.mark.parametrize(
    ("table", "columns", "said"),
    [
        (
            "power",
            {"can_be_significant": "False", "n_cases": "6", "smallest_p": "0.03125"},
            "With 6 cases no comparison can be significant after correction",
        ),
        ("results", {"selects_on_test": "True"}, "‡ Selected on the test cases"),
        ("results", {"unit": "voxel"}, "Distances in voxels"),
        ("results", {"n_seeds": "1"}, "Single seed"),
    ],
)
def test_warnings(
    study: Study, tmp_path: Path, table: str, columns: dict[str, str], said: str
) -> None:
    _, before = page_of(study, tmp_path / "before.html")
    assert said not in before.texts["answer"]
    study.edit(table, **columns)
    _, page = page_of(study, tmp_path / "r.html")
    assert said in page.texts["answer"]


@pytest.mark.parametrize(("dice", "warned"), [("0.9", False), ("0.79", True)])
def test_a_teacher_that_has_nothing_to_teach_is_named(
    study: Study, tmp_path: Path, dice: str, warned: bool
) -> None:
    file = study.tables / "results.csv"
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    teacher = table[table["method"] == "none"].assign(
        role="teacher", teacher="big", student="", method="", mean=dice
    )
    pd.concat([table, teacher]).to_csv(file, index=False)
    _, page = page_of(study, tmp_path / "r.html")
    assert ("Teacher no better than the student" in page.texts["answer"]) is warned
    named = "big (79.0) on mine default, beside tiny (80.0)"
    assert (named in page.texts["answer"]) is warned


def test_what_could_be_resolved_has_the_unit_of_its_data_set(study: Study, tmp_path: Path) -> None:
    for name in ("results", "power"):
        file = study.tables / f"{name}.csv"
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        mm, voxels = table.assign(metric="hd95_max"), table.assign(metric="hd95_max")
        if name == "results":
            mm, voxels = mm.assign(unit="mm"), voxels.assign(unit="voxel")
        other = voxels.assign(dataset="pictures")
        pd.concat([table, mm, other]).to_csv(file, index=False)
    _, page = page_of(study, tmp_path / "r.html")
    assert re.search(r"mine hd95_max [0-9 ]* 0.01 mm", page.texts["answer"])
    assert re.search(r"pictures hd95_max [0-9 ]* 0.01 voxel", page.texts["answer"])


def test_an_interval_that_is_not_known_and_a_watermark(study: Study, tmp_path: Path) -> None:
    columns = {"low": "nan", "high": "nan", "verdict": "cannot tell", "selects_on_test": "True"}
    study.edit("comparisons", **columns)
    _, page = page_of(study, tmp_path / "r.html")
    assert "(95 % interval not known, Holm-corrected p 0.012" in page.texts["answer"]
    assert "mine, split default‡, student tiny" in page.texts["answer"]


def test_a_budget_is_answered_beside_the_tuned_student(study: Study, tmp_path: Path) -> None:
    file = study.tables / "comparisons.csv"
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    rows = table[(table["against_kind"] == "none") & (table["method"] != "kd")]
    tuned = rows.assign(against_kind="none_tuned", method=rows["method"] + "+tuned")
    unfair = tuned.assign(against_kind="none", difference="0.5", verdict="better")
    pd.concat([table, tuned, unfair]).to_csv(file, index=False)
    _, page = page_of(study, tmp_path / "r.html")
    assert (
        "tuned with the same budget: cwd+tuned +0.10 points (\u22120.20 to +0.40), equivalent; "
        "mskd+tuned \u22122.00 points (\u22123.00 to \u22121.00), worse."
    ) in page.texts["answer"]
    assert "kd is better than the same student" in page.texts["answer"]
    assert "1 of 3 methods is better" in page.texts["answer"]


@pytest.mark.parametrize("columns", [{"n_left_out": "3"}, {"n_seeds": ["2", "1"] * 4}])
def test_scores_that_not_all_arms_have(
    study: Study, tmp_path: Path, columns: dict[str, Any]
) -> None:
    study.edit("comparisons", n_left_out="0")
    said = "Scores that not all arms have"
    assert said not in page_of(study, tmp_path / "before.html")[1].texts["answer"]
    study.edit("comparisons", **columns)
    assert said in page_of(study, tmp_path / "r.html")[1].texts["answer"]


def test_folds_are_shown_together_too(study: Study, tmp_path: Path) -> None:
    for name in ("scores", "results"):
        file = study.tables / f"{name}.csv"
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        other = table.assign(fold="1")
        if name == "scores":
            other = other.assign(case="x" + other["case"], value="0.5")
        pd.concat([table, other]).to_csv(file, index=False)
    results = page_of(study, tmp_path / "r.html")[1].texts["results"]
    # mean of 0.8125 with the cases' 1e-5 each and of 0.5
    assert re.search(r"default/all tiny big kd 65.63 ± 0.00 \+0.62", results), results[:900]
    assert "default/0 tiny big kd 81.25 ± 1.50" in results
    assert "Fold all: the cases of all folds together" in results


def test_metrics_in_two_units_have_two_tables_in_the_order_of_the_study(
    study: Study, tmp_path: Path
) -> None:
    file = study.tables / "comparisons.csv"
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    mm = table.assign(metric="hd95_max", unit="mm")
    voxels = mm.assign(dataset="pictures", unit="voxel")
    better = table.assign(dataset="pictures", difference="0.9")
    pd.concat([table, better, mm, voxels]).to_csv(file, index=False)
    page = page_of(study, tmp_path / "r.html")[1]
    titles = [attributes.get("data-title") for attributes in page.named("section")]
    assert [t for t in titles if t and t.startswith("HD95")] == ["HD95 max mm", "HD95 max voxel"]
    said = page.texts["comparisons"]
    assert said.index("mine kd +1.25") < said.index("pictures kd +90.00")


def test_one_arm_has_no_ranks(study: Study, tmp_path: Path) -> None:
    file = study.tables / "ranks.csv"
    pd.read_csv(file, dtype=str, keep_default_na=False).head(1).to_csv(file, index=False)
    assert "mean rank" not in page_of(study, tmp_path / "r.html")[1].texts["comparisons"]


def test_missed_structures_and_readings_are_warned_of(study: Study, tmp_path: Path) -> None:
    file = study.tables / "results.csv"
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    pd.concat([table, table.assign(protocol="monai")]).to_csv(file, index=False)
    _, page = page_of(study, tmp_path / "r.html")
    assert "† Readings mskd: a reading of its paper" in page.texts["answer"]
    # two missed and one false structure of each method, counted by one metric of one protocol
    assert "12 structures are in only one of reference" in page.texts["answer"]
    assert "8 missed and 4 invented" in page.texts["answer"]
    assert "tiny kd from big on mine: 3" in page.texts["answer"]


def test_results_decisions_ranks_and_published_numbers(study: Study, tmp_path: Path) -> None:
    _, page = page_of(study, tmp_path / "r.html")
    assert "81.25 ± 1.50" in page.texts["results"]
    assert "Dice % by structure" in page.texts["results"]
    assert "boundary_bands" not in page.texts["results"]
    decisions = page.texts["comparisons"]
    assert re.search(r"kd \+1.25 \+0.50 to \+2.00 0.012 6 2 0.80 better", decisions)
    assert "kd 1.50 1.00 to 2.00 75 %" in decisions
    published = page.texts["published"]
    assert "84.10 (82.60 to 85.60) 81.25 (80.00 to 82.50) 6 / 2 cannot tell 40 cases" in published
    assert "against" not in published  # no number has it


def test_provenance(study: Study, tmp_path: Path) -> None:
    _, page = page_of(study, tmp_path / "r.html")
    told = page.texts["provenance"]
    strict = get_protocol("strict_mm")
    assert f"strict_mm, version {strict.version} {strict.definition}" in told
    for text in (
        "abcdef0123456789" * 4,  # of the split
        "kind fixed_counts, seed 0",
        "resamples 2000",
        "augmentation.zoom 0.15",
        "temperature 4",
        "E1 python 3.11; torch 2.13",
        "E2 python 3.12; torch 2.13",
        "M1 gpu a card",
        "0.500",  # kWh
        "kdpipe verify claim.json",
        '"study": "planted"',
    ):
        assert text in told


def test_what_the_study_recorded_of_its_protocols_and_budget(study: Study, tmp_path: Path) -> None:
    facts = {"version": 7, "definition": "As in the paper.", "source": "its code", "paper": True}
    study.run["definitions"] = {"strict_mm": facts | {"grid": "prepared"}}
    study.run |= {"budget": 5, "search": {"learning_rate_factor": 10.0}}
    file = study.tables / "comparisons.csv"
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    rows = table[table["against_kind"] == "none"]
    tuned = rows.assign(against_kind="none_tuned", method=rows["method"] + "+tuned")
    pd.concat([table, tuned]).to_csv(file, index=False)
    _, page = page_of(study, tmp_path / "r.html")
    told = page.texts["provenance"]
    assert (
        "strict_mm, version 7, scored on the prepared grid As in the paper. Source: its code"
        in told
    )
    assert "trials of each method 5" in told and "learning_rate_factor 10.0" in told
    assert "Protocol of a paper strict_mm: reproduces the choices" in page.texts["answer"]
    assert (
        "Dice, tuned Difference of Dice (points) to the same student" in page.texts["comparisons"]
    )


def test_a_long_claim_is_shown_without_its_rows(study: Study, tmp_path: Path) -> None:
    claim = {"study": "planted", "results": [{"row": 1}] * 100, "seeds": [0, 1]}
    (study.tables / "claim.json").write_text(json.dumps(claim))
    _, page = page_of(study, tmp_path / "r.html")
    assert '"results": "100 rows", "seeds": [ 0, 1 ]' in page.texts["provenance"]


def test_pictures_lie_in_the_page(study: Study, tmp_path: Path) -> None:
    text, page = page_of(study, tmp_path / "r.html")
    sources = [str(image["src"]) for image in page.named("img") if "src" in image]
    assert len(sources) == 5
    assert sources[0].startswith("data:image/svg+xml;base64,")
    assert base64.b64decode(sources[3].split(",")[1]).startswith(b"\x89PNG")
    assert all(image.get("alt") is not None for image in page.named("img"))
    assert "Worst case: case_0, slice with most reference foreground" in text
    assert page.texts["figures"].index("Scores") < page.texts["figures"].index("Cost")


def test_nothing_outside_is_asked_for(study: Study, tmp_path: Path) -> None:
    text, page = page_of(study, tmp_path / "r.html")
    policy = next(meta for meta in page.named("meta") if "http-equiv" in meta)
    assert str(policy["content"]).startswith("default-src 'none'; img-src data:;")
    assert "script-src 'sha256-" in str(policy["content"])
    for tag in ("link", "iframe", "object", "embed", "base"):
        assert page.named(tag) == []
    for _, attributes in page.elements:
        assert str(attributes.get("src", "data:")).startswith("data:")
        assert str(attributes.get("href", "#")).startswith("#")
    assert not re.search(r"url\(|@import|https?://", re.sub(r"data:[^\"]*", "", text))


def test_headings_captions_and_labels(study: Study, tmp_path: Path) -> None:
    text, page = page_of(study, tmp_path / "r.html")
    assert len(page.named("h1")) == 1
    assert text.count("<caption") == text.count("<table")
    ids = {str(attributes["id"]) for _, attributes in page.elements if "id" in attributes}
    for section in page.named("section"):
        if "id" in section:
            assert section["aria-labelledby"] in ids
    for link in page.named("a"):
        assert str(link["href"])[1:] in ids
    assert 'lang="en"' in text


def test_what_data_say_is_never_markup(tmp_path: Path) -> None:
    study = build_study(tmp_path, evil=True)
    text, page = page_of(study, tmp_path / "r.html")
    plain = Reader(page_of(build_study(tmp_path / "plain"), tmp_path / "plain.html")[0])
    # names with markup add no element
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    for name in EVIL:
        assert name not in text
    for section in ("answer", "figures", "cases", "provenance"):
        assert EVIL[0] in page.texts[section]
    assert EVIL[1] in page.texts["results"]
    assert EVIL[2] in page.texts["comparisons"]
    assert EVIL[0] in page.texts[""]


def test_comparisons_without_numbers(study: Study, tmp_path: Path) -> None:
    numbers = ("difference", "low", "high", "p_value", "p_holm", "resolvable")
    study.edit("comparisons", verdict="cannot tell", **dict.fromkeys(numbers, "nan"))
    study.edit("ranks", **dict.fromkeys(("mean_rank", "rank_low", "rank_high", "p_best"), "nan"))
    _, page = page_of(study, tmp_path / "r.html")
    assert (
        "? points of Dice (95 % interval not known, Holm-corrected p not known"
        in (page.texts["answer"])
    )
    assert not re.search(r"\bnan\b", "".join(page.texts.values()))


def test_scores_are_packed_as_they_are(study: Study, tmp_path: Path) -> None:
    text, _ = page_of(study, tmp_path / "r.html")
    packed = re.findall(r'class="packed">([^<]*)<', text)
    assert len(packed) == 2
    data = unpack(packed[1])
    scores = pd.read_csv(study.tables / "scores.csv", dtype=str, keep_default_na=False)
    assert data["rows"] == len(scores)
    for column in data["columns"]:
        if "numbers" in column:
            wanted = [None if text == "nan" else float(text) for text in scores[column["name"]]]
            assert column["numbers"] == wanted
        else:
            values = [column["values"][code] for code in column["codes"]]
            assert values == scores[column["name"]].tolist()
    assert [c["name"] for c in data["columns"]] == list(scores)
    constant = {c["name"] for c in data["columns"] if c["constant"]}
    shown = {"teacher", "method", "seed", "case", "structure", "metric", "value", "status"}
    assert constant == {*scores} - shown


def test_numbers_that_json_has_not(tmp_path: Path) -> None:
    table = pd.DataFrame({"case": ["a", "b", "c"], "value": [np.nan, np.inf, 2.0]})
    value = unpack(pack(table))["columns"][1]
    assert value["numbers"] == [None, None, 2]


def test_a_hundred_thousand_rows_stay_small(tmp_path: Path) -> None:
    n = 100_000
    random = np.random.default_rng(0)
    columns = {"case": [f"case_{i % 500:03d}" for i in range(n)], "value": random.random(n)}
    assert len(pack(pd.DataFrame(columns))) < 2_500_000


def test_the_same_study_gives_the_same_page(study: Study, tmp_path: Path) -> None:
    assert page_of(study, tmp_path / "a.html")[0] == page_of(study, tmp_path / "b.html")[0]


def test_what_is_not_there_is_said(study: Study, tmp_path: Path) -> None:
    for name in ("scores", "results", "comparisons", "ranks", "power", "references"):
        (study.tables / f"{name}.csv").unlink()
    (study.tables / "claim.json").unlink()
    for cell in study.run["cells"]:
        cell["folder"] = str(tmp_path / "gone")
    nowhere = tmp_path / "nowhere"
    write_report(study.run, study.tables, nowhere, nowhere, tmp_path / "r.html")
    page = Reader((tmp_path / "r.html").read_text())
    said = {
        "answer": "No comparison with a student without distillation",
        "results": "There are no results",
        "comparisons": "No comparison against a student without distillation",
        "published": "No published table that kdpipe knows fits",
        "figures": "There are no figures",
        "cases": "There are no pictures of single cases",
        "scores": "There are no scores",
        "provenance": "not here",
    }
    for section, text in said.items():
        assert text in page.texts[section]


def test_tables_with_a_header_only(study: Study, tmp_path: Path) -> None:
    for name in ("comparisons", "ranks", "power", "references"):
        file = study.tables / f"{name}.csv"
        file.write_text(file.read_text().splitlines()[0] + "\n")
    _, page = page_of(study, tmp_path / "r.html")
    assert "81.25 ± 1.50" in page.texts["results"]
    assert "No published table that kdpipe knows fits" in page.texts["published"]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tables/results.csv", "mean\nmany\n", "results.csv: not readable as a table"),
        ("tables/claim.json", "{", "claim.json: not readable as JSON"),
        ("figures/figures.json", '[{"name": "gone"}]', "there is no picture 'gone'"),
        ("figures/figures.json", '[{"name": "../secret"}]', "no picture '../secret'"),
        ("overlays/overlays.json", "[3]", "an entry without a name: 3"),
    ],
)
def test_files_that_cannot_be_read_are_named(
    study: Study, tmp_path: Path, file: str, content: str, said: str
) -> None:
    (tmp_path / "secret.svg").write_text("<svg/>")
    (study.tables.parent / file).write_text(content)
    with pytest.raises(DataError, match=re.escape(said)):
        page_of(study, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
