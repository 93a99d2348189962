"""Tables from planted scores: every printed number can be computed by hand."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kdpipe.errors import DataError
from kdpipe.protocols import BANDS, get_protocol
from kdpipe.report.tables import CELL, summarise, write_tables
from kdpipe.stats.scores import OVERALL
from kdpipe.tuning import TUNED

#: method -> seed -> Dice of (case a liver, case b liver, case a spleen, case b spleen)
DICE: dict[str, dict[int, tuple[float, ...]]] = {
    "none": {0: (0.80, 0.90, 0.50, 0.70), 1: (0.84, 0.90, 0.60, 0.70)},
    "kd": {0: (0.90, 0.92, 0.60, 0.80), 1: (0.94, 0.96, 0.60, 0.80)},
}
COST = ["params", "MACs", "CPU ms", "CPU MB"]
TEACHER = (0.95, 0.97, 0.90, 0.92)


def _write_cell(root: Path, keys: dict[str, Any], dice: tuple[float, ...]) -> dict[str, Any]:
    folder = root / "_".join(str(value) for value in keys.values() if value != "")
    folder.mkdir()
    rows = []
    for value, (structure, case) in zip(
        dice, [(s, c) for s in ("liver", "spleen") for c in "ab"], strict=True
    ):
        missed = structure == "spleen" and case == "b" and keys["method"] == "none"
        where = {**keys, "case": case, "structure": structure, "protocol": "strict_mm"}
        status = "missing_in_prediction" if missed else "ok"
        rows.append(
            {**where, "metric": "dice", "value": value, "unit": "fraction", "status": status}
        )
        distance = {"metric": "hd95_max", "value": 10 * (1 - value), "unit": "mm"}
        rows.append({**where, **distance, "status": status})
    pd.DataFrame(rows).to_csv(folder / "metrics.csv", index=False, na_rep="nan")
    (folder / "model.json").write_text(
        json.dumps({"validation_dice": 0.9, "seconds": 30.0, "split_sha256": "abcdef0123456789"})
    )
    return {"folder": str(folder), "profile": str(_write_profile(root)), **keys}


def _write_profile(root: Path, **changes: Any) -> Path:
    """What the network of all cells costs, on a machine without a GPU."""
    facts = {
        "parameters": 1_500_000,
        "macs": 2_250_000_000,
        "cpu": {"latency_ms": 123.4, "peak_mb": 45.678},
        "cuda": None,
    }
    (root / "profile").mkdir(exist_ok=True)
    (root / "profile" / "profile.json").write_text(json.dumps(facts | changes))
    return root / "profile"


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    base = {"dataset": "mine", "split": "default", "fold": 0}
    teacher = {**base, "role": "teacher", "teacher": "big", "student": "", "method": "", "seed": 0}
    cells = [_write_cell(tmp_path, teacher, TEACHER)]
    for method, seeds in DICE.items():
        for seed, dice in seeds.items():
            names = {"teacher": "no_teacher" if method == "none" else "big", "student": "tiny"}
            keys = {**base, "role": "student", **names, "method": method, "seed": seed}
            cells.append(_write_cell(tmp_path, keys, dice))
    return {"study": "my_study", "cells": cells}


@pytest.fixture
def results(run: dict[str, Any], tmp_path: Path) -> pd.DataFrame:
    write_tables(run, tmp_path / "tables")
    return read_results(tmp_path / "tables")


def read_results(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results.csv", keep_default_na=False, na_values=["nan"])


def edit_scores(cell: dict[str, Any], **columns: Any) -> None:
    """Overwrite columns of the cell's metrics.csv, as text."""
    file = Path(cell["folder"]) / "metrics.csv"
    pd.read_csv(file, dtype=str, keep_default_na=False).assign(**columns).to_csv(file, index=False)


