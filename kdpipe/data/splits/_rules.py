"""What each rule of `kdpipe.splits` makes of the cases of a data set."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kdpipe.data.splits._files import read_monai, read_nnunet
from kdpipe.errors import DataError
from kdpipe.sources import expand_ids
from kdpipe.splits import (
    CountsSplit,
    EverySplit,
    ExplicitSplit,
    FoldersSplit,
    FractionsSplit,
    ImportedSplit,
    KFoldSplit,
    Split,
)

PARTS = ("train", "val", "test")
Parts = dict[str, list[str]]


class Row(NamedTuple):
    """A case, as a split sees it: its patient, its folder's part and the structures it has."""

    case: str
    subject: str
    part: str = ""
    structures: frozenset[str] = frozenset()


def apply_rule(rows: Sequence[Row], rule: Split, fold: int, file: Path | None) -> Parts:
    """Return the case ids of each part, in any order.

    Args:
        rows: the cases, sorted by id.
        rule: see `kdpipe.splits`.
        fold: that is wanted, of a rule that has folds.
        file: that an imported split is read from.

    Raises:
        DataError: if there are too few cases, or the rule names what does not exist.
    """
    rows = _without(rows, rule)
    if isinstance(rule, FractionsSplit):
        parts = _by_fractions(rows, rule)
    elif isinstance(rule, CountsSplit):
        parts = _by_counts(rows, rule)
    elif isinstance(rule, KFoldSplit):
        parts = _by_folds(rows, rule, fold)
    elif isinstance(rule, ExplicitSplit):
        parts = _explicit(rows, rule)
    elif isinstance(rule, FoldersSplit):
        parts = _by_folders(rows, rule)
    elif isinstance(rule, EverySplit):
        val = [row.case for row in rows][rule.offset :: rule.n]
        parts = {"train": _others(rows, val), "val": val}
    else:
        parts = _imported(rows, rule, fold, file)
    if rule.selects_on_test:
        parts["test"] = list(parts["val"])
    return parts


def _without(rows: Sequence[Row], rule: Split) -> list[Row]:
    """Leave the excluded cases out. A range may have holes, but something must be in it.

    Of lists that somebody else wrote, those cases may be excluded that are not there.
    """
    known, out = {row.case for row in rows}, set[str]()
    for item in rule.exclude:
        ids = known.intersection(_expanded((item,), known))
        if not ids and not isinstance(rule, ExplicitSplit | ImportedSplit):
            raise DataError(f"'exclude' names {item!r}, which does not exist; take it out")
        out |= ids
    return [row for row in rows if row.case not in out]


def _expanded(items: Iterable[str], known: Collection[str]) -> list[str]:
    """Return ids with ranges written out; an id that only looks like a range is kept."""
    return [case for item in items for case in ([item] if item in known else expand_ids((item,)))]


def _by_fractions(rows: Sequence[Row], rule: FractionsSplit) -> Parts:
    groups = _shuffled_patients(rows, rule.seed)
    n_test, n_val = (max(1, round(share * len(groups))) for share in (rule.test, rule.val))
    order = list(groups.values())
    return {
        "test": _flat(order[:n_test]),
        "val": _flat(order[n_test : n_test + n_val]),
        "train": _flat(order[n_test + n_val :]),
    }


def _by_counts(rows: Sequence[Row], rule: CountsSplit) -> Parts:
    wanted = rule.train + rule.val + rule.test
    if len(rows) < wanted:
        raise DataError(
            f"the split needs {wanted} cases ({rule.train} train, {rule.val} val, {rule.test} "
            f"test), there are {len(rows)}; a split of kind `fractions` fits any number"
        )
    rest = list(_shuffled_patients(rows, rule.seed).values())
    return {part: _take(rest, getattr(rule, part)) for part in ("test", "val", "train")}


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


def _by_folds(rows: Sequence[Row], rule: KFoldSplit, fold: int) -> Parts:
    groups = _shuffled_patients(rows, rule.seed)
    if len(groups) < rule.n:
        raise DataError(
            f"{rule.n} folds need as many patients, there are {len(groups)}; use fewer folds"
        )
    if rule.stratify:
        dealt = _deal_evenly(rows, list(groups), rule.n)
    else:
        dealt = {subject: number % rule.n for number, subject in enumerate(groups)}
    role = {fold: "test", (fold + 1) % rule.n: "val"}
    parts: Parts = {part: [] for part in PARTS}
    for subject, cases in groups.items():
        parts[role.get(dealt[subject], "train")] += cases
    return parts


