"""The prepared store: one folder a case, made for cheap random 3D crops.

`image.b2nd` (C, X, Y, Z) int16 or float16 and `label.b2nd` (X, Y, Z) uint8 are blosc2 arrays
(LZ4HC, which unpacks twice as fast as zstd). Blocks of 24 voxels a side are unpacked alone,
in a fraction of a core's cache, so a crop costs about its own size; chunks of 96 keep the number of
pieces small. `foreground.npz` holds sampled coordinates of each class and `geometry.json` the exact
way back to the native grid.

An image whose values are of order one, as after a window or a z-score, is stored in steps of
1/1024, as half precision has between 1 and 2: at most 1/2048 off, 0.2 HU in a window of 425 HU.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from kdpipe.atomic import flush
from kdpipe.data._handles import opened
from kdpipe.data.steps import STEPS, fits_steps
from kdpipe.disk import disk_told
from kdpipe.errors import DataError

FILES = ("image.b2nd", "label.b2nd", "foreground.npz", "geometry.json")
TEMPORARY = ".tmp-"
N_FOREGROUND = 5000
_CHUNK, _BLOCK = 96, 24


def write_case(
    folder: Path,
    image: np.ndarray,
    label: np.ndarray,
    geometry: Mapping[str, Any],
    foreground: Mapping[int, np.ndarray],
    stepped: bool = False,
) -> None:
    """Write a case as a whole: `folder` holds the old case, none, or all of the new one.

    Args:
        folder: `<store>/<case>`; an old case there is replaced.
        image: (C, X, Y, Z), finite and within float16 (|value| < 65504).
        label: (X, Y, Z), class ids 0..255.
        geometry: JSON-serialisable; must have `pad_value`.
        foreground: class id -> (N, 3) voxel coordinates, see `sample_foreground`.
        stepped: round the image to whole multiples of 1/1024, if it lies within +-31.9, rather
            than to float16.

    Raises:
        DiskError: the disk does not take it.
    """
    new = _aside(folder, "new")
    text = json.dumps(geometry, indent=1, sort_keys=True, allow_nan=False) + "\n"
    try:
        with disk_told(folder):
            new.mkdir(parents=True)
            _write_array(new / "image.b2nd", _stored(image, stepped), blosc2.Filter.SHUFFLE)
            _write_array(new / "label.b2nd", np.asarray(label, np.uint8), blosc2.Filter.NOFILTER)
            coordinates: dict[str, Any] = {  # numpy's types take them for its own settings
                str(i): np.asarray(xyz, np.int16) for i, xyz in foreground.items()
            }
            np.savez_compressed(new / "foreground.npz", **coordinates)
            (new / "geometry.json").write_text(text, encoding="utf-8")
            for name in FILES:  # a power cut could leave their names alone
                flush(new / name)
            replace_case(folder, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _stored(image: np.ndarray, stepped: bool) -> np.ndarray:
    if not fits_steps(image, stepped):
        return np.asarray(image, np.float16)
    whole = np.empty(image.shape, np.int16)
    for channel, codes in zip(image, whole, strict=True):
        for plane, target in zip(channel, codes, strict=True):
            np.rint(plane * np.float32(STEPS), out=target, casting="unsafe")
    return whole


def replace_case(folder: Path, new: Path) -> None:
    """Rename `new` to `folder`, in the place of an old case; both are in the same store."""
    old = _aside(folder, "old")
    try:
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _aside(folder: Path, what: str) -> Path:
    return folder.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{what}-{folder.name}")


def sample_foreground(label: np.ndarray, n_classes: int) -> dict[int, np.ndarray]:
    """Return up to 5000 voxel coordinates (N, 3) int16 of each class 1..n_classes - 1.

    The same label map gives the same voxels, drawn evenly and in storage order.
    """
    counts = np.array([np.bincount(plane.ravel(), minlength=n_classes) for plane in label])
    found = {}
    for class_id in range(1, n_classes):
        before = np.concatenate([[0], np.cumsum(counts[:, class_id])])
        wanted = np.arange(before[-1])
        if len(wanted) > N_FOREGROUND:
            draw = np.random.default_rng(class_id)
            wanted = np.sort(draw.choice(before[-1], N_FOREGROUND, replace=False))
        found[class_id] = _nth_voxels(label, class_id, before, wanted)
    return found


def _nth_voxels(
    label: np.ndarray, class_id: int, before: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Return the coordinates (N, 3) of the `wanted` voxels of a class, counted in storage order.

    `before` says how many of them lie before each plane.
    """
    parts = [np.empty((0, 3), np.int16)]
    for x, plane in enumerate(label):
        here = wanted[np.searchsorted(wanted, before[x]) : np.searchsorted(wanted, before[x + 1])]
        if len(here):
            y, z = np.unravel_index(
                np.flatnonzero(plane == class_id)[here - before[x]], plane.shape
            )
            parts.append(np.stack([np.full_like(y, x), y, z], axis=1).astype(np.int16))
    return np.concatenate(parts)


