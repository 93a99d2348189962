"""One plain label map a case, where the files have other ids, colours or a mask for each structure.

All that comes after reads ids of `labels.raw` and knows nothing of how a data set stores them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from kdpipe.atomic import atomic_path, write_json
from kdpipe.data.checks.integrity import MAX_DISPLACEMENT_MM, read_volume
from kdpipe.data.geometry import Grid
from kdpipe.data.manifest import Case
from kdpipe.errors import ConfigError, DataError
from kdpipe.images.files import write_nifti
from kdpipe.labels import Labels
from kdpipe.progress import ProgressReport
from kdpipe.provenance import code_digest, digest

log = logging.getLogger(__name__)


def canonical_labels(cases: Sequence[Case], labels: Labels, folder: Path) -> list[Case]:
    """Write a label map with the ids of `labels.raw` for each case, where the files have no such.

    That is the case with `labels.remap`, `labels.palette` and for cases with masks. A label map is
    `<folder>/<case>.nii.gz`, uint8, on the grid of its source; a picture becomes one slice. Id 0
    of the files stays 0 unless `remap` lists it. Where masks overlap, the later id wins. What was
    made of the same files by the same rule is used again.

    Args:
        cases: as `kdpipe.data.folders.layout.index` returns them, with their digests.
        labels: of the card.
        folder: for the label maps; nothing else should be in it.

    Returns:
        The cases with these label maps; their `sha256` covers the files and the rule. The cases
        as they are if nothing has to be done.

    Raises:
        ConfigError: if the card has masks of structures that `labels.raw` does not name, or masks
            together with `remap` or `palette`.
        DataError: names every case with an unreadable file, a colour or an id that the card does
            not list, a mask of several values, or masks on different grids.
    """
    masked = {name for case in cases for name, _ in case.masks}
    if not (labels.remap or labels.palette or masked):
        return list(cases)
    _check_masks(masked, labels)
    rule = digest(
        labels.model_dump(mode="json", include={"raw", "remap", "unlisted", "palette"}),
        code_digest(__name__),
    )
    done, problems = [], []
    with ProgressReport("label maps", len(cases)) as progress:
        for case in cases:
            try:
                done.append(_canonical(case, labels, folder, rule))
            except DataError as error:
                problems.append(str(error))
            progress.advance(note=case.case)
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise DataError(f"{len(problems)} cases have label maps that cannot be read:{lines}")
    return done


def _check_masks(names: set[str], labels: Labels) -> None:
    if names and (labels.remap or labels.palette):
        raise ConfigError("layout.masks of a card excludes labels.remap and labels.palette")
    if unknown := sorted(names - set(labels.structures)):
        raise ConfigError(
            f"layout.masks: {unknown} are not in labels.raw, which has {list(labels.structures)}"
        )


def _canonical(case: Case, labels: Labels, folder: Path, rule: str) -> Case:
    file, note = folder / f"{case.case}.nii.gz", folder / f"{case.case}.json"
    wanted = digest(case.sha256, [name for name, _ in case.masks], rule)
    if not file.is_file() or _noted(note) != {"digest": wanted, "bytes": file.stat().st_size}:
        ids = _merge(case, labels) if case.masks else _translate(case, labels)
        note.unlink(missing_ok=True)  # it vouches for the label map, so it goes first, comes last
        with atomic_path(file) as temporary:
            write_nifti(ids, temporary)
        write_json(note, {"digest": wanted, "bytes": file.stat().st_size})
    return replace(case, label=file, sha256=wanted, masks=())


def _noted(note: Path) -> Any:
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _translate(case: Case, labels: Labels) -> sitk.Image:
    """Read a label map of other ids or of colours."""
    source = _read(case, case.label)
    voxels = sitk.GetArrayViewFromImage(source)
    if labels.palette:
        return _image(_by_palette(case, voxels, labels.palette), source)
    if source.GetNumberOfComponentsPerPixel() != 1:
        raise _error(case, case.label, "a colour picture", "give its colours in labels.palette")
    return _image(_by_remap(case, voxels, labels), source)


def _by_remap(case: Case, voxels: np.ndarray, labels: Labels) -> np.ndarray:
    found = np.unique(voxels)
    if broken := [float(v) for v in found if not np.isfinite(v) or v != np.floor(v)]:
        what = f"label values that are no integers: {_some(broken)}"
        raise _error(case, case.label, what, "store the label map with integer ids")
    rule = {0: 0} | labels.remap
    unlisted = [int(value) for value in found if int(value) not in rule]
    if unlisted and labels.unlisted == "error":
        what = f"ids that labels.remap does not list: {_some(unlisted)}"
        raise _error(case, case.label, what, "list them, or set labels.unlisted: background")
    new = np.array([rule.get(int(value), 0) for value in found], np.uint8)
    return new[np.searchsorted(found, voxels)]


def _by_palette(case: Case, pixels: np.ndarray, palette: Mapping[str, int]) -> np.ndarray:
    if pixels.ndim != 4 or pixels.shape[-1] not in (3, 4) or pixels.dtype != np.uint8:
        what = f"no picture in 8-bit colours, but {pixels.dtype} of shape {pixels.shape}"
        raise _error(case, case.label, what, "replace it, or take labels.palette out of the card")
    codes = _code(*(pixels[..., i].astype(np.int32) for i in range(3)))
    rule = {_code(*map(int, colour.split(","))): index for colour, index in palette.items()}
    found, counts = np.unique(codes, return_counts=True)
    unknown = [
        f"{code >> 16},{code >> 8 & 255},{code & 255} ({count} pixels)"
        for code, count in zip(found.tolist(), counts.tolist(), strict=True)
        if code not in rule
    ]
    if unknown:
        what = f"colours that labels.palette does not list: {_some(unknown)}"
        raise _error(case, case.label, what, "add them, or mend the picture")
    new = np.array([rule[code] for code in found.tolist()], np.uint8)
    ids: np.ndarray = new[np.searchsorted(found, codes)]
    return ids


def _code(red: Any, green: Any, blue: Any) -> Any:
    return red << 16 | green << 8 | blue


def _merge(case: Case, labels: Labels) -> sitk.Image:
    """Paint the binary masks of a case in the order of their ids."""
    order = sorted(case.masks, key=lambda mask: labels.structures[mask[0]])
    first = _read(case, order[0][1])
    ids = np.zeros(first.GetSize()[::-1], np.uint8)
    twice = 0
    for name, file in order:
        mask = _read(case, file)
        _check_grid(case, file, mask, first)
        inside = _inside(case, file, sitk.GetArrayViewFromImage(mask))
        twice += int(np.count_nonzero(ids[inside]))
        ids[inside] = labels.structures[name]
    if twice:
        log.warning("case %r: %d voxels lie in two masks, the later id wins", case.case, twice)
    return _image(ids, first)


def _inside(case: Case, file: Path, voxels: np.ndarray) -> np.ndarray:
    values = np.unique(voxels)
    if voxels.ndim != 3 or len(values[values != 0]) > 1:
        what = f"no binary mask: values {_some(values.tolist())}"
        raise _error(case, file, what, "one file a structure is expected, 0 outside of it")
    inside: np.ndarray = voxels != 0
    return inside


def _check_grid(case: Case, file: Path, mask: sitk.Image, first: sitk.Image) -> None:
    grid, expected = Grid.of(mask), Grid.of(first)
    away = np.abs(grid.corners() - expected.corners()).max()
    if grid.size != expected.size or not away <= MAX_DISPLACEMENT_MM:
        what = f"a mask of size {grid.size} on another grid than the first, {expected.size}"
        raise _error(case, file, what, "resample one onto the other")


def _read(case: Case, file: Path) -> sitk.Image:
    """Read a volume; a picture becomes one of a single slice."""
    image = read_volume(file, case.case)
    if image.GetDimension() not in (2, 3):
        what = f"{image.GetDimension()} axes, 2 or 3 are expected"
        raise _error(case, file, what, "store one label map a case")
    return sitk.JoinSeries(image) if image.GetDimension() == 2 else image


def _image(ids: np.ndarray, source: sitk.Image) -> sitk.Image:
    image = sitk.GetImageFromArray(ids)
    image.CopyInformation(source)
    return image


def _some(values: Iterable[Any]) -> str:
    shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")


def _error(case: Case, file: Path, what: str, mend: str) -> DataError:
    return DataError(f"case {case.case!r}, {file}: {what}; {mend}")
