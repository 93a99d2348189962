"""Divide the cases of a data set into train, val and test, by patient."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter

from kdpipe.atomic import write_json
from kdpipe.cards import CountsSplit, ExplicitSplit, FractionsSplit, KFoldSplit, Split
from kdpipe.errors import ConfigError, DataError
from kdpipe.provenance import digest

PARTS = ("train", "val", "test")
Parts = dict[str, list[str]]


def split_cases(run: dict[str, Any], cases: Path, out: Path) -> None:
    """Split the cases of a table (columns ``case`` and ``subject``) and write ``split.json``.

    Args:
        run: ``dataset``, ``split`` (a name), ``fold`` and ``rule`` (one of the card's splits).
        cases: table of prepared cases (TSV).
        out: file to write: the parts, sorted, and a digest of who is in which.

    Raises:
        DataError: too few cases, an unknown case, or a patient in two parts.
    """
    table = pd.read_csv(cases, sep="\t", dtype=str, keep_default_na=False)
    subjects = dict(zip(table["case"], table["subject"], strict=True))
    rule: Split = TypeAdapter(Split).validate_python(run["rule"])
    parts = make_split(subjects, rule, run["fold"], f"{run['dataset']}, split {run['split']}")
    write_json(out, {**parts, "fold": run["fold"], "rule": run["rule"], "sha256": digest(parts)})


def make_split(subjects: Mapping[str, str], rule: Split, fold: int = 0, where: str = "") -> Parts:
    """Return the case ids of each part, sorted. The order of `subjects` does not matter.

    Args:
        subjects: case -> patient.
        rule: one of the card's splits.
        fold: for k-fold splits.
        where: what the messages call it.

    Raises:
        ConfigError: there is no such fold.
        DataError: too few cases, an unknown case, or a patient in two parts.
    """
    if isinstance(rule, ExplicitSplit):
        parts = {part: sorted(getattr(rule, part)) for part in PARTS}
        unknown = sorted({case for ids in parts.values() for case in ids} - set(subjects))
        if unknown:
            raise DataError(f"{where}: no such cases: {', '.join(unknown)}; mend the card's split")
    else:
        groups = _shuffled_groups(subjects, rule.seed)
        parts = _assign(groups, rule, fold, where)
    _check(parts, subjects, where)
    return parts


def read_split(path: Path) -> dict[str, Any]:
    """Read ``split.json`` and check that no case is in two parts.

    Raises:
        DataError: it is not readable, lacks a part, or a case is in two parts.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        parts = {part: content[part] for part in PARTS}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not a split ({error!r}); run the stage split again") from None
    cases = {case: case for ids in parts.values() for case in ids}
    _check(parts, cases, str(path))
    return content


def _shuffled_groups(subjects: Mapping[str, str], seed: int) -> list[list[str]]:
    """Cases grouped by patient; patients in an order that depends on the seed alone."""
    groups: dict[str, list[str]] = {}
    for case in sorted(subjects):
        groups.setdefault(subjects[case], []).append(case)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    return [groups[subject] for subject in order]


def _assign(
    groups: Sequence[list[str]],
    rule: FractionsSplit | CountsSplit | KFoldSplit,
    fold: int,
    where: str,
) -> Parts:
    total = sum(map(len, groups))
    if isinstance(rule, KFoldSplit):
        return _kfold(groups, rule.n, fold, where)
    if isinstance(rule, FractionsSplit):
        if rule.val + rule.test >= 1:
            raise ConfigError(
                f"{where}: val {rule.val} and test {rule.test} leave nothing to train"
            )
        counts = {part: max(1, round(getattr(rule, part) * total)) for part in ("test", "val")}
    else:
        counts = {"test": rule.test, "val": rule.val}
        wanted = rule.train + rule.val + rule.test
        if wanted > total:
            raise DataError(
                f"{where}: wants {rule.train} + {rule.val} + {rule.test} = {wanted} cases, there "
                f"are {total}; take a split of kind 'fractions'"
            )
    return _fill(groups, counts, rule.train if isinstance(rule, CountsSplit) else total)


def _fill(groups: Sequence[list[str]], counts: Mapping[str, int], train: int) -> Parts:
    """Give whole patients to test, then val, while they fit into the count; then to train."""
    parts: Parts = {part: [] for part in PARTS}
    limits = {**counts, "train": train}
    for group in groups:
        for part, limit in limits.items():
            if len(parts[part]) + len(group) <= limit:
                parts[part] += group
                break
    return {part: sorted(ids) for part, ids in parts.items()}


def _kfold(groups: Sequence[list[str]], n: int, fold: int, where: str) -> Parts:
    if not 0 <= fold < n:
        raise ConfigError(f"{where}: folds are 0 to {n - 1}, not {fold}")
    roles = {fold: "test", (fold + 1) % n: "val"}
    parts: Parts = {part: [] for part in PARTS}
    for number, group in enumerate(groups):
        parts[roles.get(number % n, "train")] += group
    return {part: sorted(ids) for part, ids in parts.items()}


def _check(parts: Parts, subjects: Mapping[str, str], where: str) -> None:
    owner: dict[str, tuple[str, str]] = {}
    for part, cases in parts.items():
        if not cases:
            raise DataError(f"{where}: no case is left for {part}; {len(subjects)} cases in all")
        for case in cases:
            other, first = owner.setdefault(subjects[case], (part, case))
            if other != part:
                raise DataError(
                    f"{where}: patient {subjects[case]!r} is in two parts, "
                    f"{other} (case {first!r}) and {part} (case {case!r}); "
                    "a patient's cases belong together"
                )