def markdown_tables(text: str) -> dict[str, list[list[str]]]:
    """Heading -> rows of the table below it, header first."""
    tables = {}
    for part in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
        heading, *lines = part.splitlines()
        rows = [line.strip("|") for line in lines if line.startswith("|")]
        tables[heading] = [[cell.strip() for cell in row.split("|")] for row in rows]
        del tables[heading][1]
    return tables


def row(results: pd.DataFrame, method: str | None, structure: str, metric: str) -> pd.Series:
    of_method = results["method"] == (method or "")
    chosen = of_method & (results["structure"] == structure) & (results["metric"] == metric)
    assert chosen.sum() == 1
    return results[chosen].iloc[0]


def test_mean_and_sd_are_over_the_seeds_means(results: pd.DataFrame) -> None:
    liver = row(results, "kd", "liver", "dice")
    assert liver["mean"] == pytest.approx((0.91 + 0.95) / 2)
    assert liver["sd"] == pytest.approx(np.std([0.91, 0.95], ddof=1))
    overall = row(results, "kd", OVERALL, "dice")
    assert overall["mean"] == pytest.approx(((0.91 + 0.70) / 2 + (0.95 + 0.70) / 2) / 2)
    assert overall["n_seeds"] == 2
    assert overall["n_valid"] == 8


def test_gain_is_over_the_undistilled_student_and_positive_is_better(results: pd.DataFrame) -> None:
    gain = row(results, "kd", "liver", "dice")["gain"]
    assert gain == pytest.approx((0.91 + 0.95) / 2 - (0.85 + 0.87) / 2)
    assert row(results, "kd", "liver", "hd95_max")["gain"] == pytest.approx(10 * gain)
    assert row(results, "none", "liver", "dice")["gain"] == 0
    assert np.isnan(row(results, None, "liver", "dice")["gain"])


def test_missed_structures_and_cost(results: pd.DataFrame) -> None:
    none = row(results, "none", OVERALL, "dice")
    assert none["n_missed"] == 2
    assert row(results, "kd", OVERALL, "dice")["n_missed"] == 0
    assert none["parameters"] == 1_500_000
    assert none["training_seconds"] == 30


def test_results_carry_protocol_and_number_of_cases(results: pd.DataFrame) -> None:
    assert set(results["protocol"]) == {"strict_mm"}
    assert set(results["n_cases"]) == {2}


def test_markdown_tables(run: dict[str, Any], tmp_path: Path) -> None:
    text = write_tables(run, tmp_path / "out")
    markdown = (tmp_path / "out" / "results.md").read_text()
    assert text.startswith(markdown)
    tables = markdown_tables(markdown)
    assert list(tables) == ["my_study", "Dice % by structure", "HD95 max mm by structure"]
    who = ["network", "teacher", "method"]
    cost = ["1.500 M", "2.250 G", "123", "45.7"]
    # overall Dice of seeds 0 and 1: none 0.725, 0.76; kd 0.805, 0.825; HD95 = 10 (1 - Dice)
    assert tables["my_study"] == [
        [*who, "Dice %", "HD95 max mm", "gain Dice", "missed", "false", *COST],
        ["big", "", "(teacher)", "93.50", "0.65", "", "0", "0", *cost],
        ["tiny", "", "none", "74.25 ± 2.47", "2.58 ± 0.25", "+0.00", "2", "0", *cost],
        ["tiny", "big", "kd", "81.50 ± 1.41", "1.85 ± 0.14", "+7.25", "0", "0", *cost],
    ]
    assert tables["Dice % by structure"] == [
        [*who, "liver", "spleen"],
        ["big", "", "(teacher)", "96.00", "91.00"],
        ["tiny", "", "none", "86.00 ± 1.41", "62.50 ± 3.54"],
        ["tiny", "big", "kd", "93.00 ± 2.83", "70.00 ± 0.00"],
    ]
    assert tables["HD95 max mm by structure"] == [
        [*who, "liver", "spleen"],
        ["big", "", "(teacher)", "0.40", "0.90"],
        ["tiny", "", "none", "1.40 ± 0.14", "3.75 ± 0.35"],
        ["tiny", "big", "kd", "0.70 ± 0.28", "3.00 ± 0.00"],
    ]
    assert "\n2 test cases. Mean ± sd over 2 seeds of the student;" in markdown
    strict = get_protocol("strict_mm")
    notes = f"\nProtocol strict_mm, version {strict.version}: {strict.definition}\n"
    assert markdown.index(notes) < markdown.index("## Dice")