class StoredCase:
    """A prepared case. Nothing is opened before it is used.

    It holds no open file itself, so one object serves any number of processes and threads and can
    be pickled.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    @cached_property
    def geometry(self) -> dict[str, Any]:
        """Grids, intensity transform and statistics, as `preparation.prepare` wrote them."""
        try:
            stored: dict[str, Any] = json.loads(
                (self.folder / "geometry.json").read_text(encoding="utf-8")
            )
        except (OSError, ValueError) as error:
            raise self._damaged("geometry.json", error) from None
        return stored

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        sides: tuple[int, int, int] = self._open("label.b2nd").shape
        return sides

    @cached_property
    def n_channels(self) -> int:
        """Number of image channels."""
        return int(self._open("image.b2nd").shape[0])

    def crop(self, start: Sequence[int], size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the box of `size` voxels that begins at voxel `start` (which may be negative).

        Outside the volume the image is the case's `pad_value` and the label is 0.

        Returns:
            image (C, *size) float32 and label (*size) uint8.
        """
        inside: list[slice] = []
        target: list[slice] = []
        for begin, length, n in zip(start, size, self.shape, strict=True):
            low, high = min(max(begin, 0), n), max(min(begin + length, n), 0)
            inside.append(slice(low, max(low, high)))
            target.append(slice(low - begin, max(low, high) - begin))
        lengths = [part.stop - part.start for part in inside]
        pad_value = self.geometry["pad_value"]
        if lengths == list(size):
            label = self._read("label.b2nd", tuple(inside))
            return self._values((slice(None), *inside)), label
        image = np.full((self.n_channels, *size), pad_value, np.float32)
        label = np.zeros(tuple(size), np.uint8)
        if all(lengths):
            image[:, *target] = self._values((slice(None), *inside))
            label[*target] = self._read("label.b2nd", tuple(inside))
        return image, label

    def whole(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the whole image (C, X, Y, Z) float32 and label (X, Y, Z) uint8."""
        return self.crop((0, 0, 0), self.shape)

    def image(self) -> np.ndarray:
        """Return the whole image (C, X, Y, Z) float32; the label is not opened."""
        return self._values((...,))

    def label(self) -> np.ndarray:
        """Return the whole label (X, Y, Z) uint8; the image is not opened."""
        return self._read("label.b2nd", (...,))

    @cached_property
    def classes(self) -> tuple[int, ...]:
        """Foreground class ids that the case has."""
        with self._npz() as stored:
            return tuple(sorted(int(name) for name in stored.files if len(stored[name])))

    def foreground(self, class_id: int) -> np.ndarray:
        """Return sampled voxel coordinates (N, 3) int16 of a class; N is 0 if it is absent."""
        with self._npz() as stored:
            if str(class_id) not in stored.files:
                raise DataError(f"{self.folder}: no class {class_id}, only 1..{len(stored.files)}")
            coordinates: np.ndarray = stored[str(class_id)]
            return coordinates

    @contextmanager
    def _npz(self) -> Iterator[Any]:
        try:
            with np.load(self.folder / "foreground.npz", allow_pickle=False) as stored:
                yield stored
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise self._damaged("foreground.npz", error) from None

    def _open(self, name: str) -> blosc2.NDArray:
        try:
            return opened(self.folder / name)
        except (OSError, RuntimeError, ValueError) as error:
            raise self._damaged(name, error) from None

    def _read(self, name: str, box: tuple[Any, ...]) -> np.ndarray:
        try:
            values: np.ndarray = self._open(name)[box]
        except RuntimeError as error:
            raise self._damaged(name, error) from None
        return values

    def _values(self, box: tuple[Any, ...]) -> np.ndarray:
        stored = self._read("image.b2nd", box)
        image = stored.astype(np.float32)
        if stored.dtype == np.int16:
            image *= np.float32(1 / STEPS)
        return image

    def _damaged(self, name: str, error: Exception) -> DataError:
        mend = f"delete the folder {self.folder} and the cases.tsv of its data set, and run again"
        return DataError(
            f"case {self.folder.name!r}, {self.folder / name}: missing or damaged ({error}); {mend}"
        )


def is_complete(folder: Path) -> bool:
    """Say whether `folder` holds all files of a prepared case."""
    return all((folder / name).is_file() for name in FILES)


def remove_stale(store: Path, keep: set[str]) -> list[str]:
    """Delete prepared cases that are not in `keep`, and what a killed run left half-written.

    Folders that are no prepared cases are not touched.

    Returns:
        Names of the deleted cases.
    """
    remove_temporary(store)
    removed = []
    for folder in sorted(store.iterdir()) if store.is_dir() else []:
        if folder.name not in keep and (folder / "geometry.json").is_file():
            shutil.rmtree(folder)
            removed.append(folder.name)
    return removed


def remove_temporary(store: Path) -> None:
    """Delete what a process that was stopped has left half-written."""
    for folder in store.glob(f"{TEMPORARY}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _write_array(file: Path, array: np.ndarray, filter_: blosc2.Filter) -> None:
    leading = (1,) * (array.ndim - 3)
    blosc2.asarray(
        np.ascontiguousarray(array),
        urlpath=os.fspath(file),
        mode="w",
        chunks=leading + tuple(min(_CHUNK, n) for n in array.shape[-3:]),
        blocks=leading + tuple(min(_BLOCK, n) for n in array.shape[-3:]),
        cparams={
            "codec": blosc2.Codec.LZ4HC,
            "clevel": 5,
            "filters": [filter_],
            "filters_meta": [0],
            "nthreads": 1,
        },
    )
