"""Splits keep patients together, do not depend on the order of files, and refuse what is unfair."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from kdpipe.data.splits._rules import Row
from kdpipe.data.splits.split import PARTS, make_split, read_split, split_cases, write_split
from kdpipe.errors import ConfigError, DataError
from kdpipe.provenance import file_digest
from kdpipe.splits import ExplicitSplit, Split

SINGLE = [(f"c{i:02d}", f"p{i:02d}") for i in range(24)]
GROUPED = [(f"p{i:02d}_{visit}", f"p{i:02d}") for i in range(20) for visit in range(1 + i % 4)]
FRACTIONS = {"kind": "fractions", "val": 0.2, "test": 0.25}
COUNTS = {"kind": "fixed_counts", "train": 14, "val": 4, "test": 6}
KFOLD = {"kind": "kfold", "n": 4}


def rule(**fields: Any) -> Split:
    return TypeAdapter(Split).validate_python(fields)


def split(
    cases: list[tuple], fold: int = 0, *, file_: Path | None = None, **fields: Any
) -> dict[str, Any]:
    return make_split([Row(*case) for case in cases], rule(**fields), fold, "mine", file_)


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
    assert result["sha256"] == "9c31a012c0f56fe08ed74ba6ffa2509921ace9e6b593dab8be594e9445e51bd9"
    assert result["rule"] == {**COUNTS, "seed": 0, "exclude": []}
    assert result["selects_on_test"] is False
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
    assert result["rule"] == {"kind": "explicit", "by": "case", "exclude": []}


def test_an_explicit_split_may_name_patients() -> None:
    rows = [Row(f"{patient}_{visit}", patient) for patient in "abcd" for visit in (1, 2)]
    rule = ExplicitSplit(kind="explicit", by="subject", train="rest", val=("b",), test=("d",))
    result = make_split(rows, rule, 0, "hearts")
    assert result["train"] == ["a_1", "a_2", "c_1", "c_2"]
    assert (result["val"], result["test"]) == (["b_1", "b_2"], ["d_1", "d_2"])


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
        (SINGLE, explicit("c01", "c01", "c03"), 0, ValueError, "'c01' is in train and in val"),
        (SINGLE, explicit("c01 c01", "c02", "c03"), 0, DataError, "in train and in train"),
        (SINGLE, explicit("c01", "", "c03"), 0, DataError, "val is empty"),
        (GROUPED, explicit("p01_0", "p02_0", "p01_1"), 0, DataError,
         "patient 'p01' has cases in train and in test"),
    ],
)  # fmt: skip
def test_wrong_splits(cases: list, fields: dict, fold: int, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        split(cases, fold=fold, **fields)


NUMBERED = [(f"{i:04d}", f"{i:04d}") for i in range(1, 21)]


def numbers(*ranges: tuple[int, int]) -> list[str]:
    return [f"{i:04d}" for first, last in ranges for i in range(first, last + 1)]


def test_ranges_and_the_rest() -> None:
    rule = {
        "kind": "explicit",
        "train": "rest",
        "val": ["0001-0003"],
        "test": ["0008", "0019-0020"],
    }
    result = split(NUMBERED, **rule, exclude=["0010-0012"])
    assert result["val"] == numbers((1, 3))
    assert result["test"] == ["0008", "0019", "0020"]
    assert result["train"] == numbers((4, 7), (9, 9), (13, 18))
    rule |= {"train": ["0004-0007"], "test": "rest"}
    assert split(NUMBERED, **rule)["test"] == numbers((8, 20))


def test_excluded_cases_are_in_no_part() -> None:
    result = split(NUMBERED, **FRACTIONS, exclude=["0003", "0015-0099"])
    assert sorted(sum((result[part] for part in PARTS), [])) == numbers((1, 2), (4, 14))
    listed = {"kind": "explicit", "train": ["0001-0004"], "val": ["0005"], "test": ["0006-0021"]}
    with pytest.raises(DataError, match=r"1 cases that do not exist, such as '0021'.*'exclude'"):
        split(NUMBERED, **listed)
    assert split(NUMBERED, **listed, exclude=["0021", "0001"])["train"] == numbers((2, 4))


@pytest.mark.parametrize("exclude", ["0033", "0050-0060"])
def test_what_is_excluded_must_be_there(exclude: str) -> None:
    with pytest.raises(DataError, match=f"'mine'.*'exclude' names '{exclude}'"):
        split(NUMBERED, **FRACTIONS, exclude=[exclude])


def test_validation_cases_may_be_the_test_cases_where_a_rule_says_so(tmp_path: Path) -> None:
    rule = {"kind": "explicit", "train": "rest", "val": ["0001-0003"], "test": "val"}
    result = split(NUMBERED, **rule)
    assert result["test"] == result["val"] == numbers((1, 3))
    assert result["selects_on_test"] is True
    write_split(tmp_path / "split.json", result)
    assert read_split(tmp_path / "split.json") == result
    (tmp_path / "split.json").write_text(json.dumps(result | {"selects_on_test": False}))
    with pytest.raises(DataError, match="'0001' is in val and in test"):
        read_split(tmp_path / "split.json")


def test_every_fifth_case() -> None:
    """ACF-BCKD's lists: `sorted(cases)[4::5]` is the validation set, and the test set."""
    result = split(list(reversed(NUMBERED)), kind="every")
    assert result["val"] == result["test"] == ["0005", "0010", "0015", "0020"]
    assert len(result["train"]) == 16
    assert result["selects_on_test"] is True
    with pytest.raises(DataError, match="patient 'p01' has cases in train and in val"):
        split([("p01_0", "p01"), ("p01_1", "p01"), ("p02_0", "p02")], kind="every", n=3, offset=1)


