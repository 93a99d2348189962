"""Splits keep patients together, do not depend on the order of files, and refuse what is unfair."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from kdpipe.data.split import PARTS, make_split, read_split, split_cases, write_split
from kdpipe.errors import ConfigError, DataError
from kdpipe.splits import Split

SINGLE = [(f"c{i:02d}", f"p{i:02d}") for i in range(24)]
GROUPED = [(f"p{i:02d}_{visit}", f"p{i:02d}") for i in range(20) for visit in range(1 + i % 4)]
FRACTIONS = {"kind": "fractions", "val": 0.2, "test": 0.25}
COUNTS = {"kind": "fixed_counts", "train": 14, "val": 4, "test": 6}
KFOLD = {"kind": "kfold", "n": 4}


def rule(**fields: Any) -> Split:
    return TypeAdapter(Split).validate_python(fields)


def split(cases: list[tuple[str, str]], fold: int = 0, **fields: Any) -> dict[str, Any]:
    return make_split(cases, rule(**fields), fold, "mine")


def sizes(result: dict[str, Any]) -> tuple[int, ...]:
    return tuple(len(result[part]) for part in PARTS)


@pytest.mark.parametrize("fields", [FRACTIONS, COUNTS, KFOLD])
@pytest.mark.parametrize("cases", [SINGLE, GROUPED])
def test_patients_stay_together(fields: dict, cases: list) -> None:
    for seed in range(5):
        result = split(cases, **fields, seed=seed)
        subjects = [{dict(cases)[case] for case in result[part]} for part in PARTS]
        assert all(subjects)
        assert sum(map(len, subjects)) == len(set.union(*subjects))
        assert all(result[part] == sorted(result[part]) for part in PARTS)


@pytest.mark.parametrize("fields", [FRACTIONS, COUNTS, KFOLD])
def test_the_order_of_files_does_not_matter_and_the_seed_does(fields: dict) -> None:
    shuffled = list(GROUPED)
    random.Random(1).shuffle(shuffled)
    assert split(shuffled, **fields, seed=3) == split(GROUPED, **fields, seed=3)
    assert split(GROUPED, **fields, seed=4)["sha256"] != split(GROUPED, **fields, seed=3)["sha256"]


def test_a_split_stays_the_same_for_ever() -> None:
    """A changed shuffle would silently make all earlier results incomparable."""
    result = split(SINGLE, **COUNTS, seed=0)
    assert result["test"] == ["c00", "c06", "c07", "c11", "c14", "c17"]
    assert result["rule"] == {**COUNTS, "seed": 0}
    assert result["fold"] == 0


def test_fractions_are_of_the_patients() -> None:
    assert sizes(split(SINGLE, **FRACTIONS)) == (13, 5, 6)
    result = split(GROUPED, **FRACTIONS)
    assert [len({case[:3] for case in result[part]}) for part in PARTS] == [11, 4, 5]


def test_counts_are_met_exactly_and_the_rest_is_left_out() -> None:
    assert sizes(split(SINGLE, **COUNTS)) == (14, 4, 6)
    assert sizes(split(SINGLE, kind="fixed_counts", train=3, val=2, test=1)) == (3, 2, 1)


def test_counts_of_grouped_cases_are_met_as_nearly_as_patients_allow() -> None:
    for seed in range(20):
        got = sizes(split(GROUPED, kind="fixed_counts", train=30, val=8, test=12, seed=seed))
        assert all(abs(n - wanted) <= 1 for n, wanted in zip(got, (30, 8, 12), strict=True)), got
    triples = [(f"p{i}_{k}", f"p{i}") for i in range(5) for k in range(3)]
    got = sizes(split(triples, kind="fixed_counts", train=8, val=1, test=4))
    assert got == (9, 3, 3)


def test_kfold_tests_each_case_once() -> None:
    folds = [split(SINGLE, fold=k, **KFOLD) for k in range(4)]
    assert sorted(case for fold in folds for case in fold["test"]) == [c for c, _ in SINGLE]
    for k, fold in enumerate(folds):
        assert fold["val"] == folds[(k + 1) % 4]["test"]
        assert sizes(fold) == (12, 6, 6)
        assert fold["fold"] == k


def explicit(train: str, val: str, test: str) -> dict[str, Any]:
    given = {"train": train.split(), "val": val.split(), "test": test.split()}
    return {"kind": "explicit", **given}


def test_explicit() -> None:
    result = split(SINGLE, **explicit("c03 c01", "c02", "c00"))
    assert result["train"] == ["c01", "c03"]
    assert result["rule"] == {"kind": "explicit"}


@pytest.mark.parametrize(
    ("cases", "fields", "fold", "error", "message"),
    [
        (SINGLE[:20], COUNTS, 0, DataError, "needs 24 cases .* there are 20; .*`fractions`"),
        (SINGLE, KFOLD, 4, ConfigError, "a kfold split has folds 0 to 3, not 4"),
        (SINGLE, KFOLD, -1, ConfigError, "not -1"),
        (SINGLE, COUNTS, 1, ConfigError, "a fixed_counts split has folds 0 to 0, not 1"),
        (SINGLE[:3], KFOLD, 0, DataError, "4 folds need as many patients, there are 3"),
        (SINGLE[:2], FRACTIONS, 0, DataError, "train is empty with 2 cases"),
        (SINGLE, FRACTIONS | {"val": 0.75}, 0, DataError, "train is empty"),
        (SINGLE + SINGLE[:1], COUNTS, 0, DataError, "case id 'c00' occurs twice"),
        (SINGLE, explicit("c01 x", "c02", "c03"), 0, DataError, "1 cases that do not exist.*'x'"),
        (SINGLE, explicit("c01", "c01", "c03"), 0, DataError, "'c01' is in train and in val"),
        (SINGLE, explicit("c01 c01", "c02", "c03"), 0, DataError, "in train and in train"),
        (SINGLE, explicit("c01", "", "c03"), 0, DataError, "val is empty"),
        (GROUPED, explicit("p01_0", "p02_0", "p01_1"), 0, DataError,
         "patient 'p01' has cases in train and in test"),
    ],
)  # fmt: skip
def test_wrong_splits(cases: list, fields: dict, fold: int, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        split(cases, fold=fold, **fields)


def test_files(tmp_path: Path) -> None:
    result = split(SINGLE, **COUNTS)
    write_split(tmp_path / "split.json", result)
    assert read_split(tmp_path / "split.json") == result


def change(part: str, cases: list[str]):
    return lambda split: split.update({part: cases})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda split: split["val"].append(split["test"][0]), "is in val and in test"),
        (change("train", ["c00"]), "its lists do not fit its sha256, so it was edited"),
        (lambda split: split.pop("val"), "not readable as a split"),
    ],
)
def test_an_edited_file_is_refused(tmp_path: Path, edit, message: str) -> None:
    result = split([(f"c{i:02d}", f"p{i}") for i in range(1, 25)], **COUNTS)
    edit(result)
    (tmp_path / "split.json").write_text(json.dumps(result))
    with pytest.raises(DataError, match=message):
        read_split(tmp_path / "split.json")


@pytest.mark.parametrize("text", [None, "", "[]", "{}"])
def test_what_is_no_split(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "split.json").write_text(text)
    with pytest.raises(DataError, match="not readable as a split"):
        read_split(tmp_path / "split.json")


def test_from_a_table(tmp_path: Path) -> None:
    """Ids stay text: 007 is no number."""
    rows = [f"{i:03d}\t{i:03d}\tx" for i in range(24)]
    (tmp_path / "cases.tsv").write_text("\n".join(["case\tsubject\tdigest", *rows]) + "\n")
    run = {"dataset": "mine", "split": "default", "fold": 2, "rule": {**KFOLD, "seed": 5}}
    split_cases(run, tmp_path / "cases.tsv", tmp_path / "new/split.json")
    result = read_split(tmp_path / "new/split.json")
    assert sizes(result) == (12, 6, 6)
    assert all(len(case) == 3 for case in result["test"])
    assert result == split([(f"{i:03d}", f"{i:03d}") for i in range(24)], 2, **KFOLD, seed=5)


@pytest.mark.parametrize("text", [None, "id\tsubject\na\tb\n"])
def test_from_a_table_that_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "cases.tsv").write_text(text)
    run = {"dataset": "mine", "split": "default", "fold": 0, "rule": KFOLD}
    with pytest.raises(DataError, match=r"cases\.tsv: not readable as a table of cases"):
        split_cases(run, tmp_path / "cases.tsv", tmp_path / "split.json")
