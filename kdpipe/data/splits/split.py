"""Train, validation and test cases, split by patient.

All of a patient's cases go to one part. The split is a function of the set of cases and of the
rule, whatever order the cases come in.
"""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from kdpipe.atomic import write_json
from kdpipe.cards import Waiver
from kdpipe.data.checks.findings import waive
from kdpipe.data.checks.leakage import check_split, read_cases
from kdpipe.data.manifest import check_case_name
from kdpipe.data.splits._rules import PARTS, Parts, Row, apply_rule
from kdpipe.errors import ConfigError, DataError
from kdpipe.provenance import digest, file_digest
from kdpipe.splits import ExplicitSplit, Split, n_folds

log = logging.getLogger(__name__)
_STRUCTURE = "voxels_"
"""How the columns of the table of cases begin that say how much of a structure a case has."""


def split_cases(
    run: Mapping[str, Any], cases: Path, out: Path, integrity: Path | None = None
) -> None:
    """Split the cases of a table and write the result.

    Args:
        run: `dataset`, `fold` and `rule`, a split protocol of the card, and the card's `waivers`
            of findings; for a rule that is imported also `file`, its `path` and `sha256`.
        cases: TSV with columns `case` and `subject`, and `part` and `voxels_<structure>` for the
            rules that look at folders or structures.
        out: JSON to write, see `make_split`.
        integrity: ``integrity.json`` of the preparation; None: images are not compared.

    Raises:
        ConfigError, DataError: as `make_split`; DataError also for an unreadable table, an
            imported file that is not the one the run was planned with, an image that is in two
            parts under two names, or a structure that no training case has.
    """
    rule: Split = TypeAdapter(Split).validate_python(run["rule"])
    file = _imported_file(run["file"]) if "file" in run else None
    rows = _read_rows(cases)
    split = make_split(rows, rule, run["fold"], run["dataset"], file)
    left_out = len(rows) - len(set().union(*(split[part] for part in PARTS)))
    counts = ", ".join(f"{len(split[part])} {part}" for part in PARTS)
    log.info("%s: %s, %d left out", run["dataset"], counts, left_out)
    if integrity is not None:
        waivers = [Waiver.model_validate(waiver) for waiver in run.get("waivers", ())]
        _check_leaks(split, integrity, run["dataset"], waivers)
    write_split(out, split)


def _check_leaks(
    split: Mapping[str, Any], integrity: Path, dataset: str, waivers: Sequence[Waiver]
) -> None:
    facts = read_cases(integrity)
    structures = sorted({name for case in facts.values() for name in case["structures"]})
    findings = waive(check_split(split, facts, structures), waivers)
    if found := [finding for finding in findings if finding.stops]:
        lines = "".join(f"\n  {finding}" for finding in found)
        raise DataError(f"data set {dataset!r}: the split leaks or lacks something:{lines}")


def make_split(
    rows: Sequence[Row], split: Split, fold: int, dataset: str, file: Path | None = None
) -> dict[str, Any]:
    """Split cases by patient.

    Args:
        rows: the cases, in any order.
        split: the rule. `fractions` are of the patients. `fixed_counts` are of the cases; where
            patients have several they are met as nearly as whole patients allow, and cases
            beyond the sum are left out. `kfold` deals the patients out to the folds.
        fold: of a rule with folds; 0 for the others.
        dataset: its name, for messages.
        file: that an imported split is read from.

    Returns:
        Sorted case ids `train`, `val`, `test`; `fold`; `rule`; `selects_on_test`, whether val
        and test are the same; `sha256` of the three lists.

    Raises:
        ConfigError: for a fold that the rule does not have.
        DataError: if there are too few cases, a part is empty, a case id is given twice or is
            unknown, or a patient is in two parts.
    """
    _check_input(rows, split, fold, dataset)
    lists = set(PARTS) if isinstance(split, ExplicitSplit) else set()
    rule = split.model_dump(mode="json", exclude={"note", *lists})
    try:
        parts = apply_rule(sorted(rows), split, fold, file)
    except DataError as error:
        raise DataError(f"data set {dataset!r}: {error}") from None
    parts = {part: sorted(parts[part]) for part in PARTS}
    for part, members in parts.items():
        if not members:
            raise DataError(
                f"data set {dataset!r}: {part} is empty with {len(rows)} cases and the rule "
                f"{rule}; add cases or change the split in the card"
            )
    same = split.selects_on_test
    _check_disjoint(parts, same, f"data set {dataset!r}, {split.kind} split")
    _check_patients(parts, same, {row.case: row.subject for row in rows}, dataset)
    results = {"fold": fold, "rule": rule, "selects_on_test": same, "sha256": digest(parts)}
    return parts | results


