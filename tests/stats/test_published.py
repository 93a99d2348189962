"""Published numbers as data, and verdicts from planted scores whose answer is known."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kdpipe import discover
from kdpipe.cards import card_files, load_card
from kdpipe.commands.published_page import published_page
from kdpipe.errors import ConfigError
from kdpipe.protocols import get_protocol
from kdpipe.stats.literature import Published, Reference, Row, load_references
from kdpipe.stats.published import REFERENCES, match_published, write_references
from kdpipe.stats.scores import OVERALL, SCORES

SPEC = Path(__file__).parents[3] / "shared/spec/methods-acfbckd-hlfd-zoo.md"
ALL = load_references()
TABLES = [
    pytest.param(table, id=f"{reference.id}: {table.title}")
    for reference in ALL
    for table in reference.tables
]
CLAIMS = [pytest.param(claim, id=claim.text) for reference in ALL for claim in reference.claims]


def reference(name: str) -> Reference:
    return next(found for found in ALL if found.id == name)


# the data


def test_the_papers_whose_numbers_are_known_are_there() -> None:
    tables = {found.id for found in ALL if found.tables}
    assert tables == {"acf_bckd", "graph_flow", "emkd", "dprd", "dcd", "nnunet_revisited"}
    assert {found.id for found in ALL if not found.tables} == {"mskd", "hlfd", "cpkd", "acw_skd"}


@pytest.mark.parametrize("table", TABLES)
def test_names_of_a_table_are_those_of_the_catalogues(table: Published) -> None:
    for row in table.rows:
        assert {row.teacher, row.student} - {None} <= set(discover.names("nets"))
        assert {row.method} - {None} <= set(discover.names("methods"))
    for dataset in table.datasets:
        card = load_card(dataset)
        assert table.split is None or table.split in card.splits
        for row in table.rows:
            assert row.structures == (OVERALL,) or _one_of(row.structures, dataset)
    if table.protocol is not None:
        computed = {c.metric: c.computed for c in table.metrics.values()}
        protocol = get_protocol(table.protocol)
        assert computed.keys() <= {metric.name for metric in protocol.metrics}
        assert set(computed.values()) <= {"fraction", protocol.distance_unit}


@pytest.mark.parametrize("claim", CLAIMS)
def test_names_of_a_claim_are_those_of_the_catalogues(claim: Any) -> None:
    assert claim.method in discover.names("methods")
    assert claim.student is None or claim.student in discover.names("nets")
    assert set(claim.datasets) <= card_files().keys()
    for dataset in claim.datasets:
        assert claim.structures == (OVERALL,) or _one_of(claim.structures, dataset)


def _one_of(structures: tuple[str, ...], dataset: str) -> bool:
    return len(set(structures) & load_card(dataset).labels.scored.keys()) == 1


def test_a_paper_that_reports_six_cases_has_them_in_our_split() -> None:
    btcv = reference("acf_bckd").tables[0]
    rule = load_card("btcv").split("monai_24_6")
    assert (btcv.split, btcv.test_cases) == ("monai_24_6", 6)
    assert rule.selects_on_test


def _notes() -> str:
    text = SPEC.read_text(encoding="utf-8")
    return text[text.index("### 1.12") : text.index("### 1.13")]


#: number, and how often: the student's rows of the two tables of one data set are the same training
KNOWN = {
    "BTCV": {"65.08±0.87 / 31.55±2.56": ("unet_tiny", None, "none")},
    "WORD": {"78.11±0.28 / 36.19±12.4": ("unet_tiny", "res_unet", "kd_mse_sigmoid")},
    "BraTS21": {"86.79±0.22 / 11.46±0.27": ("unet_tiny", "segresnet", "at")},
}


def _as_printed(row: Row) -> str:
    dice, hd95 = row.scores["dice"], row.scores["hd95"]
    return f"{dice[0]:.2f}±{dice[1]:.2f} / {hd95[0]:.2f}±{hd95[1]:.2f}"


@pytest.mark.parametrize("title", KNOWN)
def test_rows_of_acf_bckd_say_what_the_paper_prints(title: str) -> None:
    table = next(table for table in reference("acf_bckd").tables if table.title == title)
    for number, names in KNOWN[title].items():
        found = [row for row in table.rows if _as_printed(row) == _two_digits(number)]
        assert [(row.student, row.teacher, row.method) for row in found] == [names]


def _two_digits(text: str) -> str:
    return re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.2f}", text)


def test_every_number_of_the_acf_bckd_notes_is_there() -> None:
    if not SPEC.is_file():
        pytest.skip(f"the notes {SPEC} are not beside this checkout")
    number = r"\d+\.\d+"
    pattern = f"{number}±{number} / {number}±{number}"
    wanted = {_two_digits(found) for found in re.findall(pattern, _notes())}
    rows = [row for table in reference("acf_bckd").tables for row in table.rows]
    assert len(wanted) == len(rows) == 82  # no two of them print the same four numbers
    assert {_as_printed(row) for row in rows} == wanted


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"sd": -0.1}, "negative"),
        ({"metric": "iou"}, "no metric iou"),
        ({"twice": True}, "there twice"),
        ({"id": "other"}, "must equal the file's name"),
        ({"key": "colour"}, "colour"),
    ],
)
def test_a_wrong_table_is_refused(edit: dict[str, Any], message: str, tmp_path: Path) -> None:
    row = {"student": "unet_tiny", "method": "none", "printed": "x"}
    row["scores"] = {edit.get("metric", "dice"): [80.0, edit.get("sd", 0.1)]}
    table = {
        "title": "t",
        "datasets": [],
        "selection": "unknown",
        "metrics": {"dice": {"metric": "dice", "printed": "%", "computed": "fraction"}},
        "rows": [row] * (2 if edit.get("twice") else 1),
    }
    source = {"title": "t", "venue": "v", "year": 2020, "read_at": "r"}
    content = {"schema_version": 1, "id": edit.get("id", "mine"), "source": source}
    content |= {"doubts": ["d"], "tables": [table]} | ({edit["key"]: 1} if "key" in edit else {})
    (tmp_path / "mine.yaml").write_text(str(content))
    with pytest.raises(ConfigError, match=message):
        load_references(tmp_path)


# ours beside theirs

MANY = tuple(f"{number:05d}" for number in range(42))
RUN: dict[str, Any] = {
    "study": "planted",
    "protocols": ["acf_bckd"],
    "entries": {"methods": {"ours": {"name": "cwd", "params": {"temperature": 2.0}}}},
    "statistics": {"confidence": 0.95, "margin_percent": 0.5, "margin_mm": 0.5},
}
SIX = tuple(f"{number:04d}" for number in range(35, 41))


def planted(
    arms: dict[tuple[str, str], list[float]],
    cases: tuple[str, ...] = SIX,
    case_sd: float = 0.05,
    **columns: Any,
) -> pd.DataFrame:
    """Dice with the given mean for each (teacher, method) and seed, exactly.

    All arms have the same cases, hard and easy ones, and what is their own differs by a tenth.
    """
    rng = np.random.default_rng(0)
    hard = rng.normal(0, case_sd, len(cases))
    rows = []
    for (teacher, method), means in arms.items():
        for seed, mean in enumerate(means):
            own = hard + rng.normal(0, case_sd / 10, len(cases))
            for case, value in zip(cases, mean + own - own.mean(), strict=True):
                keys = {"teacher": teacher, "method": method, "seed": seed, "case": case}
                rows.append(keys | {"value": value})
    constant = {
        **{"dataset": "btcv", "split": "monai_24_6", "fold": 0, "role": "student"},
        **{"student": "unet_tiny", "structure": "liver", "metric": "dice"},
        **{"protocol": "acf_bckd", "unit": "fraction", "status": "ok"},
    }
    return pd.DataFrame(rows).assign(**{**constant, **columns})[SCORES]


def only(table: pd.DataFrame, **columns: Any) -> pd.Series:
    for name, value in columns.items():
        table = table[table[name] == value]
    assert len(table) == 1, table
    return table.iloc[0]


NONE = ("no_teacher", "none")
CWD = ("res_unet", "cwd")


def test_a_table_that_we_repeat_is_reproduced_level_and_gain() -> None:
    arms = {NONE: [0.6508 + d for d in (-0.004, 0, 0.004)]}
    arms[CWD] = [0.7584 + d for d in (-0.001, 0, 0.001)]
    found = match_published(planted(arms), RUN)
    assert list(found.columns) == REFERENCES
    assert set(found["reference"]) == {"acf_bckd"}
    level = only(found, kind="level", method="cwd")
    assert level["verdict"] == "reproduced"
    assert level["published"] == pytest.approx(0.7584)
    assert level["published_sd"] == pytest.approx(0.0019)
    assert level["ours"] == pytest.approx(0.7584)
    assert level["ours_sd"] == pytest.approx(0.001)
    assert (level["n_cases"], level["n_seeds"]) == (6, 3)
    # the same six cases: how much they differ from one another does not count
    half = 4.302653 * 0.001 / np.sqrt(3)
    assert level["high"] - level["ours"] == pytest.approx(half, rel=1e-5)
    theirs = 4.302653 * 0.0019 / np.sqrt(3) + 0.005
    assert level["published_high"] - level["published"] == pytest.approx(theirs, rel=1e-5)
    gain = only(found, kind="gain")
    assert gain["verdict"] == "reproduced"
    assert gain["published"] == pytest.approx(0.7584 - 0.6508)
    assert gain["published_sd"] == pytest.approx(np.hypot(0.0087, 0.0019))


def test_a_better_baseline_leaves_the_level_and_takes_the_gain() -> None:
    """The usual end of a reproduction: the student alone is better than the paper says."""
    arms = {NONE: [0.745, 0.747, 0.749], CWD: [0.757, 0.7584, 0.760]}
    found = match_published(planted(arms), RUN)
    assert only(found, kind="level", method="cwd")["verdict"] == "reproduced"
    assert only(found, kind="level", method="none")["verdict"] == "not reproduced"
    assert only(found, kind="gain")["verdict"] == "not reproduced"


def test_three_scattered_seeds_cannot_tell_and_as_many_as_said_would() -> None:
    scattered = match_published(planted({CWD: [0.74, 0.758, 0.776]}), RUN)
    row = only(scattered, kind="level")
    assert row["verdict"] == "cannot tell"
    assert (row["needed_of"], row["needed"] > 3) == ("seeds", True)
    rng = np.random.default_rng(1)
    seeds = rng.normal(0, 1, int(1.2 * row["needed"]))  # z was used where t is a little wider
    seeds = 0.758 + 0.018 * (seeds - seeds.mean()) / seeds.std(ddof=1)
    more = match_published(planted({CWD: list(seeds)}), RUN)
    assert only(more, kind="level")["verdict"] == "reproduced"


def test_other_cases_widen_both_intervals_and_more_cases_are_needed() -> None:
    """WORD: the paper has 20 cases, and six of ours are too few to agree with them."""
    arms = {NONE: [0.771, 0.772, 0.773], CWD: [0.796, 0.797, 0.798]}
    cases = {n: tuple(map(str, range(n))) for n in (6, 20)}
    place = {"dataset": "word", "split": "acf_100_20"}
    same = match_published(planted(arms, cases[20], **place), RUN)
    other = match_published(planted(arms, cases[6], **place | {"split": "default"}), RUN)
    a, b = only(same, kind="level", method="cwd"), only(other, kind="level", method="cwd")
    assert (a["remarks"], a["verdict"]) == ("", "reproduced")
    assert b["remarks"] == "other split (acf_100_20)"
    assert b["high"] - b["low"] > 5 * (a["high"] - a["low"])
    assert b["published_high"] - b["published_low"] > 2 * (a["published_high"] - a["published_low"])
    assert (b["verdict"], b["needed_of"]) == ("cannot tell", "cases")
    assert 6 < b["needed"] < 1000
    enough = tuple(map(str, range(8 * b["needed"])))  # six cases show too little of the scatter
    more = planted(arms, enough, **place | {"split": "default"})
    again = only(match_published(more, RUN), kind="level", method="cwd")
    assert again["verdict"] == "reproduced"
    # the gain is paired by case: what makes a case hard for both does not count
    gain = only(other, kind="gain")
    assert gain["high"] - gain["low"] < (b["high"] - b["low"]) / 3


def test_a_printed_gain_is_not_reproduced_by_none() -> None:
    """KD on WORD: 78.11 ± 0.28 after 77.25 ± 0.69; the paper's own runs hardly tell it from 0."""
    place = {"dataset": "word", "split": "acf_100_20", "cases": tuple(map(str, range(20)))}
    said = {}
    for gain in (-0.005, 0.0, 0.005):
        kd = [0.7715 + gain, 0.7725 + gain, 0.7735 + gain]
        arms = {NONE: [0.772, 0.7725, 0.773], ("res_unet", "kd_mse_sigmoid"): kd}
        row = only(match_published(planted(arms, **place), RUN), kind="gain")
        assert row["published_low"] == 0.0
        said[gain] = row["verdict"]
    assert said == {-0.005: "not reproduced", 0.0: "cannot tell", 0.005: "reproduced"}


