"""The checks of a whole data set, and what its card knows that they need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from kdpipe.data.checks.anatomy import check_sides, check_volumes
from kdpipe.data.checks.case_facts import Facts
from kdpipe.data.checks.findings import Finding, in_order, waive
from kdpipe.data.checks.leakage import check_duplicates
from kdpipe.data.geometry import Grid
from kdpipe.labels import Labels
from kdpipe.rules import Rules

if TYPE_CHECKING:
    from kdpipe.data.manifest import Case

CT_RANGE = (-3100.0, 32767.0)
"""HU. Scanners mark what they have not seen by -3024 or so; an int16 ends at 32767."""
SAME_PLACE_MM = 0.1
"""By which qform and sform may disagree at a corner: the quaternions of a qform are rounded."""
THICK = 1.5
"""Slices so many times as thick as pixels are wide are the ones of the scanner."""


def check_data_set(
    cases: Sequence[Case],
    rules: Rules,
    labels: Labels,
    geometries: Mapping[str, Facts],
    failed: Iterable[Finding] = (),
) -> list[Finding]:
    """Check a data set whose cases were looked at one by one.

    Args:
        cases: all that were found, those too that the card excludes.
        rules: what the card says.
        labels: ids and names.
        geometries: `geometry.json` of each case that could be prepared.
        failed: findings of the cases that could not.

    Returns:
        All findings in order, each with the reason why the card accepts it.
    """
    findings = list(failed)
    for case, geometry in geometries.items():
        findings += [Finding(**stored, case=case) for stored in geometry["findings"]]
    findings += _check_list([case.case for case in cases], rules)
    findings += _check_presence(geometries, labels)
    findings += _check_types(geometries)
    findings += _check_extent(geometries, rules.patch)
    if rules.has_spacing:
        findings += _check_headers(geometries)
        findings += _check_grids(geometries, rules)
        findings += check_volumes(geometries)
        if rules.integrity.left_right:
            findings += check_sides(geometries)
    if _is_ct(rules) and rules.has_spacing:
        findings += _check_hounsfield(geometries)
    findings += check_duplicates(identities(cases, geometries))
    return in_order(waive(findings, rules.integrity.waivers))


def identities(cases: Sequence[Case], geometries: Mapping[str, Facts]) -> dict[str, Facts]:
    """Return of each prepared case what `leakage` compares: patient and hashes."""
    subjects = {case.case: case.subject for case in cases}
    kept = ("exact", "rough", "structures")
    return {
        case: {"subject": subjects[case]} | {name: geometry["facts"][name] for name in kept}
        for case, geometry in geometries.items()
    }


def _check_list(found: Sequence[str], rules: Rules) -> Iterator[Finding]:
    """D01: the cases that are there against those that were published."""
    excluded, there = rules.excluded, set(found)
    for case, reason in excluded.items():
        if case in there:
            yield Finding("D01", "info", f"excluded by the card: {reason}", case)
        else:
            yield Finding("D01", "warning", "excluded by the card, but there is no such case", case)
    if rules.n_cases not in (None, len(found)):
        text = (
            f"{len(found)} cases with labels are there, {rules.n_cases} were published; unpack "
            "the archive again, or take out what does not belong; results on a subset cannot be "
            "compared, a waiver of D01 accepts that"
        )
        yield Finding("D01", "error", text)
    if lost := sorted(set(rules.expected) - there - set(excluded)):
        text = (
            f"{len(lost)} cases that the card's splits name are not there: {_some(lost)}; add "
            "them, or mend the ids in the card"
        )
        yield Finding("D01", "error", text)


def _check_headers(geometries: Mapping[str, Facts]) -> Iterator[Finding]:
    """D04: what the two affines of a NIfTI header say."""
    for case, geometry in geometries.items():
        for header in geometry["facts"]["headers"]:
            used = {"both": "both alike", "neither": "neither as it stands"}.get(
                header["read"], header["read"]
            )
            text = ""
            if not header["qform"] and not header["sform"]:
                text = "neither qform nor sform say where the voxels lie; spacing alone is known"
            elif not header["sform"]:
                text = f"sform code is 0, so the qform counts; the reader used {used}"
            elif header["apart_mm"] is not None and header["apart_mm"] > SAME_PLACE_MM:
                text = (
                    f"qform and sform are up to {header['apart_mm']:.3g} mm apart; the reader used "
                    f"{used}, other programs may use the other"
                )
            if text:
                yield Finding("D04", "warning", text, case, header["file"])


def _check_grids(geometries: Mapping[str, Facts], rules: Rules) -> Iterator[Finding]:
    """D05 and D11: spacings that were never set, and thick slices along an odd axis."""
    for case, geometry in geometries.items():
        grid = Grid.from_dict(geometry["native"])
        ones = all(step == 1 for step in grid.spacing)
        at_zero = not any(grid.origin) and not (abs(grid.axes).round(9) % 1).any()
        if ones and (at_zero or _is_ct(rules)):
            what = "the affine is the identity" if at_zero else "the spacing is 1 x 1 x 1 mm"
            text = f"{what}, so it may never have been set; distances in mm may mean nothing"
            yield Finding("D05", "warning", text, case)
        steps = sorted(zip(grid.spacing, grid.orientation, strict=True))
        thickness, axis = steps[-1]
        if thickness >= THICK * steps[-2][0] and axis not in "IS":
            text = (
                f"slices are thickest from {_AXES[axis]} ({thickness:.3g} mm), not from foot to "
                "head: true of some scans, else a reader has lost the affine"
            )
            yield Finding("D11", "warning", text, case)


def _check_presence(geometries: Mapping[str, Facts], labels: Labels) -> Iterator[Finding]:
    """D08: structures that are in no case at all."""
    seen = {name for geometry in geometries.values() for name in geometry["facts"]["structures"]}
    for name in labels.structures:
        if geometries and name not in seen:
            text = f"no case has {name}; mend labels.raw, or take the structure out"
            yield Finding("D08", "error", text)


def _check_hounsfield(geometries: Mapping[str, Facts]) -> Iterator[Finding]:
    """D09: intensities that no CT scanner gives."""
    for case, geometry in geometries.items():
        for low, high in geometry["facts"]["range"]:
            if low < CT_RANGE[0] or high > CT_RANGE[1]:
                text = (
                    f"intensities from {low:g} to {high:g}, those of CT lie in "
                    f"[{CT_RANGE[0]:g}, {CT_RANGE[1]:g}] HU"
                )
                yield Finding("D09", "warning", text, case)


def _check_types(geometries: Mapping[str, Facts]) -> Iterator[Finding]:
    """D10: number types larger than they need be."""
    for case, geometry in geometries.items():
        *images, label = geometry["facts"]["types"]
        if "64-bit float" in images:
            text = "image of 64-bit floats, is prepared in 32 bits"
            yield Finding("D10", "info", text, case)
        if label != "8-bit unsigned integer":
            yield Finding("D10", "info", f"label map of {label}s", case)


def _check_extent(geometries: Mapping[str, Facts], patch: Sequence[int]) -> Iterator[Finding]:
    """D15: volumes smaller than the patch, and structures that the volume cuts."""
    for case, geometry in geometries.items():
        size = geometry["prepared"]["size"]
        if any(n < side for n, side in zip(size, patch, strict=False)):
            text = f"prepared volume {_times(size)} is smaller than the patch {_times(patch)}"
            yield Finding("D15", "info", text, case)
        touching = {
            name: structure["touches"]
            for name, structure in geometry["facts"]["structures"].items()
            if structure["touches"]
        }
        if touching:
            shown = ", ".join(f"{name} ({faces})" for name, faces in touching.items())
            yield Finding("D15", "info", f"reaches the border of the volume: {shown}", case)


_AXES = {
    **dict.fromkeys("LR", "left to right"),
    **dict.fromkeys("AP", "front to back"),
}


def _is_ct(rules: Rules) -> bool:
    return rules.modality.upper() == "CT"


def _times(numbers: Iterable[int]) -> str:
    return " x ".join(map(str, numbers))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
