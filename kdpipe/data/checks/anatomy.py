"""Do the structures lie where their names say, and are their sizes in a plausible order?

A flipped image, a lost affine or a list of names in another order than the ids breaks nothing that
a program would notice, and spoils everything. The names of a card are enough to find out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from statistics import median
from typing import NamedTuple

from kdpipe.data.checks.case_facts import Facts
from kdpipe.data.checks.findings import Finding
from kdpipe.data.geometry import Grid

_SIDES = {"left": "left", "lt": "left", "l": "left", "right": "right", "rt": "right", "r": "right"}
_FILLERS = {"gland", "organ", "the", "of"}
_ALIASES = {
    "suprarenal": "adrenal",
    "oesophagus": "esophagus",
    "postcava": "venacava",
    "inferiorvenacava": "venacava",
    "ivc": "venacava",
    "portalandsplenicvein": "portalvein",
    "portalveinandsplenicvein": "portalvein",
}
_OWN_SIDE = {"liver": "right", "gallbladder": "right", "spleen": "left"}
_NOT_LATERAL = ("ventricle", "atrium", "atrial", "auricle", "coronary", "lobe")
"""Left and right of the heart are its own, and a left lobe may cross the midline."""
TYPICAL_ML = {
    "liver": 1500, "stomach": 300, "spleen": 200, "kidney": 160, "aorta": 100, "pancreas": 75,
    "duodenum": 75, "venacava": 70, "gallbladder": 30, "esophagus": 30, "portalvein": 30,
    "adrenal": 4,
}  # fmt: skip
"""Rough volumes in adults. Only pairs that differ by `CLEARLY` are compared."""
CLEARLY = 3.0
"""Between two typical volumes. Spleen and kidney, or spleen and pancreas, are too near to judge."""
OFF_CENTRE = 0.1
"""Share of the field of view by which one organ may lie on the other side of its middle."""


class Anatomy(NamedTuple):
    """What a structure's name says.

    Attributes:
        organ: name without its side, in one word, such as ``kidney``.
        side: ``left`` or ``right`` of the body, or None.
    """

    organ: str
    side: str | None


def parse_name(name: str) -> Anatomy:
    """Return organ and side of a structure's name.

    Understands such as ``right_kidney``, ``kidney-right``, ``KidneyRight``, ``kidney_r`` and
    ``rkidney``. The organ of an unknown name is that name in one word.
    """
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    words = re.split(r"[\W_]+", spaced.lower())
    sides = {_SIDES[word] for word in words if word in _SIDES}
    joined = "".join(word for word in words if word not in _SIDES and word not in _FILLERS)
    for organ in TYPICAL_ML:
        if joined in (f"l{organ}", f"r{organ}"):
            sides.add(_SIDES[joined[0]])
            joined = organ
    organ = _ALIASES.get(joined, joined)
    if any(part in organ for part in _NOT_LATERAL):
        return Anatomy(organ, None)
    side = sides.pop() if len(sides) == 1 else _OWN_SIDE.get(organ)
    return Anatomy(organ, side)


def check_sides(cases: Mapping[str, Facts]) -> Iterator[Finding]:
    """Find cases whose right-sided structures do not lie to the right of their left-sided ones.

    A case that has structures of one side only is compared with the middle of its field of view,
    and gets a warning.

    Args:
        cases: `geometry.json` of each case, with its `native` grid and its `facts`.

    Returns:
        At most one finding a case, D12.
    """
    for case, geometry in sorted(cases.items()):
        facts, grid = geometry["facts"], Grid.from_dict(geometry["native"])
        x: dict[str, dict[str, float]] = {"left": {}, "right": {}}
        for name, structure in facts["structures"].items():
            if side := parse_name(name).side:
                x[side][name] = structure["centroid"][0]
        wrong = [
            (x["left"][left] - x["right"][right], right, left)
            for right in x["right"]
            for left in x["left"]
            if x["right"][right] <= x["left"][left]
        ]
        if wrong:
            distance, right, left = max(wrong)
            text = (
                f"{right} lies {distance:.0f} mm to the left of {left}: the image is flipped, its "
                "affine is wrong, or the names in labels.raw do not fit the ids; mend that, or "
                "waive D12 if this body is so"
            )
            yield Finding("D12", "error", text, case)
        elif not (x["left"] and x["right"]):
            yield from _beyond_the_middle(case, x, facts["centre"][0], _width(grid))


def _beyond_the_middle(
    case: str, x: Mapping[str, Mapping[str, float]], middle: float, width: float
) -> Iterator[Finding]:
    away = [(middle - place, name, "left") for name, place in x["right"].items()]
    away += [(place - middle, name, "right") for name, place in x["left"].items()]
    distance, name, side = max(away, default=(0.0, "", ""))
    if distance > OFF_CENTRE * width:
        text = f"{name} lies {distance:.0f} mm to the {side} of the middle; is the image flipped?"
        yield Finding("D12", "warning", text, case)


def _width(grid: Grid) -> float:
    """Length of the field of view from left to right, mm."""
    axis = next(i for i, code in enumerate(grid.orientation) if code in "LR")
    return grid.size[axis] * grid.spacing[axis]


def check_volumes(cases: Mapping[str, Facts]) -> Iterator[Finding]:
    """Find pairs of structures whose median volumes are in the wrong order.

    Args:
        cases: `geometry.json` of each case.

    Returns:
        A finding on the data set for each pair, D13. Cases without a structure do not count.
    """
    volumes: dict[str, list[float]] = {}
    for geometry in cases.values():
        for name, structure in geometry["facts"]["structures"].items():
            volumes.setdefault(name, []).append(structure["ml"])
    known = {
        name: (TYPICAL_ML[organ], median(found))
        for name, found in sorted(volumes.items())
        if (organ := parse_name(name).organ) in TYPICAL_ML
    }
    for large, (typical, found) in known.items():
        for small, (less, other) in known.items():
            if typical >= CLEARLY * less and found <= other:
                text = (
                    f"{large} has a median volume of {found:.3g} mL and {small} of {other:.3g} mL, "
                    f"it should be clearly larger: the names in labels.raw do not fit the ids of "
                    "the files; mend labels.raw, or waive D13"
                )
                yield Finding("D13", "error", text)