FOLDERS = [
    (f"p{i:02d}_{visit}", f"p{i:02d}", "training" if i < 15 else "testing" if i < 18 else "extra")
    for i in range(20)
    for visit in (0, 1)
]


def test_folders() -> None:
    rule = {"kind": "folders", "train": ["training"], "test": ["testing"]}
    result = split(FOLDERS, **rule, val=0.2)
    assert sizes(result) == (24, 6, 6)
    assert result["test"] == [f"p{i}_{visit}" for i in (15, 16, 17) for visit in (0, 1)]
    assert len({case[:3] for case in result["val"]}) == 3
    assert result != split(FOLDERS, **rule, val=0.2, seed=1)
    named = split(FOLDERS, **rule, val=["extra"])
    assert named["val"] == ["p18_0", "p18_1", "p19_0", "p19_1"]
    assert named["train"][:2] == ["p00_0", "p00_1"]
    as_published = split(FOLDERS, **rule | {"test": "val"}, val=["testing"])
    assert as_published["test"] == as_published["val"] == result["test"]


@pytest.mark.parametrize(
    ("cases", "fields", "error", "message"),
    [
        (SINGLE, {"val": 0.2}, DataError, r"needs a group 'part' in the card's layout.find"),
        (FOLDERS, {"val": ["vali"]}, DataError, r"folder 'vali', the cases are in \['extra'"),
        (FOLDERS, {"val": ["testing"]}, ValueError, "'testing' is named twice"),
        (FOLDERS, {"val": 1.5}, ValueError, "less than 1"),
    ],
)
def test_wrong_folders(cases: list, fields: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        split(cases, kind="folders", train=["training"], test=["testing"], **fields)


def with_structures(n: int, seed: int) -> list[tuple[str, str, str, frozenset[str]]]:
    """Patients of two cases; a common, a rarer and a rare structure."""
    draw = random.Random(seed)
    shares = {"liver": 0.9, "spleen": 0.5, "tumour": 0.15}
    return [
        (f"p{i:02d}_{visit}", f"p{i:02d}", "", found)
        for i in range(n)
        for found in [frozenset(name for name, share in shares.items() if draw.random() < share)]
        for visit in (0, 1)
    ]


@pytest.mark.parametrize("n", [20, 31, 58])
def test_stratified_folds_are_alike(n: int) -> None:
    for seed in range(8):
        cases = with_structures(n, seed)
        folds = [split(cases, k, kind="kfold", n=5, seed=seed, stratify=True) for k in range(5)]
        tested = [fold["test"] for fold in folds]
        assert sorted(sum(tested, [])) == sorted(case for case, *_ in cases)
        patients = [{case[:3] for case in test} for test in tested]
        assert max(map(len, patients)) - min(map(len, patients)) <= 1
        assert folds[0]["val"] == tested[1]
        for name in ("liver", "spleen", "tumour"):
            has = {subject for _, subject, _, found in cases if name in found}
            rare = min(len(has), n - len(has))
            counts = [len(has & fold) for fold in patients]
            allowed = 1 if rare <= n // 4 else 2  # rare ones are dealt first, so evenly
            assert max(counts) - min(counts) <= allowed + (n % 5 > 0), (name, counts)


def test_stratified_folds_without_a_difference_are_whole() -> None:
    cases = [(f"c{i}", f"p{i}", "", frozenset({"liver"})) for i in range(11)]
    folds = [split(cases, k, kind="kfold", n=5, stratify=True)["test"] for k in range(5)]
    assert sorted(map(len, folds)) == [2, 2, 2, 2, 3]


def save(file: Path, content: Any) -> Path:
    file.write_text(json.dumps(content))
    return file


def test_folds_of_nnunet(tmp_path: Path) -> None:
    ids = [case for case, _ in GROUPED]
    folds = [
        {
            "train": [c for c in ids if int(c[1:3]) % 5 != k],
            "val": [c for c in ids if int(c[1:3]) % 5 == k],
        }
        for k in range(5)
    ]
    file = save(tmp_path / "splits_final.json", folds)
    result = split(GROUPED, 3, kind="nnunet", file="splits_final.json", val=0.25, file_=file)
    assert result["test"] == sorted(folds[3]["val"])
    assert sorted(result["train"] + result["val"]) == sorted(folds[3]["train"])
    assert len({case[:3] for case in result["val"]}) == 4
    assert result["fold"] == 3


def monai(cases: list[str], **extra: Any) -> list[dict[str, Any]]:
    return [
        {"image": f"imagesTr/{c}.nii.gz", "label": f"labelsTr/{c}.nii.gz", **extra} for c in cases
    ]


def test_lists_of_monai(tmp_path: Path) -> None:
    ids = [case for case, _ in SINGLE]
    content = {
        "training": monai(ids[:16]),
        "validation": monai(ids[16:20]),
        "test": ["imagesTs/x.nii.gz"],
    }
    fields = {"kind": "monai", "file": "dataset.json"}
    result = split(SINGLE, file_=save(tmp_path / "dataset.json", content), **fields)
    assert result["test"] == ids[16:20]
    assert sizes(result) == (14, 2, 4)
    content["test"] = monai(ids[20:])
    result = split(SINGLE, file_=save(tmp_path / "dataset.json", content), **fields)
    assert [result[part] for part in PARTS] == [ids[:16], ids[16:20], ids[20:]]


@pytest.mark.parametrize(
    "image",
    [
        "d/{0}/{0}_flair.nii.gz",
        ["d/{0}/{0}_flair.nii.gz", "d/{0}/{0}_t1.nii.gz"],
        "imagesTr/{0}_0000.nii.gz",
        "/a/b/{0}.mha",
    ],
)
def test_a_data_list_with_folds_names_cases_by_their_files_or_folders(
    tmp_path: Path, image: Any
) -> None:
    def path(case: str) -> Any:
        return image.format(case) if isinstance(image, str) else [i.format(case) for i in image]

    items = [{"image": path(c), "fold": i % 3} for i, (c, _) in enumerate(SINGLE)]
    file = save(tmp_path / "folds.json", {"training": items})
    result = split(SINGLE, 1, kind="monai", file="folds.json", folds=3, file_=file)
    assert result["test"] == [case for case, _ in SINGLE[1::3]]


@pytest.mark.parametrize(
    ("fields", "fold", "content", "message"),
    [
        ({"kind": "nnunet"}, 0, {}, "no splits of nnU-Net"),
        (
            {"kind": "nnunet"},
            4,
            [{"train": ["c00"], "val": ["c01"]}] * 3,
            "has 3 folds, fold 4.*'folds: 3'",
        ),
        (
            {"kind": "nnunet"},
            0,
            [{"train": ["c00", "x"], "val": ["c01"]}],
            "splits.json names 1 cases .* 'x'",
        ),
        (
            {"kind": "nnunet"},
            0,
            [{"train": ["c00", "c01"], "val": ["c01"]}],
            "'c01' is in .* and in test",
        ),
        ({"kind": "monai"}, 0, [], "no data list of MONAI"),
        (
            {"kind": "monai"},
            0,
            {"training": monai(["c00", "c01"])},
            "no list 'validation'.*'folds'",
        ),
        (
            {"kind": "monai", "folds": 2},
            1,
            {"training": monai(["c00"], fold=0)},
            "no item of 'training' has fold 1",
        ),
    ],
)
def test_wrong_imported_splits(
    tmp_path: Path, fields: dict, fold: int, content: Any, message: str
) -> None:
    file = save(tmp_path / "splits.json", content)
    with pytest.raises(DataError, match=message):
        split(SINGLE, fold, file_=file, file="splits.json", **fields)


def test_an_imported_file_that_changed_after_the_plan_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "splits.json", [{"train": ["a", "b"], "val": ["c"]}])
    (tmp_path / "cases.tsv").write_text("case\tsubject\na\ta\nb\tb\nc\tc\n")
    settings = {"kind": "nnunet", "file": "splits.json", "folds": 1}
    given = {"path": str(file), "sha256": file_digest(file)}
    run = {"dataset": "mine", "fold": 0, "rule": settings, "file": given}
    split_cases(run, tmp_path / "cases.tsv", tmp_path / "split.json")
    assert read_split(tmp_path / "split.json")["test"] == ["c"]
    save(file, [{"train": ["a", "c"], "val": ["b"]}])
    with pytest.raises(DataError, match=r"splits.json: has changed since this run was planned"):
        split_cases(run, tmp_path / "cases.tsv", tmp_path / "split.json")


