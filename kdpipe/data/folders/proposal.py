"""From a look at a folder to a sensible preset and split; spacing and intensities as nnU-Net's.

Each value comes with the reason why it was taken.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from kdpipe.data.folders.inspection import AIR, Channel, Inspection
from kdpipe.errors import DataError

BUDGET_3D, BUDGET_2D = 96**3, 256**2
"""Voxels of a patch at most: a modest size, to be raised where there is memory."""
MULTIPLE = 16
"""Of patch sides: networks that halve them four times fit."""
ANISOTROPY = 3.0
"""Ratio from which an axis counts as thick, nnU-Net's."""
FEW = 30
"""Below so many cases a single test set says little: folds are taken."""
CROPPED = 0.9
"""Share of the image from which the body takes so much of it that a crop is not worth it."""
_CT = re.compile(r"\bct\b|computed", re.IGNORECASE)
_MR = re.compile(r"\bmri?\b|t1|t2|flair|adc|dwi|pd|cine|\bswi\b", re.IGNORECASE)


class Chosen(NamedTuple):
    """A value of the card and why it was taken."""

    value: Any
    why: str


@dataclass(frozen=True)
class Proposal:
    """Values of a card. `slices` are those of the second preset, None for flat data."""

    modality: Chosen
    channels: Chosen
    orientation: Chosen
    spacing: Chosen
    intensity: Chosen
    crop_foreground: Chosen
    patch: Chosen
    slices: dict[str, Chosen] | None
    subject_pattern: Chosen | None
    absent: Chosen
    split: Chosen


def propose(seen: Inspection) -> Proposal:
    """Choose modality, preparation, patch, patients and split for what was seen."""
    names = seen.folder.channels or _default_channels(seen)
    kinds = [_modality(n, channel) for n, channel in zip(names, seen.channels, strict=True)]
    spacing = _spacing(seen)
    crop = _crop(seen)
    subjects, pattern = _patients(seen)
    if len(set(subjects)) < 3:
        raise DataError(
            f"{len(set(subjects))} patients cannot be split into train, val and test; 3 are needed"
        )
    absent = _absent(seen)
    stated = "as the folder states" if seen.folder.channels else "no file names them"
    return Proposal(
        modality=_of_all(kinds),
        channels=Chosen(list(names), stated),
        orientation=_orientation(seen),
        spacing=spacing,
        intensity=_intensity(seen, [kind.value for kind in kinds]),
        crop_foreground=crop,
        patch=_patch(_prepared_size(seen, spacing.value, crop.value), seen.flat),
        slices=None if seen.flat else _slices(seen, spacing.value, crop.value),
        subject_pattern=pattern,
        absent=absent,
        split=_split(len(set(subjects)), bool(absent.value)),
    )


def _default_channels(seen: Inspection) -> tuple[str, ...]:
    count = len(seen.channels)
    if seen.pictures and count == 3:
        return ("red", "green", "blue")
    return ("image",) if count == 1 else tuple(f"channel_{i}" for i in range(count))


def _modality(name: str, channel: Channel) -> Chosen:
    """Guess by the channel's name, then by its range: only CT has air at -1000."""
    if _CT.search(name):
        return Chosen("CT", "by the name of the channel")
    if _MR.search(name):
        return Chosen("MR", "by the name of the channel")
    if channel.low < AIR and channel.high > 200:
        low, high = channel.low, channel.high
        return Chosen("CT", f"guessed: intensities from {low:g} to {high:g} look like HU")
    return Chosen("other", "neither a name nor the range of the intensities tells")


def _of_all(kinds: Sequence[Chosen]) -> Chosen:
    values = list(dict.fromkeys(kind.value for kind in kinds))
    return Chosen("+".join(values), "; ".join(dict.fromkeys(kind.why for kind in kinds)))


def _orientation(seen: Inspection) -> Chosen:
    if seen.flat:
        return Chosen(None, "single slices stay as they are stored")
    stored = Counter(header.orientation for header in seen.headers).most_common()
    shown = ", ".join(f"{code} ({n})" for code, n in stored)
    return Chosen("RAS", f"one for all; stored as {shown}")


def _spacing(seen: Inspection) -> Chosen:
    """Median; on a thick axis the 10th percentile, but not below the others: nnU-Net's rule."""
    if seen.pictures:
        return Chosen(None, "a picture has none")
    spacings = np.array([header.spacing for header in seen.headers])
    sizes = np.array([header.size for header in seen.headers])
    if seen.flat:
        spacings[:, 2] = np.nan
    target = np.median(spacings, axis=0)
    why = "mm; the median of all cases"
    thick = _thick_axis(target, np.median(sizes, axis=0))
    if thick is not None and not seen.flat:
        others = max(target[axis] for axis in range(3) if axis != thick)
        target[thick] = max(np.percentile(spacings[:, thick], 10), others)
        why += f"; along {'xyz'[thick]}, of thick slices, the 10th percentile"
    if np.allclose(spacings, target, rtol=1e-4, equal_nan=True):
        why = "mm; that of all cases"
    return Chosen([None if np.isnan(v) else float(f"{v:.5g}") for v in target], why)


def _thick_axis(spacing: np.ndarray, size: np.ndarray) -> int | None:
    """Return the axis of much thicker and fewer voxels than the others have, if there is one."""
    worst = int(np.nanargmax(spacing))
    others = [axis for axis in range(3) if axis != worst]
    thick = spacing[worst] > ANISOTROPY * max(spacing[others])
    few = size[worst] * ANISOTROPY < min(size[others])
    return worst if thick and few else None


def _intensity(seen: Inspection, kinds: Sequence[str]) -> Chosen:
    entries = [_scaling(seen, kind, c) for kind, c in zip(kinds, seen.channels, strict=True)]
    if all(entry == entries[0] for entry in entries):
        return entries[0]
    why = "; ".join(dict.fromkeys(entry.why for entry in entries))
    return Chosen([entry.value for entry in entries], why)


