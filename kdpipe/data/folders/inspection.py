"""A look at a folder of images and labels that no card describes yet.

Headers of all cases are read, voxels of a sample. Lengths are in the order x, y, z of RAS
orientation; for pictures and other images of one slice, in that of the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from kdpipe.data.checks.integrity import read_case
from kdpipe.data.folders._metadata import Folder, read_folder
from kdpipe.data.geometry import to_array
from kdpipe.data.manifest import Case
from kdpipe.errors import DataError
from kdpipe.images.files import PICTURES

SAMPLE = 20
"""Cases whose voxels are read."""
AIR = -500.0
"""HU between air and tissue; an image that reaches below is taken for CT."""
_VOXELS = 20_000
_PERCENTILES = (0.5, 99.5)
_RAS = ("RL", "AP", "SI")


@dataclass(frozen=True)
class Header:
    """What a case's image headers say; `orientation` is None for images of one slice."""

    case: str
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    orientation: str | None
    n_channels: int


@dataclass(frozen=True)
class Channel:
    """Intensities of a channel over the sample: of whole images, and under the labels."""

    low: float
    high: float
    percentiles: tuple[float, float]


@dataclass(frozen=True)
class Inspection:
    """What a folder holds.

    Attributes:
        folder: what it says of itself.
        headers: of all cases.
        sample: cases whose voxels were read.
        channels: intensities, one a channel.
        present: label id -> number of cases of the sample that have it; 0 left out.
        voxels: label id -> share of the labelled voxels of the sample.
        box: median share of each axis that the box around the body takes.
        pictures: whether the images are PNG and the like, whose scale is unknown.
        notes: what is odd and no reason to stop.
    """

    folder: Folder
    headers: tuple[Header, ...]
    sample: tuple[str, ...]
    channels: tuple[Channel, ...]
    present: dict[int, int]
    voxels: dict[int, float]
    box: tuple[float, float, float]
    pictures: bool
    notes: tuple[str, ...]

    @property
    def flat(self) -> bool:
        """Whether all images are of one slice."""
        return all(header.orientation is None for header in self.headers)