def test_six_cases_of_theirs_neither_confirm_nor_refute_a_gap_of_three_points() -> None:
    """However many cases we have: theirs may be hard ones."""
    arms = {CWD: [0.787, 0.788, 0.789]}
    found = match_published(planted(arms, MANY, split="default"), RUN)
    row = only(found, kind="level")
    assert row["published_low"] < row["low"] < row["high"] < row["published_high"]
    assert (row["verdict"], row["needed"], row["needed_of"]) == ("cannot tell", 0, "")


def test_another_number_of_cases_in_the_split_is_said() -> None:
    found = match_published(planted({CWD: [0.757, 0.758]}, cases=SIX[:5]), RUN)
    assert only(found, kind="level")["remarks"] == "other cases (6)"


def test_another_protocol_and_another_unit_are_said() -> None:
    strict = RUN | {"protocols": ["strict_mm"]}
    found = match_published(planted({CWD: [0.757, 0.758]}, protocol="strict_mm"), strict)
    assert only(found, kind="level")["remarks"] == "other protocol (acf_bckd)"
    columns = {"protocol": "strict_mm", "metric": "hd95_max", "unit": "mm"}
    distances = planted({CWD: [24.0, 25.0, 26.0]}, **columns)
    row = only(match_published(distances, strict), kind="level")
    assert row["verdict"] == "cannot tell"
    assert "theirs in voxel, ours in mm" in row["remarks"]
    assert (row["unit"], row["printed_unit"], row["needed"]) == ("mm", "mm", 0)


