"""Train, validation and test cases, split by patient.

All of a patient's cases go to one part. The split is a function of the set of cases and of the
rule, whatever order the cases come in.
"""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from kdpipe.atomic import write_json
from kdpipe.errors import ConfigError, DataError
from kdpipe.provenance import digest
from kdpipe.splits import CountsSplit, ExplicitSplit, FractionsSplit, KFoldSplit, Split

PARTS = ("train", "val", "test")
Parts = dict[str, list[str]]


def split_cases(run: Mapping[str, Any], cases: Path, out: Path) -> None:
    """Split the cases of a table and write the result.

    Args:
        run: `dataset`, `fold` and `rule`, a split protocol of the card.
        cases: TSV with columns `case` and `subject`.
        out: JSON to write, see `make_split`.

    Raises:
        ConfigError, DataError: as `make_split`; DataError also for an unreadable table.
    """
    try:
        with cases.open(encoding="utf-8", newline="") as stream:
            rows = [(row["case"], row["subject"]) for row in csv.DictReader(stream, delimiter="\t")]
    except (OSError, KeyError) as error:
        raise DataError(
            f"{cases}: not readable as a table of cases ({error}); delete it and run again"
        ) from None
    rule: Split = TypeAdapter(Split).validate_python(run["rule"])
    write_split(out, make_split(rows, rule, run["fold"], run["dataset"]))


def make_split(
    cases: Sequence[tuple[str, str]], split: Split, fold: int, dataset: str
) -> dict[str, Any]:
    """Split cases by patient.

    Args:
        cases: (case id, patient id) of each case, in any order.
        split: the rule. `fractions` are of the patients. `fixed_counts` are of the cases; where
            patients have several they are met as nearly as whole patients allow, and cases
            beyond the sum are left out. `kfold` deals the patients out to the folds.
        fold: test fold of `kfold`; 0 for the others.
        dataset: its name, for messages.

    Returns:
        Sorted case ids `train`, `val`, `test`; `fold`; `rule`; `sha256` of the three lists.

    Raises:
        ConfigError: for a fold that the rule does not have.
        DataError: if there are too few cases, a part is empty, a case id is given twice or is
            unknown, or a patient is in two parts.
    """
    if repeated := [case for case, n in Counter(case for case, _ in cases).items() if n > 1]:
        raise DataError(f"data set {dataset!r}: case id {repeated[0]!r} occurs twice; rename one")
    n_folds = split.n if isinstance(split, KFoldSplit) else 1
    if not 0 <= fold < n_folds:
        raise ConfigError(
            f"data set {dataset!r}: a {split.kind} split has folds 0 to {n_folds - 1}, not {fold}"
        )
    rule = split.model_dump(mode="json")
    if isinstance(split, ExplicitSplit):
        parts = _explicit(cases, split, dataset)
        rule = {"kind": "explicit"}
    else:
        parts = _random(cases, split, fold, dataset)
    parts = {part: sorted(parts[part]) for part in PARTS}
    for part, members in parts.items():
        if not members:
            raise DataError(
                f"data set {dataset!r}: {part} is empty with {len(cases)} cases and the rule "
                f"{rule}; add cases or change the split in the card"
            )
    _check_patients(parts, dict(cases), dataset)
    return {**parts, "fold": fold, "rule": rule, "sha256": digest(parts)}


def write_split(path: Path, split: Mapping[str, Any]) -> None:
    """Write a split as JSON."""
    write_json(path, dict(split))


def read_split(path: Path) -> dict[str, Any]:
    """Read a split and check it again.

    Raises:
        DataError: if it is unreadable, a case is in two parts, or the lists were changed after
            they were written.
    """
    mend = "delete it and run again"
    try:
        split: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        parts: Parts = {part: list(split[part]) for part in PARTS}
        stored = split["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not readable as a split ({error}); {mend}") from None
    _check_disjoint(parts, str(path))
    if digest(parts) != stored:
        raise DataError(
            f"{path}: its lists do not fit its sha256, so it was edited; {mend}. A split of your "
            "own goes into the card as kind: explicit"
        )
    return split