def test_latex_tables(run: dict[str, Any], tmp_path: Path) -> None:
    write_tables(run, tmp_path / "out")
    latex = (tmp_path / "out" / "results.tex").read_text()
    tables = latex.split(r"\begin{table}")[1:]
    assert len(tables) == 3
    for table in tables:  # they float: each needs the definition
        version = get_protocol("strict_mm").version
        assert rf"Protocol strict\_mm, version {version}: " in table
        assert table.count(r"\\") == 4
    assert r"\caption{my\_study. 2 test cases. Mean $\pm$ sd over" in tables[0]
    row_of_kd = r"tiny & big & kd & 81.50 $\pm$ 1.41 & 1.85 $\pm$ 0.14 & +7.25 & 0 & 0 & "
    cost = r"1.500 M & 2.250 G & 123 & 45.7 \\"
    assert row_of_kd + cost in tables[0]
    assert r"\begin{tabular}{llllllllllll}" in tables[0]
    assert r"\caption{my\_study: Dice \% by structure. Protocol" in tables[1]
    assert r"network & teacher & method & liver & spleen \\" in tables[1]
    assert r"tiny & big & kd & 0.70 $\pm$ 0.28 & 3.00 $\pm$ 0.00 \\" in tables[2]


def test_names_are_escaped(run: dict[str, Any], tmp_path: Path) -> None:
    plain = "[#$%&_{}~^\\±|<>"
    edit_scores(run["cells"][0], structure=["a|b"] * 4 + ["c"] * 4)
    run["cells"][0]["teacher"] = plain
    edit_scores(run["cells"][0], teacher=plain)
    write_tables(run, tmp_path / "out")
    latex = (tmp_path / "out" / "results.tex").read_text()
    assert (
        "\n{[}"
        r"\#\$\%\&\_\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}$\pm$"
        r"\textbar{}\textless{}\textgreater{} &  & (teacher) & 93.50"
    ) in latex
    assert r"| a\|b " in (tmp_path / "out" / "results.md").read_text()


def test_a_structure_may_be_called_like_a_column(run: dict[str, Any], tmp_path: Path) -> None:
    for cell in run["cells"]:
        edit_scores(cell, structure=["method"] * 4 + ["teacher"] * 4)
    write_tables(run, tmp_path / "out")
    tables = markdown_tables((tmp_path / "out" / "results.md").read_text())
    assert tables["Dice % by structure"][0] == ["network", "teacher", "method", "method", "teacher"]
    assert tables["Dice % by structure"][1] == ["big", "", "(teacher)", "96.00", "91.00"]


def test_structures_and_cases_may_differ_between_data_sets(
    run: dict[str, Any], tmp_path: Path
) -> None:
    other = run["cells"][0]
    other["dataset"] = "other"
    file = Path(other["folder"]) / "metrics.csv"
    edit_scores(other, dataset="other")
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    table[(table["case"] == "a") & (table["structure"] == "liver")].to_csv(file, index=False)
    write_tables(run, tmp_path / "out")
    markdown = (tmp_path / "out" / "results.md").read_text()
    by_structure = markdown_tables(markdown)["Dice % by structure"]
    assert by_structure[0] == ["data", "network", "teacher", "method", "liver", "spleen"]
    assert by_structure[1] == ["other", "big", "", "(teacher)", "95.00", ""]
    assert by_structure[3] == ["mine", "tiny", "big", "kd", "93.00 ± 2.83", "70.00 ± 0.00"]
    assert "1 to 2 test cases." in markdown