CARD = """
schema_version: 1
id: mine
title: Mine
modality: CT
channels: [CT]
licence: {spdx: CC0-1.0}
access: {mode: local}
labels: {raw: {0: background, 1: liver}}
splits:
  default: {kind: fractions, val: 0.1, test: 0.2, note: ours}
  theirs: {kind: nnunet, file: splits_final.json, folds: 2}
presets: {default: {intensity: {kind: rescale}, patch: [16, 16, 16]}}
"""


def test_the_run_holds_the_digest_of_an_imported_file_and_no_note(tmp_path: Path) -> None:
    from kdpipe.config import load_study
    from kdpipe.plan import Plan
    from kdpipe.runs import run_files

    (tmp_path / "mine.yaml").write_text(CARD)
    entry = {"mine": {"splits": ["default", "theirs"]}}
    study = {"cards": [str(tmp_path)], "datasets": [entry], "teachers": ["unet_tiny"]}
    study |= {"students": ["unet_tiny"], "methods": ["kd"]}
    with pytest.raises(ConfigError, match=r"mine.yaml: .* needs .*splits_final.json, which is not"):
        run_files(Plan(load_study(study)))
    file = save(tmp_path / "splits_final.json", [])
    runs = run_files(Plan(load_study(study)))
    assert "note" not in runs["results/mine/default/fold0/run.json"]["rule"]
    first = runs["results/mine/theirs/fold1/run.json"]
    assert first["file"] == {"path": str(file), "sha256": file_digest(file)}
    save(file, [{}])
    assert run_files(Plan(load_study(study)))["results/mine/theirs/fold1/run.json"] != first


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
    rows = [f"{i:03d}\t{i:03d}\tx\t{i % 2}" for i in range(24)]
    header = "case\tsubject\tdigest\tvoxels_label_1"
    (tmp_path / "cases.tsv").write_text("\n".join([header, *rows]) + "\n")
    run = {"dataset": "mine", "split": "default", "fold": 2, "rule": {**KFOLD, "seed": 5}}
    split_cases(run, tmp_path / "cases.tsv", tmp_path / "new/split.json")
    result = read_split(tmp_path / "new/split.json")
    assert sizes(result) == (12, 6, 6)
    assert all(len(case) == 3 for case in result["test"])
    assert result == split([(f"{i:03d}", f"{i:03d}") for i in range(24)], 2, **KFOLD, seed=5)


