"""DICOM: which series a folder holds, and the volume of one, if its slices make a grid.

SimpleITK stacks whatever slices it is given: one that is missing, or a gantry that is tilted,
would bend the patient in silence. So the positions of the slices are checked here.
"""

from __future__ import annotations

import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import SimpleITK as sitk

from kdpipe.data.checks.integrity import MAX_SHEAR
from kdpipe.errors import DataError
from kdpipe.images.files import itk_reason
from kdpipe.scans.scan import Scan

UNEVEN = 0.1
"""How far a slice may lie from its place on an even grid, as a share of the slices' distance:
positions are often rounded to a tenth of a millimetre."""
_PREFIX, _MAGIC = 128, b"DICM"
_SUFFIXES = (".dcm", ".ima")
_CLASS = re.compile(rb"\x02\x00\x02\x00UI..1\.2\.840\.10008\.(?:5\.1\.4\.1\.1\.)?([\d.]+)", re.S)
# CT, MR, NM and PET, enhanced and legacy ones too
_VOLUMES = {b"2", b"2.1", b"2.2", b"4", b"4.1", b"4.4", b"20", b"128", b"128.1", b"130"}
_SERIES_NUMBER = "0020|0011"

T = TypeVar("T")


class _Slice(NamedTuple):
    """The header of one file; places in mm."""

    file: Path
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    position: np.ndarray
    axes: np.ndarray
    components: int
    pixel: int


def is_dicom(file: Path) -> bool:
    """Say whether a file is DICOM by its name or by how it begins."""
    if file.suffix.lower() in _SUFFIXES:
        return True
    try:
        with file.open("rb") as stream:
            return stream.read(_PREFIX + len(_MAGIC))[_PREFIX:] == _MAGIC
    except OSError:
        return False


def series_below(root: Path) -> list[Scan]:
    """Return the DICOM series of a folder and of those below it, each named after its folder.

    Where a folder holds several, the series' number, else its UID, is added. A file of an image
    that cannot be read makes the series of its folder wrong, as it may be a slice of it. A folder
    that cannot be read is a scan that is wrong.
    """
    closed: list[OSError] = []
    seen = {place.resolve() for place in (root, *root.resolve().parents)}
    scans = []
    for folder, below, names in os.walk(root, onerror=closed.append, followlinks=True):
        below[:] = [name for name in sorted(below) if _is_new(Path(folder, name), seen)]
        files = [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
        candidates = [file for file in files if is_dicom(file)]
        if candidates or any(not file.suffix for file in files):  # old files begin with no mark
            scans += _series_of(Path(folder), _name_below(root, Path(folder)), candidates)
    for error in closed:
        folder = Path(error.filename)
        wrong = f"the folder cannot be read ({error.strerror}); make it readable"
        scans.append(Scan(_name_below(root, folder), (folder,), dicom=True, wrong=wrong))
    return scans


def _is_new(folder: Path, seen: set[Path]) -> bool:
    """Say whether a folder is to be looked into; links may lead to one again, or above it."""
    place = folder.resolve()
    if folder.name.startswith(".") or place in seen:
        return False
    seen.add(place)
    return True


def _name_below(root: Path, folder: Path) -> str:
    return "_".join(folder.relative_to(root).parts or (root.resolve().name,))


def _series_of(folder: Path, name: str, candidates: Sequence[Path]) -> list[Scan]:
    reader = sitk.ImageSeriesReader
    series = {
        uid: tuple(map(Path, reader.GetGDCMSeriesFileNames(str(folder), uid)))
        for uid in reader.GetGDCMSeriesIDs(str(folder))
    }
    read = {file for files in series.values() for file in files}
    classes = _VOLUMES | {_class_of(files[0]) for files in series.values()} | {None}
    damaged = [file for file in candidates if file not in read and _class_of(file) in classes]
    wrong = ""
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        wrong = (
            f"{damaged[0].name}{more}: a DICOM image that cannot be read; copy the folder again, "
            "or convert it if it is compressed in a rare way"
        )
    if not series:
        return [Scan(name, tuple(damaged), dicom=True, wrong=wrong)] if damaged else []
    names = _names(name, series)
    return [Scan(names[uid], series[uid], dicom=True, wrong=wrong) for uid in sorted(series)]


def _names(folder: str, series: dict[str, tuple[Path, ...]]) -> dict[str, str]:
    if len(series) == 1:
        return dict.fromkeys(series, folder)
    numbers = {uid: _header(files[0], _series_number) for uid, files in series.items()}
    often = Counter(numbers.values())
    return {
        uid: f"{folder}_{number if number and often[number] == 1 else uid}"
        for uid, number in numbers.items()
    }


def _class_of(file: Path) -> bytes | None:
    """Return the end of the number that says what a file holds; None: it does not say."""
    with file.open("rb") as stream:
        found = _CLASS.search(stream.read(1024))
    return found[1] if found else None


def read_series(files: Sequence[Path]) -> sitk.Image:
    """Return the volume of a series, or of one file, which may hold several slices.

    Values are those that slope and intercept give, in HU for CT.

    Raises:
        DataError: a file cannot be read, or the slices do not make a grid.
    """
    if len(files) == 1:
        return _told(files[0], functools.partial(sitk.ReadImage, str(files[0])))
    slices = [_header(file, _slice) for file in files]
    _check_alike(slices)
    slices = _check_places(slices)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(one.file) for one in slices])
    if len({one.pixel for one in slices}) > 1:  # slopes by slice: the first one's type may be whole
        reader.SetOutputPixelType(sitk.sitkFloat32)
    volume: sitk.Image = _told(files[0].parent, reader.Execute)
    return volume