def test_names_that_look_like_numbers_or_gaps_stay_text(
    run: dict[str, Any], tmp_path: Path
) -> None:
    names = {"dataset": "007", "split": "NA", "teacher": "1", "student": "1e3", "method": "nan"}
    structures = ["None", "nan", "01", "null"]
    for cell in run["cells"]:
        odd = {key: name for key, name in names.items() if cell["role"] == "student"}
        cell |= odd
        edit_scores(cell, case="001", structure=np.repeat(structures, 2), **odd)
    with pytest.raises(DataError, match="twice in the study"):
        write_tables(run, tmp_path / "out")  # none and kd are now one cell
    run["cells"] = run["cells"][:3]
    write_tables(run, tmp_path / "out")
    scores, results = (
        pd.read_csv(tmp_path / "out" / f"{name}.csv", dtype=str, keep_default_na=False)
        for name in ("scores", "results")
    )
    assert set(scores["case"]) == {"001"}
    students = results[results["role"] == "student"]
    assert {key: set(students[key]) for key in names} == {k: {v} for k, v in names.items()}
    assert set(students["structure"]) == {*structures, OVERALL}
    assert set(results[results["role"] == "teacher"]["student"]) == {""}
    assert set(students["fold"]) == {"0"}
    assert students["parameters"].tolist() == ["1500000"] * len(students)


def test_values_keep_every_digit(run: dict[str, Any], tmp_path: Path) -> None:
    value = "0.12345678901234568"
    edit_scores(run["cells"][0], value=value)
    write_tables(run, tmp_path / "out")
    scores = pd.read_csv(tmp_path / "out" / "scores.csv", dtype=str)
    assert set(scores.loc[scores["role"] == "teacher", "value"]) == {value}
    assert len(scores) == 5 * 8


def test_a_value_that_is_left_out_does_not_count(run: dict[str, Any], tmp_path: Path) -> None:
    cell = run["cells"][-1]
    file = Path(cell["folder"]) / "metrics.csv"
    table = pd.read_csv(file, keep_default_na=False)
    table.loc[(table["structure"] == "spleen") & (table["case"] == "b"), "value"] = np.nan
    table.to_csv(file, index=False, na_rep="nan")
    write_tables(run, tmp_path / "out")
    spleen = row(read_results(tmp_path / "out"), "kd", "spleen", "dice")
    assert spleen["mean"] == pytest.approx((0.70 + 0.60) / 2)
    assert spleen["n_valid"] == 3
    assert (tmp_path / "out" / "scores.csv").read_text().count(",nan,") == 2


def test_a_structure_without_any_value_is_a_dash(run: dict[str, Any], tmp_path: Path) -> None:
    teacher = run["cells"][0]
    values = ["0.95", "9.0", "0.97", "9.0", "nan", "nan", "nan", "nan"]
    edit_scores(teacher, value=values)
    write_tables(run, tmp_path / "out")
    tables = markdown_tables((tmp_path / "out" / "results.md").read_text())
    assert tables["Dice % by structure"][1][-2:] == ["96.00", "-"]
    assert tables["my_study"][1][3:5] == ["96.00", "9.00"]
    lines = (tmp_path / "out" / "results.csv").read_text().splitlines()
    spleen = next(line for line in lines if ",teacher,big,,,spleen,strict_mm,dice," in line)
    assert ",strict_mm,dice,fraction,nan,nan,1,0,0,0,nan,nan,2,1500000," in spleen


def test_the_mean_over_structures_is_taken_case_by_case(
    run: dict[str, Any], tmp_path: Path
) -> None:
    """So that it is the mean of what the comparisons pair."""
    teacher = run["cells"][0]
    edit_scores(teacher, value=["0.9", "1", "0.8", "1", "0.5", "1", "nan", "1"])
    write_tables(run, tmp_path / "out")
    overall = row(read_results(tmp_path / "out"), None, OVERALL, "dice")
    assert overall["mean"] == pytest.approx(((0.9 + 0.5) / 2 + 0.8) / 2)


