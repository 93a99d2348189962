"""The model card says what the files say, and plainly what must not be done with the network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from finished_study import Finished
from scipy import stats

from kdpipe.cli import main
from kdpipe.provenance import file_digest
from kdpipe.ship.card.scores import failure_table, metric_table, verdicts


def table(card: str, heading: str) -> dict[str, list[str]]:
    """The first table below a heading: first cell -> the others."""
    (section,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", card, re.M | re.S)
    lines = re.findall(r"^\| (.*) \|$", section, re.M)
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]
    return {first: rest for first, *rest in [cells[0], *cells[2:]]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def cards(finished: Finished) -> tuple[str, dict[str, Any]]:
    return finished.cards()


def test_scores_are_those_of_the_cell_with_an_interval_of_student(
    finished: Finished, cards: tuple[str, dict[str, Any]]
) -> None:
    cell = finished.read("choice.json")["chosen"]["folder"]
    scores = pd.read_csv(finished.folder / cell / "metrics.csv")
    liver = scores[(scores["structure"] == "liver") & (scores["metric"] == "dice")]["value"]
    low, high = stats.t.interval(0.95, len(liver) - 1, liver.mean(), stats.sem(liver))
    found = table(cards[0], "Scores of the test cases")
    assert found["structure"][3] == "Dice, %"
    expected = f"{100 * liver.mean():.2f} ({100 * low:.2f} to {100 * high:.2f})"
    assert found["liver"] == ["8", "0", "0", expected, *found["liver"][4:]]
    by_case = scores[scores["metric"] == "dice"].groupby("case")["value"].mean()
    assert found["mean"][3].startswith(f"{100 * by_case.mean():.2f} (")
    worst = table(cards[0], "Failures")
    assert list(worst)[1:] == list(by_case.sort_values().index[:3])


def test_the_first_score_is_said_at_the_top(cards: tuple[str, dict[str, Any]]) -> None:
    score = table(cards[0], "Scores of the test cases")["mean"][3]
    assert f"over 8 test cases: Dice, % {score};" in cards[0].split("> **Research only")[0]


def test_differences_are_paired_by_case(
    finished: Finished, cards: tuple[str, dict[str, Any]]
) -> None:
    choice = finished.read("choice.json")
    means = {}
    for role in ("chosen", "teacher"):
        scores = pd.read_csv(finished.folder / choice[role]["folder"] / "metrics.csv")
        wanted = scores[scores["metric"] == "hd95_pooled"]
        means[role] = wanted.groupby("case")["value"].mean()
    better = (means["teacher"] - means["chosen"]).mean()  # a smaller distance is better
    assert f"| its teacher, segresnet        | HD95 pooled, mm | {better:+.2f} (" in cards[0]
    assert "| none, the undistilled student |" in cards[0]


def test_the_comparisons_of_the_study_are_quoted(
    finished: Finished, cards: tuple[str, dict[str, Any]]
) -> None:
    file = finished.folder / finished.plan.paths.tables("small") / "comparisons.csv"
    rows = pd.read_csv(file, keep_default_na=False)
    rows = rows[(rows["structure"] == "mean") & (rows["against_kind"] == "none")]
    (row,) = rows[rows["metric"] == "nsd"].to_dict("records")
    assert f"{100 * row['difference']:+.2f} ({100 * row['low']:+.2f}" in cards[0]
    assert f"| {row['verdict']}" in cards[0]


def test_costs_stand_beside_those_of_the_teacher(cards: tuple[str, dict[str, Any]]) -> None:
    card, cost = cards
    assert cost["student"]["parameters"] == 30_000 and cost["teacher"]["parameters"] == 400_000
    assert cost["ratios"]["cpu_ms"] == 8.0 and cost["ratios"]["bytes"] == 4.0
    assert cost["ratios"]["gpu_ms"] is None
    assert cost["forms"]["model.onnx"]["bytes"] == 1500
    assert cost["forms"]["model.onnx"]["latency_ms"] == 4.0
    found = table(card, "Cost")
    assert found["latency on the CPU, ms"] == ["10", "80", "8"]
    assert "latency on the GPU, ms" not in found
    assert table(card, "Files")["export/model.int8.onnx"][2] == "4 (9)"


def test_where_it_comes_from(finished: Finished, cards: tuple[str, dict[str, Any]]) -> None:
    found = table(cards[0], "Provenance")
    choice = finished.read("choice.json")
    assert found["SHA-256 of the weights"] == [choice["chosen"]["weights_sha256"]]
    manifest = finished.folder / finished.plan.paths.raw("phantom_ct") / "manifest.tsv"
    assert found["SHA-256 of the data's manifest"] == [file_digest(manifest)]
    model = finished.folder / finished.ship / "export" / "model.onnx"
    assert found["SHA-256 of export/model.onnx"] == [file_digest(model)]
    assert "Hinton, Vinyals, Dean" in cards[0].split("## Citation")[1]


def test_what_it_is_not_for(cards: tuple[str, dict[str, Any]]) -> None:
    assert "**Research only; no medical device.**" in cards[0]
    assert "**generated**: they say nothing about real images" in cards[0]


def test_the_undistilled_student_is_called_so(tmp_path: Path) -> None:
    card, _ = Finished(tmp_path, dice={"none": 0.9}).cards()
    assert "No distillation method was better" in card
    assert "The best of the study, to compare with: segresnet" in card
    assert "the study's best teacher, segresnet" in card
    assert "the undistilled student |" not in card, "it is not held against itself"
    assert "Of the method as the study compared it" not in card


def test_no_method_is_called_worse_that_was_not_there_or_could_not_be_chosen(
    tmp_path: Path,
) -> None:
    card, _ = Finished(tmp_path / "alone", {"methods": ["none"]}).cards()
    assert "**The study has no distillation method: this is the undistilled student**" in card
    assert "method was better" not in card
    better = Finished(tmp_path / "better")
    for folder, cell in better.plan.cells.items():
        if cell.method and cell.method.name == "kd" and cell.seed == 1:
            better.edit(f"{folder}/model.json", validation_dice=None)
    card, _ = better.cards()
    assert "better on the validation cases, of those that could be chosen" in card


@pytest.mark.parametrize(
    ("licence", "said", "unsaid"),
    [
        (
            {"spdx": "CC-BY-NC-SA-4.0"},
            ["**Non-commercial.**", "**Share-alike.**"],
            ["not known: ask"],
        ),
        (
            {"spdx": "LicenseRef-x", "commercial": False, "redistribute": "share_alike"},
            ["**Non-commercial.**", "**Share-alike.**"],
            ["not to be passed on"],
        ),
        (
            {"spdx": "LicenseRef-own", "gated": True, "note": "as [they](javascript:x) write"},
            ["is not known: ask", "not to be passed on", "after registration", r"\[they](java"],
            ["Non-commercial", "Share-alike"],
        ),
        (
            {"spdx": "CC-BY-4.0"},
            ["states no restriction beside that licence"],
            ["Non-commercial", "not known: ask", "not to be passed on"],
        ),
    ],
)
def test_what_the_licence_restricts_is_said(
    tmp_path: Path, licence: dict[str, Any], said: list[str], unsaid: list[str]
) -> None:
    card, _ = Finished(tmp_path, card={"licence": licence}).cards()
    assert all(text in card for text in said), card
    assert not any(text in card for text in unsaid)


def test_the_terms_of_the_original_images_hold_too(tmp_path: Path) -> None:
    source = {"derived_from": "kits19", "required_text": "Please thank us.", "citation": ["X 2020"]}
    card, _ = Finished(tmp_path, card={"source": source}).cards()
    assert "CC0-1.0 (phantom_ct); CC-BY-NC-SA-4.0 (kits19)" in card
    assert "The licence of kits19 (CC-BY-NC-SA-4.0) forbids commercial use" in card
    assert "asks to print: Please thank us." in card and "- Data: X 2020" in card


def test_a_reading_of_a_paper_is_marked(tmp_path: Path) -> None:
    config = {"methods": ["none", {"sum": ["kd", "cpkd"], "as": "both"}]}
    card, _ = Finished(tmp_path, config, dice={"sum": 0.85}).cards()
    parts = card.split("## Citation")
    assert "both†" in card
    assert [part.count("**A reading: the paper's full text") for part in parts] == [1, 1]
    assert "Only the abstract could be read" in card and "Hinton" in card


def test_an_adopted_teacher_and_a_tuned_student(tmp_path: Path) -> None:
    weights = tmp_path / "best.pt"
    weights.touch()
    teacher = {"segresnet": {}, "weights": str(weights)}
    card, cost = Finished(tmp_path / "a", {"teachers": [teacher], "budget": 3}).cards()
    assert "trained elsewhere and taken over as it was" in card
    assert "Tuned under an equal budget of 3 trials" in card and "learning_rate 0.01" in card
    assert "| none+tuned, the undistilled student |" in card
    assert len(re.findall(r"^\| none\+tuned \| .* \| 2 +\| ", card, re.M)) == 3, "the study's own"
    assert cost["teacher"]["bytes"] == 4000


def test_a_teacher_that_brings_its_own_files(tmp_path: Path) -> None:
    program = tmp_path / "teacher.ts"
    program.write_text("x" * 9000)
    teachers = [{"torchscript": {"path": str(program)}}]
    finished = Finished(tmp_path / "a", {"teachers": teachers})
    assert finished.cards()[1]["teacher"]["bytes"] == 9000
    program.unlink()
    card, cost = finished.cards()
    assert cost["teacher"]["bytes"] is None and cost["ratios"]["bytes"] is None
    assert "| weights on the disk, MB | 0.001" in card


def test_slices_and_regions(tmp_path: Path) -> None:
    names = {0: "background", 1: "liver", 2: "kidney", 3: "spleen", 4: "duct", 5: "tumour"}
    regions = {"all": [1, 2, 3, 4, 5], "organs": [2, 3, 4, 5], "small": [4, 5], "t": [5], "s": [3]}
    change = {
        "labels": {"raw": names, "targets": "regions", "regions": regions, "may_be_absent": "all"},
        "has_spacing": False,
        "presets": {
            "default": {
                "spacing": [2.0, 2.0, None],
                "intensity": [{"kind": "zscore"}],
                "patch": [32, 48],
            }
        },
    }
    card, _ = Finished(tmp_path, card=change).cards()
    assert "Segments all, organs, small, t, s in CT" in card
    assert re.findall(r"\| region (\w+)", card) == list(regions)
    assert "logits are the regions, in this order" in card
    assert table(card, "Preparation")["window, voxels"] == ["32 x 48, slices along the third axis"]
    assert table(card, "Preparation")["spacing, mm"] == ["2 x 2 x as stored"]
    assert "numpy.zeros((1, 1, 32, 48), numpy.float32)" in card


def test_a_split_that_selects_on_its_test_cases_is_marked(tmp_path: Path) -> None:
    finished = Finished(tmp_path)
    finished.edit(f"{finished.fold}/split.json", selects_on_test=True)
    card, _ = finished.cards()
    assert "**The cases that chose this network are those that it is scored on**" in card
    assert "the scores of the test cases below are not" not in card


def test_names_that_attack_stay_text(tmp_path: Path) -> None:
    finished = Finished(tmp_path, card={"title": "A <script>alert(1)</script> | `x`\n\n# big"})
    evil = '<img src="x">|[a](http://x)'
    finished.change_scores(lambda scores: scores.replace({"case": {"c0": evil}}))
    card, _ = finished.cards()
    assert "<script" not in card and "<img" not in card
    assert r'&lt;img src="x">\|\[a](http://x)' in card
    assert "\n# big" not in card


def test_without_comparisons_or_with_one_case(tmp_path: Path) -> None:
    finished = Finished(tmp_path)
    tables = finished.folder / finished.plan.paths.tables("small")
    (tables / "comparisons.csv").unlink()
    finished.change_scores(lambda scores: scores[scores["case"] == "c0"])
    card, _ = finished.cards()
    assert "Of the method as the study compared it" not in card
    assert "(no interval)" in table(card, "Scores of the test cases")["liver"][3]


def test_scores_of_another_study_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = Finished(tmp_path)
    finished.cards()
    finished.change_scores(lambda scores: scores[scores["method"] != "kd"])
    with finished.within():
        assert main(finished.card_arguments()) == 3
    assert "no score of results/phantom_ct/default/fold0/students/segresnet" in (
        capsys.readouterr().err
    )


# tables of scores


def rows(*found: tuple[str, str, float, str], metric: str = "dice") -> pd.DataFrame:
    unit = "fraction" if metric == "dice" else "mm"
    columns = ["case", "structure", "value", "status"]
    constant = {"metric": metric, "unit": unit, "protocol": "strict_mm"}
    return pd.DataFrame(found, columns=columns).assign(**constant)


def test_missed_and_false_structures_are_counted_and_named() -> None:
    scores = rows(
        ("a", "liver", 0.9, "ok"),
        ("a", "duct", 0.0, "missing_in_prediction"),
        ("b", "liver", 0.8, "ok"),
        ("b", "duct", 0.0, "missing_in_reference"),
        ("c", "liver", 0.7, "ok"),
        ("c", "duct", np.nan, "missing_in_both"),
    )
    found = {row[0]: row[1:4] for row in metric_table(scores, 0.95).rows}
    assert found == {
        "mean": ["3", "1", "1"],
        "liver": ["3", "0", "0"],
        "duct": ["2", "1", "1"],
    }
    worst = failure_table(scores).rows
    assert [row[:2] for row in worst] == [["b", "40.00"], ["a", "45.00"], ["c", "70.00"]]
    assert worst[0][3:] == ["none", "duct"] and worst[1][3:] == ["duct", "none"]


def test_an_infinite_distance_is_in_no_mean_and_is_counted() -> None:
    values = (("a", 2.0), ("b", 4.0), ("c", np.inf))
    scores = rows(*((case, "liver", value, "ok") for case, value in values), metric="hd95_pooled")
    (_, liver) = metric_table(scores, 0.95).rows
    assert liver[-1].startswith("3.00 (") and liver[-1].endswith(", 1 infinite")
    assert failure_table(scores).rows[0][:2] == ["c", "inf"], "the largest distance is the worst"


def test_an_interval_is_not_beyond_its_scale() -> None:
    values = (("a", 1.0), ("b", 1.0), ("c", 0.9))
    scores = rows(*((case, "liver", value, "ok") for case, value in values))
    assert metric_table(scores, 0.95).rows[1][-1].endswith(" to 100.00)")


def test_a_study_without_comparisons_gives_no_verdict() -> None:
    chosen = {"method": "kd"} | dict.fromkeys(("dataset", "split", "student", "teacher"), "x")
    assert verdicts(pd.DataFrame(), chosen, "strict_mm").rows == []