def test_the_papers_own_protocol_is_taken_where_it_is_scored_too() -> None:
    both = RUN | {"protocols": ["strict_mm", "acf_bckd"]}
    scores = pd.concat(
        [
            planted({CWD: [0.757, 0.758]}),
            planted({CWD: [0.60, 0.61]}, protocol="strict_mm"),
        ]
    )
    row = only(match_published(scores, both), kind="level")
    assert (row["protocol"], row["ours"]) == ("acf_bckd", pytest.approx(0.7575))


def test_one_seed_takes_their_scatter_and_says_so() -> None:
    row = only(match_published(planted({CWD: [0.758]}), RUN), kind="level")
    assert "one seed" in row["remarks"]
    assert np.isnan(row["ours_sd"])
    assert row["high"] - row["low"] == pytest.approx(2 * 4.302653 * 0.0019, rel=1e-5)


def test_a_distance_gains_where_it_falls() -> None:
    columns = {"metric": "hd95_max", "unit": "voxel"}
    arms = {NONE: [31.0, 31.5, 32.0], CWD: [24.3, 24.8, 25.3]}
    gain = only(match_published(planted(arms, **columns), RUN), kind="gain")
    assert gain["published"] == pytest.approx(31.55 - 24.79)
    assert gain["ours"] == pytest.approx(31.5 - 24.8)
    assert gain["verdict"] == "reproduced"


