"""Names and numbers as readers see them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from kdpipe.errors import DataError
from kdpipe.stats.tables import read_table
from kdpipe.stats.wording import arm_name, metric_name, p_value, plural, span


@pytest.mark.parametrize(
    ("teacher", "reading", "name"),
    [
        ("unet", False, "kd from unet"),
        ("unet", True, "kd† from unet"),
        ("no_teacher", True, "kd†"),
        ("", False, "kd"),
    ],
)
def test_an_arm_is_named_with_its_teacher(teacher: str, reading: bool, name: str) -> None:
    assert arm_name(teacher, "kd", reading=reading) == name


def test_a_metric_that_has_no_name_is_written_as_it_is_called() -> None:
    assert (metric_name("hd95_max"), metric_name("dice_smoothed")) == ("HD95 max", "dice smoothed")


@pytest.mark.parametrize(
    ("p", "text"), [(0.0004, "< 0.001"), (0.001, "0.001"), (1, "1.000"), (math.nan, "")]
)
def test_p_values(p: float, text: str) -> None:
    assert p_value(p) == text


def test_counts() -> None:
    assert (plural(1, "case"), plural(0, "case")) == ("1 case", "0 cases")
    assert (span([2, 2], "seed"), span([3, 1], "seed")) == ("2 seeds", "1 to 3 seeds")


def test_only_columns_of_numbers_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("case,method,n_cases,mean,reading\n001,NA,12,,True\n1e3,nan,3,inf,False\n")
    table = read_table(file)
    assert table["case"].tolist() == ["001", "1e3"]
    assert table["method"].tolist() == ["NA", "nan"]
    assert table["n_cases"].tolist() == [12, 3]
    assert math.isnan(table["mean"][0]) and math.isinf(table["mean"][1])
    assert table["reading"].tolist() == [True, False]
    file.write_text("case,mean\n001,x\n")
    with pytest.raises(DataError, match=r"table\.csv: not readable .*'x'"):
        read_table(file)