def test_structures_and_parts_come_from_the_table(tmp_path: Path) -> None:
    header = "case\tsubject\tpart\tvoxels_label_1\tvoxels_label_2"
    rows = [f"c{i}\tc{i}\t{'ab'[i % 2]}\t{90 * (i < 3)}\t5" for i in range(9)]
    (tmp_path / "cases.tsv").write_text("\n".join([header, *rows]) + "\n")
    rule = {"kind": "kfold", "n": 3, "stratify": True}
    for fold in range(3):
        run = {"dataset": "mine", "fold": fold, "rule": rule}
        split_cases(run, tmp_path / "cases.tsv", tmp_path / "split.json")
        test = read_split(tmp_path / "split.json")["test"]
        assert len({"c0", "c1", "c2"}.intersection(test)) == 1
    run = {"dataset": "mine", "fold": 0}
    rule = {"kind": "folders", "train": ["a"], "val": 0.3, "test": ["b"]}
    split_cases({**run, "rule": rule}, tmp_path / "cases.tsv", tmp_path / "split.json")
    assert read_split(tmp_path / "split.json")["test"] == ["c1", "c3", "c5", "c7"]


@pytest.mark.parametrize("text", [None, "id\tsubject\na\tb\n"])
def test_from_a_table_that_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "cases.tsv").write_text(text)
    run = {"dataset": "mine", "split": "default", "fold": 0, "rule": KFOLD}
    with pytest.raises(DataError, match=r"cases\.tsv: not readable as a table of cases"):
        split_cases(run, tmp_path / "cases.tsv", tmp_path / "split.json")