def test_settings_of_an_entry_are_said_and_its_name_is_that_of_the_catalogue() -> None:
    found = match_published(planted({("res_unet", "ours"): [0.757, 0.758]}), RUN)
    assert only(found, kind="level")["remarks"] == "ours with temperature 2.0"


def test_what_is_not_published_matches_nothing() -> None:
    scores = planted({("res_unet", "hlfd"): [0.7, 0.7], ("unet", "cwd"): [0.7, 0.7]})
    assert match_published(scores, RUN).empty
    assert match_published(planted({CWD: [0.7]}, dataset="chaos_mr_t2"), RUN).empty


def test_missing_values_are_left_out_case_by_case() -> None:
    scores = planted({CWD: [0.757, 0.758, 0.759]})
    spleen = scores.assign(structure="spleen", value=np.nan)
    level = only(match_published(pd.concat([scores, spleen]), RUN), kind="level")
    assert level["ours"] == pytest.approx(0.758)


# how often verdicts are wrong


@pytest.mark.parametrize(
    ("gap", "same_cases", "theirs", "rates"),
    [
        (0.0, True, 6, {"not reproduced": (0.0, 0.03)}),
        (0.1, True, 6, {"not reproduced": (0.9, 1.0)}),
        (0.0, False, 6, {"not reproduced": (0.0, 0.03)}),
        (0.03, False, 6, {"reproduced": (0.0, 0.05), "not reproduced": (0.0, 0.1)}),
        (0.1, False, 42, {"reproduced": (0.0, 0.0), "not reproduced": (0.9, 1.0)}),
    ],
)
def test_verdicts_on_simulated_studies(
    gap: float, same_cases: bool, theirs: int, rates: dict[str, tuple[float, float]]
) -> None:
    """Three seeds and three runs, 42 cases of ours (or theirs), Dice that differs by case."""
    rng = np.random.default_rng(2)
    said = [_simulated(rng, gap, same_cases, theirs) for _ in range(40)]
    for verdict_, (low, high) in rates.items():
        assert low <= said.count(verdict_) / len(said) <= high, verdict_