def _check_input(rows: Sequence[Row], split: Split, fold: int, dataset: str) -> None:
    if repeated := [case for case, n in Counter(row.case for row in rows).items() if n > 1]:
        raise DataError(f"data set {dataset!r}: case id {repeated[0]!r} occurs twice; rename one")
    count = n_folds(split)
    if not 0 <= fold < count:
        raise ConfigError(
            f"data set {dataset!r}: a {split.kind} split has folds 0 to {count - 1}, not {fold}"
        )


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
    for case in chain.from_iterable(parts.values()):
        check_case_name(case)
    _check_disjoint(parts, bool(split.get("selects_on_test")), str(path))
    if digest(parts) != stored:
        raise DataError(
            f"{path}: its lists do not fit its sha256, so it was edited; {mend}. A split of your "
            "own goes into the card as kind: explicit"
        )
    return split


def _read_rows(cases: Path) -> list[Row]:
    try:
        with cases.open(encoding="utf-8", newline="") as stream:
            return [_row(line) for line in csv.DictReader(stream, delimiter="\t")]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{cases}: not readable as a table of cases ({error}); delete it and run again"
        ) from None


def _row(line: Mapping[str, str]) -> Row:
    found = {
        name.removeprefix(_STRUCTURE)
        for name, voxels in line.items()
        if name.startswith(_STRUCTURE) and int(voxels) > 0
    }
    return Row(line["case"], line["subject"], line.get("part", ""), frozenset(found))


def _imported_file(given: Mapping[str, str]) -> Path:
    """Return the path of an imported split after a look at its content."""
    path = Path(given["path"])
    try:
        same = file_digest(path) == given["sha256"]
    except OSError as error:
        raise DataError(f"{path}: not readable ({error}); restore it") from None
    if not same:
        raise DataError(f"{path}: has changed since this run was planned; run snakemake again")
    return path


def _distinct(parts: Mapping[str, Sequence[str]], selects_on_test: bool) -> list[str]:
    """Return the parts that must have nothing in common."""
    if selects_on_test and parts["val"] == parts["test"]:
        return ["train", "val"]
    return list(PARTS)


def _check_disjoint(parts: Mapping[str, Sequence[str]], selects_on_test: bool, where: str) -> None:
    seen: dict[str, str] = {}
    for part in _distinct(parts, selects_on_test):
        for case in parts[part]:
            if case in seen:
                raise DataError(
                    f"{where}: case {case!r} is in {seen[case]} and in {part}; keep it in one"
                )
            seen[case] = part


def _check_patients(
    parts: Mapping[str, Sequence[str]],
    selects_on_test: bool,
    subject_of: Mapping[str, str],
    dataset: str,
) -> None:
    seen: dict[str, str] = {}
    for part in _distinct(parts, selects_on_test):
        for case in parts[part]:
            first = seen.setdefault(subject_of[case], part)
            if first != part:
                raise DataError(
                    f"data set {dataset!r}: patient {subject_of[case]!r} has cases in {first} and "
                    f"in {part}; put them all into one part"
                )