def _random(
    cases: Sequence[tuple[str, str]],
    split: FractionsSplit | CountsSplit | KFoldSplit,
    fold: int,
    dataset: str,
) -> Parts:
    groups: dict[str, list[str]] = {}
    for case, subject in sorted(cases):
        groups.setdefault(subject, []).append(case)
    subjects = sorted(groups)
    # random.Random, because numpy may change the streams of its generators between versions.
    random.Random(split.seed).shuffle(subjects)
    if isinstance(split, CountsSplit):
        return _by_counts([groups[subject] for subject in subjects], split, dataset)
    if isinstance(split, KFoldSplit):
        if len(subjects) < split.n:
            raise DataError(
                f"data set {dataset!r}: {split.n} folds need as many patients, there are "
                f"{len(subjects)}; use fewer folds"
            )
        role = {fold: "test", (fold + 1) % split.n: "val"}
        dealt = [role.get(i % split.n, "train") for i in range(len(subjects))]
    else:
        n_test, n_val = (max(1, round(f * len(subjects))) for f in (split.test, split.val))
        dealt = ["test"] * n_test + ["val"] * n_val
        dealt += ["train"] * (len(subjects) - len(dealt))
    chosen: Parts = {part: [] for part in PARTS}
    for subject, part in zip(subjects, dealt, strict=False):
        chosen[part] += groups[subject]
    return chosen


def _by_counts(groups: list[list[str]], split: CountsSplit, dataset: str) -> Parts:
    n_cases, wanted = sum(map(len, groups)), split.train + split.val + split.test
    if n_cases < wanted:
        raise DataError(
            f"data set {dataset!r}: the split needs {wanted} cases ({split.train} train, "
            f"{split.val} val, {split.test} test), there are {n_cases}; a split of kind "
            "`fractions` fits any number"
        )
    rest = list(groups)
    return {part: _take(rest, getattr(split, part)) for part in ("test", "val", "train")}


def _take(groups: list[list[str]], count: int) -> list[str]:
    """Take whole patients out of `groups` until there are `count` cases, or as nearly as can be."""
    taken: list[str] = []
    for group in list(groups):
        if len(taken) + len(group) <= count:
            taken += group
            groups.remove(group)
    if groups and len(taken) < count:
        smallest = min(groups, key=len)
        if not taken or len(taken) + len(smallest) - count < count - len(taken):
            taken += smallest
            groups.remove(smallest)
    return taken


def _explicit(
    cases: Sequence[tuple[str, str]], split: ExplicitSplit, dataset: str
) -> dict[str, list[str]]:
    parts: Parts = {part: list(getattr(split, part)) for part in PARTS}
    known = {case for case, _ in cases}
    if unknown := sorted({case for members in parts.values() for case in members} - known):
        raise DataError(
            f"data set {dataset!r}: its explicit split names {len(unknown)} cases that do not "
            f"exist, such as {unknown[0]!r}; mend the ids in the card or add the files"
        )
    _check_disjoint(parts, f"data set {dataset!r}, explicit split")
    return parts


def _check_disjoint(parts: Mapping[str, Sequence[str]], where: str) -> None:
    seen: dict[str, str] = {}
    for part, members in parts.items():
        for case in members:
            if case in seen:
                raise DataError(
                    f"{where}: case {case!r} is in {seen[case]} and in {part}; keep it in one"
                )
            seen[case] = part


def _check_patients(
    parts: Mapping[str, Sequence[str]], subject_of: Mapping[str, str], dataset: str
) -> None:
    seen: dict[str, str] = {}
    for part, members in parts.items():
        for case in members:
            first = seen.setdefault(subject_of[case], part)
            if first != part:
                raise DataError(
                    f"data set {dataset!r}: patient {subject_of[case]!r} has cases in {first} and "
                    f"in {part}; put them all into one part"
                )