def test_false_structures_are_counted_apart_from_missed_ones(
    run: dict[str, Any], tmp_path: Path
) -> None:
    edit_scores(run["cells"][0], status=["missing_in_reference", *["ok"] * 7])
    write_tables(run, tmp_path / "out")
    overall = row(read_results(tmp_path / "out"), None, OVERALL, "dice")
    assert (overall["n_missed"], overall["n_false"]) == (0, 1)


def _add_scores(cell: dict[str, Any], **columns: Any) -> None:
    """Repeat the cell's scores of Dice, with other values in `columns`."""
    file = Path(cell["folder"]) / "metrics.csv"
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    more = table[(table["metric"] == "dice") & (table["protocol"] == "strict_mm")]
    pd.concat([table, more.assign(**columns)]).to_csv(file, index=False)


def test_each_protocol_has_tables_of_its_own(run: dict[str, Any], tmp_path: Path) -> None:
    for cell in run["cells"]:
        _add_scores(cell, protocol="monai", value="0.5")
        _add_scores(cell, protocol=BANDS, metric="error_in_0_1", value="0.25")
    write_tables(run, tmp_path / "out")
    markdown = (tmp_path / "out" / "results.md").read_text()
    strict, monai = re.split("^# Protocol ", markdown, flags=re.MULTILINE)[1:]
    assert strict.startswith("strict_mm\n") and monai.startswith("monai\n")
    assert "Protocol monai" not in strict and "| 50.00" not in strict
    assert "Protocol monai, version" in monai and "81.50" not in monai and "| 50.00" in monai
    latex = (tmp_path / "out" / "results.tex").read_text()
    assert latex.count(r"\begin{table}") == 5
    for text in (markdown, latex):
        # errors by distance from the boundary are for a figure
        assert "0_1" not in text and "25.00" not in text
    assert BANDS in (tmp_path / "out" / "results.csv").read_text()


def test_other_metrics_have_a_table_of_their_own(run: dict[str, Any], tmp_path: Path) -> None:
    for cell in run["cells"]:
        _add_scores(cell, metric="iou", value="0.5")
        _add_scores(cell, metric="reference_ml", value="7", unit="ml")
    write_tables(run, tmp_path / "out")
    tables = markdown_tables((tmp_path / "out" / "results.md").read_text())
    assert "IoU %" not in tables["my_study"][0]
    further = tables["Further metrics"]
    assert further[0] == ["network", "teacher", "method", "IoU %"]
    assert further[3] == ["tiny", "big", "kd", "50.00 ± 0.00"]


def test_gain_over_the_tuned_student(run: dict[str, Any], tmp_path: Path) -> None:
    assert "gain tuned" not in write_tables(run, tmp_path / "out")
    for cell in [cell for cell in run["cells"] if cell["method"] == "none"]:
        folder = Path(cell["folder"]).with_name(f"tuned_{cell['seed']}")
        shutil.copytree(cell["folder"], folder)
        run["cells"].append(cell | {"folder": str(folder), "method": f"none{TUNED}"})
        edit_scores(run["cells"][-1], method=f"none{TUNED}", value="0.8")
    write_tables(run, tmp_path / "out")
    main = markdown_tables((tmp_path / "out" / "results.md").read_text())["my_study"]
    column = main[0].index("gain tuned")
    assert [line[column] for line in main] == ["gain tuned", "", "-5.75", "+1.50", "+0.00"]


def test_wide_table(run: dict[str, Any], tmp_path: Path) -> None:
    write_tables(run, tmp_path / "out")
    wide = pd.read_csv(tmp_path / "out" / "wide.csv", keep_default_na=False, na_values=["nan"])
    assert wide["method"].tolist() == ["", "none", "kd"]
    kd = wide.iloc[2]
    assert kd["strict_mm.dice.liver.mean"] == pytest.approx(0.93)
    assert kd["strict_mm.dice.liver.sd"] == pytest.approx(np.std([0.91, 0.95], ddof=1))
    assert kd["strict_mm.hd95_max.mean.mean"] == pytest.approx(1.85)
    assert kd["parameters"] == 1_500_000