def _simulated(rng: np.random.Generator, gap: float, same_cases: bool, theirs: int) -> str:
    hard = rng.normal(0, 0.08, 42 + theirs)
    of_theirs, of_ours = hard[:theirs], hard[:theirs] if same_cases else hard[theirs:]
    means = (0.7 + gap + of_theirs.mean() + rng.normal(0, 0.007, 3)) * 100
    ours = 0.7 + of_ours[:, None] + rng.normal(0, 0.005, 3) + rng.normal(0, 0.02, (of_ours.size, 3))
    row = {"student": "unet_tiny", "method": "none", "printed": "U-Net"}
    score = {"dice": [means.mean(), means.std(ddof=1)]}
    table = {"title": "t", "datasets": ["btcv"], "split": "monai_24_6" if same_cases else None}
    table |= {"selection": "unknown", "protocol": "acf_bckd", "runs": 3, "test_cases": theirs}
    table |= {"rows": [row | {"scores": score}]}
    table |= {"metrics": {"dice": {"metric": "dice", "printed": "%", "computed": "fraction"}}}
    published = ALL[0].model_copy(update={"tables": (Published.model_validate(table),)})
    scores = pd.DataFrame(ours).reset_index(names="case").melt("case", var_name="seed")
    keys = {"dataset": "btcv", "split": "monai_24_6", "fold": 0, "role": "student"}
    keys |= {"teacher": "no_teacher", "student": "unet_tiny", "method": "none"}
    keys |= {"structure": "liver", "metric": "dice", "protocol": "acf_bckd", "unit": "fraction"}
    found = match_published(scores.assign(status="ok", **keys), RUN, [published])
    return str(found["verdict"].iloc[0])