def _header(file: Path, what: Callable[[sitk.ImageFileReader], Any]) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    _told(file, reader.ReadImageInformation)
    return what(reader)


def _told(place: Path, function: Callable[[], T]) -> T:
    try:
        return function()
    except RuntimeError as error:
        raise DataError(f"{place}: not readable ({itk_reason(error)}); copy it again") from None


def _series_number(reader: sitk.ImageFileReader) -> str:
    found = reader.GetMetaData(_SERIES_NUMBER) if reader.HasMetaDataKey(_SERIES_NUMBER) else ""
    number: str = found.strip()
    return number if number.isdigit() else ""


def _slice(reader: sitk.ImageFileReader) -> _Slice:
    size, axes = reader.GetSize(), np.reshape(reader.GetDirection(), (3, 3))
    return _Slice(
        Path(reader.GetFileName()),
        size,
        reader.GetSpacing()[:2],
        np.asarray(reader.GetOrigin()),
        axes,
        reader.GetNumberOfComponents(),
        reader.GetPixelID(),
    )


def _check_alike(slices: Sequence[_Slice]) -> None:
    first = slices[0]
    if several := [one for one in slices if one.size[2] > 1]:
        raise DataError(
            f"{several[0].file}: one of {len(slices)} files of a series holds "
            f"{several[0].size[2]} slices; give such files one by one"
        )
    for what, differs in _differences(first):
        if others := [one for one in slices if differs(one)]:
            raise DataError(
                f"{first.file.parent}: {len(others)} of {len(slices)} slices have {what} than "
                f"{first.file.name}, among them {others[0].file.name}; one volume a series is "
                "expected, put the others (a scout view, another volume) into another folder"
            )


def _differences(first: _Slice) -> Iterator[tuple[str, Callable[[_Slice], bool]]]:
    yield "another size", lambda one: one.size != first.size
    yield "other pixels (colour, grey)", lambda one: one.components != first.components
    yield (
        "another pixel spacing",
        lambda one: not np.allclose(one.spacing, first.spacing, rtol=1e-3, atol=0),
    )
    yield (
        "another direction",
        lambda one: bool(np.abs(one.axes - first.axes).max() > MAX_SHEAR),
    )


def _check_places(slices: Sequence[_Slice]) -> list[_Slice]:
    """Return the slices in order; they lie one above the other, evenly."""
    normal = slices[0].axes[:, 2]
    slices = sorted(slices, key=lambda one: float(one.position @ normal))
    folder = slices[0].file.parent
    heights = np.array([float(one.position @ normal) for one in slices])
    steps = np.diff(heights)
    usual = float(np.median(steps))
    at = int(steps.argmin())
    if steps[at] <= max(usual / 2, 1e-3) and steps[at] < usual or usual <= 1e-3:
        raise DataError(
            f"{folder}: {slices[at].file.name} and {slices[at + 1].file.name} lie at one place, "
            f"{steps[at]:.4g} mm apart; one volume a series is expected (no time points or echoes)"
        )
    at = int(steps.argmax())
    if steps[at] > 1.5 * usual:
        raise DataError(
            f"{folder}: slices are missing between {slices[at].file.name} and "
            f"{slices[at + 1].file.name}, which lie {steps[at]:.4g} mm apart, others {usual:.4g} "
            "mm; copy the series again"
        )
    whole = slices[-1].position - slices[0].position
    aside = float(np.linalg.norm(whole - (whole @ normal) * normal) / (whole @ normal))
    if aside > MAX_SHEAR:
        raise DataError(
            f"{folder}: slices are shifted against one another by {aside:.3g} mm a mm (the gantry "
            "was tilted); resample the series to a straight grid, dcm2niix does that"
        )
    even = slices[0].position + np.linspace(0, 1, len(slices))[:, None] * whole
    away = np.linalg.norm(np.array([one.position for one in slices]) - even, axis=1)
    if away.max() > UNEVEN * usual:
        raise DataError(
            f"{folder}: the slices lie unevenly, {steps.min():.4g} to {steps.max():.4g} mm apart; "
            f"{slices[int(away.argmax())].file.name} is {away.max():.4g} mm off an even grid: "
            "resample the series"
        )
    return slices