def inspect_folder(path: Path) -> Inspection:
    """Look at a folder in MSD, nnU-Net or BIDS layout.

    Raises:
        ConfigError: if there is no such folder.
        DataError: if its files are incomplete or damaged, cases differ in their channels, or
            label maps hold what no label map may; names the cases.
    """
    folder = read_folder(path)
    headers = tuple(_header(case) for case in folder.cases)
    _check_channels(headers, folder)
    total = len(folder.cases)
    chosen = [folder.cases[i * total // SAMPLE] for i in range(SAMPLE)]
    if total <= SAMPLE:
        chosen = folder.cases
    seen = [_look(case, number) for number, case in enumerate(chosen)]
    _check_labels(seen, folder)
    counts = sum((one.voxels for one in seen), Counter[int]())
    labelled = max(1, sum(counts.values()))
    return Inspection(
        folder=folder,
        headers=headers,
        sample=tuple(case.case for case in chosen),
        channels=tuple(
            _pooled(channel) for channel in zip(*(s.channels for s in seen), strict=True)
        ),
        present=dict(sorted(Counter(i for one in seen for i in one.voxels).items())),
        voxels={i: counts[i] / labelled for i in sorted(counts)},
        box=tuple(np.median([one.box for one in seen], axis=0).tolist()),
        pictures=all(file.name.endswith(PICTURES) for case in chosen for file in case.images),
        notes=tuple(_notes(seen, headers)),
    )


@dataclass(frozen=True)
class _Seen:
    """Voxels of one case: values of each channel are its range and a draw under the labels."""

    case: str
    channels: list[tuple[float, float, np.ndarray]]
    voxels: Counter[int]
    broken: list[float]
    box: tuple[float, ...]
    float_label: bool


def _header(case: Case) -> Header:
    readers = [_information(case, file) for file in case.images]
    reader = readers[0]
    n_channels = len(readers)
    size, spacing = list(reader.GetSize()), list(reader.GetSpacing())
    dimension = reader.GetDimension()
    if n_channels == 1:
        n_channels = size[3] if dimension == 4 else reader.GetNumberOfComponents()
    size, spacing = (size + [1])[:3], (spacing + [1.0])[:3]
    if case.images[0].name.endswith(PICTURES):
        spacing = [1.0] * 3
    if dimension == 2 or size[2] == 1:
        return Header(case.case, tuple(size), tuple(spacing), None, n_channels)
    direction = np.reshape(reader.GetDirection(), (dimension, dimension))[:3, :3]
    code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(
        direction.ravel().tolist()
    )
    order = _ras_order(code)
    return Header(
        case.case,
        tuple(size[axis] for axis in order),
        tuple(spacing[axis] for axis in order),
        code,
        n_channels,
    )


def _information(case: Case, file: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise DataError(f"case {case.case!r}, {file}: not readable; replace the file") from None
    return reader


def _ras_order(code: str) -> list[int]:
    """Return for each axis of RAS the stored axis along which it runs."""
    return [next(i for i, letter in enumerate(code) if letter in pair) for pair in _RAS]


def _look(case: Case, seed: int) -> _Seen:
    images, label = read_case(case)
    ids = to_array(label)
    found, counts = np.unique(ids, return_counts=True)
    whole = found == np.floor(found)
    labelled = np.flatnonzero(ids.ravel() > 0)
    draw = np.random.default_rng(seed).permutation(labelled)[:_VOXELS]
    arrays = [to_array(image) for image in images]
    if any(array.shape != ids.shape for array in arrays):
        raise DataError(
            f"case {case.case!r}: the label map has {ids.shape} voxels, its image "
            f"{arrays[0].shape}; pair the right files"
        )
    flat = ids.shape[2] == 1
    code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(images[0].GetDirection())
    box = _body_box(arrays)
    return _Seen(
        case=case.case,
        channels=[(float(a.min()), float(a.max()), a.ravel()[draw]) for a in arrays],
        voxels=Counter(
            {int(i): int(n) for i, n in zip(found[whole], counts[whole], strict=True) if i}
        ),
        broken=[float(value) for value in found[~whole]],
        box=box if flat else tuple(box[axis] for axis in _ras_order(code)),
        float_label=ids.dtype.kind == "f",
    )


def _body_box(arrays: Sequence[np.ndarray]) -> tuple[float, ...]:
    """Return which share of each axis the box around all that is not air or 0 takes."""
    body: np.ndarray = np.zeros(arrays[0].shape, bool)
    for array in arrays:
        body |= array > AIR if array.min() < AIR else array != 0
    shares = []
    for axis, n in enumerate(body.shape):
        planes = np.flatnonzero(body.any(axis=tuple(a for a in range(3) if a != axis)))
        shares.append((planes[-1] + 1 - planes[0]) / n if len(planes) else 1.0)
    return tuple(map(float, shares))


def _pooled(channel: Sequence[tuple[float, float, np.ndarray]]) -> Channel:
    values = np.concatenate([drawn for _, _, drawn in channel]).astype(np.float64)
    low, high = min(low for low, _, _ in channel), max(high for _, high, _ in channel)
    shown = np.percentile(values, _PERCENTILES).tolist() if len(values) else [low, high]
    return Channel(low, high, (shown[0], shown[1]))


def _check_channels(headers: Sequence[Header], folder: Folder) -> None:
    counts = Counter(header.n_channels for header in headers)
    usual = counts.most_common(1)[0][0]
    if len(counts) > 1:
        others = [header.case for header in headers if header.n_channels != usual]
        raise DataError(
            f"cases differ in their channels: {usual} in {counts[usual]} of {len(headers)} cases, "
            f"another number in {_some(others)}; a data set has the same channels in all cases"
        )
    if folder.channels and len(folder.channels) != usual:
        raise DataError(
            f"dataset.json names {len(folder.channels)} channels ({', '.join(folder.channels)}), "
            f"the images have {usual}; mend dataset.json"
        )
    if len({header.orientation is None for header in headers}) > 1:
        flat = [header.case for header in headers if header.orientation is None]
        raise DataError(
            f"single slices and volumes are mixed; slices are {_some(flat)}; make two data sets"
        )


def _check_labels(seen: Sequence[_Seen], folder: Folder) -> None:
    problems = []
    for one in seen:
        if one.broken:
            problems.append(
                f"case {one.case!r}: label values that are no integers, such as "
                f"{one.broken[0]:g}; store label maps with integer ids"
            )
        if negative := [i for i in one.voxels if i < 0]:
            problems.append(f"case {one.case!r}: label {negative[0]}; ids start at 0")
        unnamed = sorted(i for i in one.voxels if i > 0 and i not in folder.names)
        if folder.names and unnamed:
            problems.append(
                f"case {one.case!r}: labels {', '.join(map(str, unnamed))} have no name; name "
                "them in dataset.json (or dseg.tsv)"
            )
    if not any(one.voxels for one in seen):
        problems.append(f"all label maps of {len(seen)} cases are empty, such as {seen[0].case!r}")
    if problems:
        raise DataError("the label maps cannot be used:\n  " + "\n  ".join(problems))


def _notes(seen: Sequence[_Seen], headers: Sequence[Header]) -> list[str]:
    notes = []
    if floats := [one.case for one in seen if one.float_label and not one.broken]:
        notes.append(f"label maps are stored as floating-point numbers: {_some(floats)}")
    if empty := [one.case for one in seen if not one.voxels]:
        notes.append(f"label maps without any structure: {_some(empty)}")
    directions = Counter(header.orientation for header in headers)
    if len(directions) > 1:
        shown = ", ".join(f"{code} ({n})" for code, n in directions.most_common())
        notes.append(f"cases are stored in several orientations: {shown}")
    return notes


def _some(names: Sequence[str], limit: int = 5) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