# claims

KITS = {"dataset": "kits19", "split": "default", "structure": "tumor", "protocol": "strict_mm"}
STRICT = RUN | {"protocols": ["strict_mm"]}
HLFD = ("unetpp", "hlfd")


@pytest.mark.parametrize(
    ("gain", "said"),
    [(0.15, "reproduced"), (0.05, "not reproduced"), (0.101, "cannot tell")],
)
def test_more_than_ten_points_on_the_kidney_tumour(gain: float, said: str) -> None:
    arms = {NONE: [0.5, 0.505, 0.51], HLFD: [0.5 + gain, 0.505 + gain, 0.51 + gain]}
    found = match_published(planted(arms, cases=MANY, **KITS), STRICT)
    row = only(found, kind="gain_points", against="none")
    assert (row["verdict"], row["published"]) == (said, pytest.approx(0.10))
    assert row["ours"] == pytest.approx(gain)
    assert (row["needed"] > 0) == (said == "cannot tell")


def test_better_than_others_has_a_row_for_each_of_them() -> None:
    level = {NONE: 0.5, HLFD: 0.6, ("unetpp", "kd"): 0.5, ("unetpp", "at"): 0.7}
    arms = {arm: [mean - 0.005, mean, mean + 0.005] for arm, mean in level.items()}
    found = match_published(planted(arms, cases=MANY, **KITS), STRICT)
    others = found[found["against"].isin(["kd", "at"])].set_index("against")["verdict"]
    assert others.to_dict() == {"kd": "reproduced", "at": "not reproduced"}


def test_up_to_is_never_refuted_and_per_cent_are_not_points() -> None:
    arms = {NONE: [0.39, 0.40, 0.41], ("unetpp", "mskd"): [0.49, 0.50, 0.51]}
    place = {"dataset": "synapse_multiorgan", "split": "default", "protocol": "strict_mm"}
    found = match_published(planted(arms, cases=MANY, case_sd=0.01, **place), STRICT)
    points, percent = only(found, kind="gain_points"), only(found, kind="gain_percent")
    assert (points["unit"], percent["unit"]) == ("fraction", "percent")
    assert points["ours"] == pytest.approx(0.10)
    assert points["verdict"] == "cannot tell"
    assert "up to" in points["remarks"]
    assert percent["ours"] == pytest.approx(25.0)
    assert percent["published"] == pytest.approx(18.56)


def test_cpkd_claims_hd95(tmp_path: Path) -> None:
    columns = {"dataset": "synapse_multiorgan", "split": "default", "protocol": "strict_mm"}
    columns |= {"metric": "hd95_pooled", "unit": "mm"}
    arms = {("unetpp", "cpkd"): [5.0, 5.1], ("unetpp", "kd"): [9.0, 9.1]}
    planted(arms, cases=MANY, case_sd=0.5, **columns).to_csv(tmp_path / "scores.csv", index=False)
    found = write_references(STRICT, tmp_path)
    row = only(found, kind="lower_is_better")
    assert (row["verdict"], row["against"]) == ("reproduced", "kd")
    written = pd.read_csv(tmp_path / "references.csv")
    assert list(written.columns) == REFERENCES
    assert len(written) == len(found)


def test_the_page_of_published_numbers_has_them_all() -> None:
    page = published_page(ALL)
    for found in ALL:
        assert f"## {found.id}\n" in page
        for table in found.tables:
            for row in table.rows:
                for score in row.scores.values():
                    assert " ± ".join(f"{number:g}" for number in score) in page
        for claim in found.claims:
            assert claim.text in page