def _scaling(seen: Inspection, kind: str, channel: Channel) -> Chosen:
    if seen.pictures:
        return Chosen({"kind": "rescale"}, "a picture's grey values have no unit")
    if kind == "CT":
        low, high = (int(round(value)) for value in channel.percentiles)
        if low < high:
            why = "the 0.5th and 99.5th percentile under the labels"
            return Chosen({"kind": "window", "low": low, "high": high}, why)
    why = "intensities have no unit, so each case is scaled by its own"
    return Chosen({"kind": "zscore", "nonzero": channel.low >= 0}, why)


def _crop(seen: Inspection) -> Chosen:
    share = math.prod(seen.box)
    if seen.pictures:
        return Chosen(False, "pictures are kept whole")
    if share > CROPPED:
        return Chosen(False, f"the body's box takes {share:.0%} of the image")
    return Chosen(True, f"the body's box takes only {share:.0%} of the image")


def _prepared_size(seen: Inspection, spacing: Any, crop: bool) -> np.ndarray:
    """Return the median size in voxels after the preparation."""
    sizes = np.array([header.size for header in seen.headers], float)
    if spacing is not None:
        for axis, step in enumerate(spacing):
            if step is not None:
                sizes[:, axis] *= [header.spacing[axis] / step for header in seen.headers]
    if crop:
        sizes *= seen.box
    middle: np.ndarray = np.median(sizes, axis=0)
    return middle


def _patch(size: np.ndarray, flat: bool) -> Chosen:
    size = size[:2] if flat else size
    budget = BUDGET_2D if flat else BUDGET_3D
    sides = [_side(n) for n in size]
    while math.prod(sides) > budget:
        sides[sides.index(max(sides))] -= MULTIPLE
    shown = " x ".join(f"{n:.0f}" for n in size)
    root = f"{round(budget ** (1 / len(sides)))}^{len(sides)}"
    why = f"of a median of {shown} voxels; multiples of {MULTIPLE}, at most {root} in all"
    if any(side < MULTIPLE for side in sides) or max(sides) >= 4 * min(sides):
        thin = sides.index(min(sides))
        once = [1 if axis == thin else 2 for axis in range(len(sides))]
        why += (
            f"; {'xyz'[thin]} is thin: halve it less often, with strides such as "
            f"[{once}, {[2] * len(sides)}] in the networks"
        )
    return Chosen(sides, why)


def _side(n: float) -> int:
    """Return the side for an axis of `n` voxels: padding a quarter of a step is allowed."""
    if n < MULTIPLE:
        return 1 << max(0, int(math.log2(max(n, 1))))
    return int((n + MULTIPLE // 4) // MULTIPLE * MULTIPLE)


def _slices(seen: Inspection, spacing: list[float], crop: bool) -> dict[str, Chosen]:
    """Return the changes of a preset for networks that see slices: across the thick axis."""
    sizes = np.median([header.size for header in seen.headers], axis=0)
    thick = _thick_axis(np.median([h.spacing for h in seen.headers], axis=0), sizes)
    order = {0: (1, 2, 0), 1: (0, 2, 1)}.get(2 if thick is None else thick, (0, 1, 2))
    own: list[float | None] = [spacing[axis] for axis in order[:2]]
    size = _prepared_size(seen, spacing, crop)[list(order)]
    chosen = {
        "spacing": Chosen([*own, None], "between slices each case keeps its own"),
        "patch": _patch(size, flat=True),
    }
    if order != (0, 1, 2):
        code = "".join("RAS"[axis] for axis in order)
        chosen["orientation"] = Chosen(code, "the thick slices lie along the third axis")
    return chosen


def _patients(seen: Inspection) -> tuple[list[str], Chosen | None]:
    """Return the patient of each case, and a pattern if case ids seem to name patients."""
    cases = [case.case for case in seen.folder.cases]
    subjects = [case.subject for case in seen.folder.cases]
    if subjects != cases:
        return subjects, None
    pattern = r"(.*\d.*)[_-][A-Za-z]*\d+"
    matches = [re.fullmatch(pattern, case) for case in cases]
    guessed = [match[1] for match in matches if match]
    if len(guessed) < len(cases) or not 3 <= len(set(guessed)) < len(cases):
        return subjects, None
    why = (
        f"guessed: {len(cases)} cases of {len(set(guessed))} patients, such as {cases[0]} of "
        f"{guessed[0]}. PLEASE CHECK: all of a patient's cases go to one part of a split"
    )
    return guessed, Chosen(pattern, why)


def _absent(seen: Inspection) -> Chosen:
    """Return ids of structures that not all cases of the sample have."""
    n = len(seen.sample)
    known = set(seen.folder.names) or set(seen.present)
    absent = [i for i in sorted(known - {0}) if seen.present.get(i, 0) < n]
    counts = ", ".join(f"{_name(seen, i)} in {seen.present.get(i, 0)}" for i in absent)
    return Chosen(absent, f"of {n} cases that were read, {counts}" if absent else "")


def _name(seen: Inspection, index: int) -> str:
    return seen.folder.names.get(index, f"label_{index}")


def _split(patients: int, stratify: bool) -> Chosen:
    if patients >= FEW:
        why = f"{patients} patients; 10 % select checkpoints, 20 % are scored"
        return Chosen({"kind": "fractions", "val": 0.1, "test": 0.2}, why)
    rule: dict[str, Any] = {"kind": "kfold", "n": max(3, min(5, patients))}
    if stratify:
        rule["stratify"] = True
    return Chosen(rule, f"{patients} patients are few, so each is tested once, in folds")