def _deal_evenly(rows: Sequence[Row], subjects: Sequence[str], n: int) -> dict[str, int]:
    """Return the fold of each patient, such that folds are alike in the structures they have.

    As in iterative stratification (Sechidis et al., ECML PKDD 2011): patients with the rarest
    trait are dealt out first, each to the fold that has the fewest with it. A trait is to have a
    structure or to lack it, whichever is rarer. Folds differ by one patient at most.
    """
    has: dict[str, set[str]] = {subject: set() for subject in subjects}
    for row in rows:
        has[row.subject] |= row.structures
    traits = []
    for structure in sorted(set().union(*has.values())):
        having = {subject for subject in subjects if structure in has[subject]}
        traits.append(min(having, set(subjects) - having, key=len))
    dealt: dict[str, int] = {}
    while waiting := [subject for subject in subjects if subject not in dealt]:
        common = [(len(trait.intersection(waiting)), trait) for trait in traits]
        _, rarest = min(
            (pair for pair in common if pair[0]), key=lambda pair: pair[0], default=(0, set())
        )
        for subject in waiting:
            if subject in rarest or not rarest:
                dealt[subject] = _emptiest(dealt, rarest, len(subjects), n)
    return dealt


def _emptiest(dealt: Mapping[str, int], trait: Collection[str], total: int, n: int) -> int:
    """Return the fold with the fewest holders of a trait, then patients, that is not full."""
    sizes = [list(dealt.values()).count(fold) for fold in range(n)]
    held = [sum(dealt[s] == fold for s in trait if s in dealt) for fold in range(n)]
    larger_left = total % n - sum(size > total // n for size in sizes)
    open_folds = [
        fold for fold in range(n) if sizes[fold] < total // n + (1 if larger_left > 0 else 0)
    ]
    return min(open_folds, key=lambda fold: (held[fold], sizes[fold], fold))


def _explicit(rows: Sequence[Row], rule: ExplicitSplit) -> Parts:
    known = {row.case for row in rows}
    lists = {part: getattr(rule, part) for part in PARTS}
    ids = known if rule.by == "case" else {row.subject for row in rows}
    given = {
        part: _expanded(named, ids) for part, named in lists.items() if isinstance(named, tuple)
    }
    given = _known_lists(given, ids, rule, "the split")
    if rule.by == "subject":
        given = {
            part: [row.case for row in rows if row.subject in members]
            for part, members in given.items()
        }
    rest = _others(rows, _flat(given.values()))
    return {part: given.get(part, rest) for part in PARTS}


def _by_folders(rows: Sequence[Row], rule: FoldersSplit) -> Parts:
    folders = {row.part for row in rows} - {""}
    if not folders:
        raise DataError(
            "a split of kind `folders` needs a group 'part' in the card's layout.find, such as "
            "(?P<part>train|test)"
        )

    def within(names: tuple[str, ...]) -> list[Row]:
        if unknown := sorted(set(names) - folders):
            raise DataError(
                f"the split names the folder {unknown[0]!r}, the cases are in {sorted(folders)}"
            )
        return [row for row in rows if row.part in names]

    train = within(rule.train)
    parts = {"test": [row.case for row in within(rule.test)]} if rule.test != "val" else {}
    if isinstance(rule.val, tuple):
        return parts | {
            part: [row.case for row in within(getattr(rule, part))] for part in ("train", "val")
        }
    return parts | _set_aside(train, rule.val, rule.seed)


def _imported(rows: Sequence[Row], rule: ImportedSplit, fold: int, file: Path | None) -> Parts:
    assert file is not None, "split_cases hands it over"
    known = {row.case for row in rows}
    if rule.kind == "nnunet":
        lists = read_nnunet(file, fold)
    else:
        lists = read_monai(file, fold if rule.n_folds > 1 else None, known)
    lists = _known_lists(lists, known, rule, str(file))
    if "test" in lists:
        return lists
    train = [row for row in rows if row.case in set(lists["train"])]
    return _set_aside(train, rule.val, rule.seed) | {"test": lists["val"]}


def _set_aside(rows: Sequence[Row], share: float, seed: int) -> Parts:
    """Divide training cases into ``train`` and ``val``, by patient."""
    groups = list(_shuffled_patients(rows, seed).values())
    n_val = max(1, round(share * len(groups)))
    return {"val": _flat(groups[:n_val]), "train": _flat(groups[n_val:])}


def _shuffled_patients(rows: Sequence[Row], seed: int) -> dict[str, list[str]]:
    """Return the cases of each patient, the patients in an order that the seed decides."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(row.subject, []).append(row.case)
    subjects = sorted(groups)
    # random.Random, because numpy may change the streams of its generators between versions.
    random.Random(seed).shuffle(subjects)
    return {subject: groups[subject] for subject in subjects}


def _others(rows: Sequence[Row], cases: Collection[str]) -> list[str]:
    taken = set(cases)
    return [row.case for row in rows if row.case not in taken]


def _known_lists(lists: Parts, known: Collection[str], rule: Split, where: str) -> Parts:
    """Return the lists without excluded cases; DataError if others do not exist."""
    excluded = set(_expanded(rule.exclude, known))
    lists = {part: [case for case in ids if case not in excluded] for part, ids in lists.items()}
    if unknown := sorted(set(_flat(lists.values())) - set(known)):
        raise DataError(
            f"{where} names {len(unknown)} cases that do not exist, such as {unknown[0]!r}; mend "
            "the ids, add the files, or name them under 'exclude'"
        )
    return lists


def _flat(groups: Iterable[Sequence[str]]) -> list[str]:
    return [case for group in groups for case in group]
