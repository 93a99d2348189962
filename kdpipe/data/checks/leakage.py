"""The same image in two cases: within a data set, across the parts of a split, across data sets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kdpipe.data.checks.findings import Finding
from kdpipe.data.checks.hashes import near_pairs
from kdpipe.errors import DataError

if TYPE_CHECKING:  # it reads images, which a split does not
    from kdpipe.data.checks.case_facts import Facts

PARTS = ("train", "val", "test")


class Pair(NamedTuple):
    """Two cases with the same image.

    Attributes:
        first, second: their ids.
        how: ``exact`` for equal voxels, ``near`` for equal but for window, rounding or compression.
        distance: of the rough hashes, 0 for ``exact``.
    """

    first: str
    second: str
    how: str
    distance: float

    def __str__(self) -> str:
        if self.how == "exact":
            return "have the same voxels"
        return f"look the same (distance {self.distance:.3f} of their rough hashes)"


def find_pairs(cases: Mapping[str, Facts], others: Mapping[str, Facts] | None = None) -> list[Pair]:
    """Find cases that share an image, within one data set or across two.

    Args:
        cases: id -> `subject`, `exact` and `rough`, see `read_cases`.
        others: of another data set; None: pairs within `cases`.

    Returns:
        Pairs by their ids. Images of one patient that only look alike are left out within a data
        set: slices side by side do, and they are split together anyway.
    """
    first, second = sorted(cases), sorted(cases if others is None else others)
    right = cases if others is None else others
    holders: dict[str, list[str]] = {}
    for case in second:
        for exact in dict.fromkeys(right[case]["exact"]):
            holders.setdefault(exact, []).append(case)
    pairs = {
        (case, other): Pair(case, other, "exact", 0.0)
        for case in first
        for exact in cases[case]["exact"]
        for other in holders.get(exact, ())
        if others is not None or case < other
    }
    rough = [cases[case]["rough"] for case in first]
    rest = None if others is None else [right[case]["rough"] for case in second]
    for i, j, distance in near_pairs(rough, rest):
        case, other = first[i], second[j]
        same = others is None and cases[case]["subject"] == right[other]["subject"]
        if not same:
            pairs.setdefault((case, other), Pair(case, other, "near", distance))
    return [pairs[key] for key in sorted(pairs)]


def check_duplicates(cases: Mapping[str, Facts]) -> Iterator[Finding]:
    """Find duplicates within a data set, D14: warnings, as it takes a split to make them leak."""
    for case, facts in sorted(cases.items()):
        if len(set(facts["exact"])) < len(facts["exact"]):
            yield Finding("D14", "warning", "two of its channels have the same voxels", case)
    for pair in find_pairs(cases):
        patients = [cases[case]["subject"] for case in (pair.first, pair.second)]
        of = "one patient" if patients[0] == patients[1] else "two patients"
        text = f"{pair.first} and {pair.second}, of {of}, {pair}"
        yield Finding("D14", "warning", text, pair.first)


def check_split(
    parts: Mapping[str, Sequence[str]],
    cases: Mapping[str, Facts],
    structures: Sequence[str] = (),
) -> list[Finding]:
    """Check a split: no image in two parts, and every structure in the training cases.

    Args:
        parts: ids of `train`, `val` and `test`; more entries are ignored. A case in two parts, as
            with ``test: val``, is not its own duplicate.
        cases: facts of all cases of the data set, see `read_cases`.
        structures: names that the training cases must show; those of `labels.structures`.

    Returns:
        Errors D14 for images in two parts, and D08 for structures in no training case. The card's
        waivers are not applied.

    Raises:
        DataError: for a case that `cases` does not have.
    """
    members = {part: frozenset(parts[part]) for part in PARTS}
    chosen = frozenset().union(*members.values())
    if unknown := sorted(chosen - set(cases)):
        raise DataError(
            f"the split has {len(unknown)} cases that were not checked, such as {unknown[0]!r}; "
            "prepare the data set again"
        )
    of = {case: [part for part in PARTS if case in members[part]] for case in chosen}
    findings = []
    for pair in find_pairs({case: cases[case] for case in chosen}):
        here, there = of[pair.first], of[pair.second]
        if here != there:
            text = (
                f"{pair.first} ({here[0]}) and {pair.second} ({there[0]}) {pair}; exclude one in "
                "the card (integrity.exclude), or put both into one part"
            )
            findings.append(Finding("D14", "error", text, pair.first))
    shown = {name for case in parts["train"] for name in cases[case]["structures"]}
    for name in structures:
        if name not in shown:
            text = f"{name} is in no training case, so it cannot be learnt; change the split"
            findings.append(Finding("D08", "error", text))
    return findings


def check_study(
    data_sets: Mapping[str, Mapping[str, Facts]], overlaps: Mapping[str, Sequence[str]]
) -> list[Finding]:
    """Find what the data sets of one study share, so that no model is tested on what it has seen.

    Args:
        data_sets: name -> facts of its cases.
        overlaps: name -> data sets that share patients with it, as its card declares.

    Returns:
        Warnings D14: one for each two data sets that share images, naming how many, and one for
        each two of which a card declares that they share patients.
    """
    findings = []
    for first, second in combinations(sorted(data_sets), 2):
        if pairs := find_pairs(data_sets[first], data_sets[second]):
            shown = ", ".join(f"{p.first} = {p.second}" for p in pairs[:5])
            more = f" and {len(pairs) - 5} more" if len(pairs) > 5 else ""
            text = (
                f"data sets {first} and {second} share {len(pairs)} images ({shown}{more}): a "
                "model that is trained on the one must not be tested on the other"
            )
            findings.append(Finding("D14", "warning", text))
        if second in overlaps.get(first, ()) or first in overlaps.get(second, ()):
            text = (
                f"data sets {first} and {second} share patients, says a card: a model that is "
                "trained on the one must not be tested on the other"
            )
            findings.append(Finding("D14", "warning", text))
    return findings


def read_cases(integrity: Path) -> dict[str, Facts]:
    """Read the facts of the cases from an ``integrity.json``.

    Returns:
        id -> `subject`, `exact`, `rough` and `structures`.

    Raises:
        DataError: if it is unreadable.
    """
    try:
        content: dict[str, Any] = json.loads(integrity.read_text(encoding="utf-8"))
        return dict(content["cases"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{integrity}: not readable as the result of an integrity check ({error}); delete it "
            "and run again"
        ) from None