def test_another_protocol_brings_its_own_definition(run: dict[str, Any], tmp_path: Path) -> None:
    for cell in run["cells"]:
        edit_scores(cell, protocol="monai")
    write_tables(run, tmp_path / "out")
    for name in ("results.md", "results.tex"):
        text = (tmp_path / "out" / name).read_text()
        assert f"Protocol monai, version {get_protocol('monai').version}: MONAI DiceMetric" in text
        assert "strict" not in text


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"protocol": "monai"},
            "do not compare: strict_mm in .*teacher_big_0.metrics.csv; monai in .*kd_1",
        ),
        ({"protocol": "mine"}, "metrics.csv: unknown protocol mine"),
        ({"method": "cwd"}, "kd_1.metrics.csv: method is 'cwd' there and 'kd' in the study"),
        ({"seed": "2"}, "kd_1.metrics.csv: seed is '2' there and '1' in the study"),
        ({"fold": "0.0"}, "metrics.csv: fold: invalid literal .* '0.0'"),
        ({"value": ""}, "metrics.csv: value: could not convert"),
        ({"case": "c"}, "case c: dice of liver is there twice"),
        ({"structure": ["mean"] * 4 + ["x"] * 4}, "mine: a structure is called 'mean'"),
    ],
)
def test_wrong_scores_are_named(
    run: dict[str, Any], tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    edit_scores(run["cells"][-1], **columns)
    with pytest.raises(DataError, match=message):
        write_tables(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scores_that_are_not_there_are_named(run: dict[str, Any], tmp_path: Path) -> None:
    file = Path(run["cells"][-1]["folder"]) / "metrics.csv"
    table = pd.read_csv(file)
    table.drop(columns=["case", "unit"]).to_csv(file, index=False)
    with pytest.raises(DataError, match="metrics.csv: lacks the columns case, unit"):
        write_tables(run, tmp_path / "out")
    table.head(0).to_csv(file, index=False)
    with pytest.raises(DataError, match="kd_1.metrics.csv: holds no score"):
        write_tables(run, tmp_path / "out")
    file.unlink()
    with pytest.raises(DataError, match="kd_1.metrics.csv: no table of scores"):
        write_tables(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ("{}", "model.json: lacks numbers for seconds"),
        ('{"seconds": null}', "lacks numbers for seconds"),
        ("{", "model.json: unreadable"),
    ],
)
def test_facts_of_another_format_are_named(
    run: dict[str, Any], tmp_path: Path, facts: str, message: str
) -> None:
    file = Path(run["cells"][0]["folder"]) / "model.json"
    file.write_text(facts)
    with pytest.raises(DataError, match=message):
        write_tables(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_profile_without_its_numbers_is_named(run: dict[str, Any], tmp_path: Path) -> None:
    _write_profile(tmp_path, macs=None, cpu={"peak_mb": None})
    with pytest.raises(DataError, match="profile.json: lacks numbers for macs, cpu_ms"):
        write_tables(run, tmp_path / "out")


def test_a_gpu_has_columns_of_its_own(run: dict[str, Any], tmp_path: Path) -> None:
    _write_profile(tmp_path, cuda={"latency_ms": 1.2345, "peak_mb": 1000.4})
    write_tables(run, tmp_path / "out")
    main = markdown_tables((tmp_path / "out" / "results.md").read_text())["my_study"]
    assert main[0][-2:] == ["GPU ms", "GPU MB"]
    assert main[1][-2:] == ["1.23", "1000"]


def test_a_split_that_selects_on_its_test_cases_is_marked(
    run: dict[str, Any], tmp_path: Path
) -> None:
    write_tables(run, tmp_path / "out")
    markdown = (tmp_path / "out" / "results.md").read_text()
    assert "mine default/0 abcdef012345." in markdown and "‡" not in markdown
    for cell in run["cells"]:
        file = Path(cell["folder"]) / "model.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"selects_on_test": True}))
    write_tables(run, tmp_path / "out")
    markdown = (tmp_path / "out" / "results.md").read_text()
    assert all(row[0] == "default/0‡" for row in markdown_tables(markdown)["my_study"][1:])
    assert "selected on the very cases that are scored" in markdown
    assert "default/0$\\ddagger$" in (tmp_path / "out" / "results.tex").read_text()


def test_cells_of_one_split_that_saw_other_cases_are_named(
    run: dict[str, Any], tmp_path: Path
) -> None:
    file = Path(run["cells"][-1]["folder"]) / "model.json"
    file.write_text(json.dumps({"seconds": 1.0, "split_sha256": "other"}))
    with pytest.raises(DataError, match="another division of the cases"):
        write_tables(run, tmp_path / "out")


def test_pictures_of_unknown_scale_have_columns_of_their_own(
    run: dict[str, Any], tmp_path: Path
) -> None:
    file = Path(run["cells"][0]["folder"]) / "metrics.csv"
    file.write_text(file.read_text().replace(",mm,", ",voxel,"))
    write_tables(run, tmp_path / "out")
    markdown = (tmp_path / "out" / "results.md").read_text()
    header, teacher, student, _ = markdown_tables(markdown)["my_study"]
    voxel, mm = header.index("HD95 max voxel"), header.index("HD95 max mm")
    assert (teacher[voxel], teacher[mm]) == ("0.65", "")
    assert (student[voxel], student[mm]) == ("", "2.58 ± 0.25")
    assert "pictures of unknown scale" in markdown


def test_a_cell_that_is_listed_twice_is_named(run: dict[str, Any], tmp_path: Path) -> None:
    run["cells"].append(run["cells"][1])
    with pytest.raises(DataError, match="cell .* student tiny, method none, seed 0: twice"):
        write_tables(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def read_all(cells: list[dict[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    tables = [pd.read_csv(Path(c["folder"]) / "metrics.csv", keep_default_na=False) for c in cells]
    costs = ("parameters", "macs", "cpu_ms", "cpu_mb", "gpu_ms", "gpu_mb", "seconds")
    return pd.concat(tables), pd.DataFrame(cells).assign(**dict.fromkeys(costs, 1.0))


def test_summary_needs_no_teacher(run: dict[str, Any]) -> None:
    assert set(summarise(*read_all(run["cells"][1:]))["role"]) == {"student"}


def test_summary_needs_no_student(run: dict[str, Any], tmp_path: Path) -> None:
    write_tables({**run, "cells": run["cells"][:1]}, tmp_path / "out")
    markdown = (tmp_path / "out" / "results.md").read_text()
    assert markdown_tables(markdown)["my_study"][1][2:4] == ["(teacher)", "93.50"]


def test_cells_without_costs_or_scores_are_named(run: dict[str, Any]) -> None:
    scores, costs = read_all(run["cells"])
    with pytest.raises(DataError, match="method kd, seed 1: has scores but no costs"):
        summarise(scores, costs.iloc[:-1])
    of_last = (scores[CELL] == costs[CELL].iloc[-1]).all(axis=1)
    with pytest.raises(DataError, match="method kd, seed 1: has costs, no scores"):
        summarise(scores[~of_last], costs)


def test_a_reading_is_marked_and_explained(run: dict[str, Any], tmp_path: Path) -> None:
    shown = write_tables(run, tmp_path / "plain")
    assert "†" not in shown
    write_tables(run | {"readings": ["kd"]}, tmp_path / "marked")
    markdown = (tmp_path / "marked" / "results.md").read_text()
    assert "| kd†" in markdown
    assert "none†" not in markdown
    assert "†: a reading of its paper, whose full text could not be had" in markdown
    assert r"kd$\dagger$" in (tmp_path / "marked" / "results.tex").read_text()
    results = read_results(tmp_path / "marked")
    assert set(results.loc[results["reading"], "method"]) == {"kd"}
