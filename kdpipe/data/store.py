"""The prepared store: one folder a case, made for cheap random 3D crops.

`image.b2nd` (C, X, Y, Z) float16 and `label.b2nd` (X, Y, Z) uint8 are blosc2 arrays (zstd level
1). Blocks of 32 voxels a side are unpacked alone, in a fraction of a core's cache, so a crop costs
about its own size; chunks of 64 keep the number of pieces small. `foreground.npz` holds sampled
coordinates of each class and `geometry.json` the exact way back to the native grid.
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

from kdpipe.errors import DataError

FILES = ("image.b2nd", "label.b2nd", "foreground.npz", "geometry.json")
TEMPORARY = ".tmp-"
N_FOREGROUND = 5000
_CHUNK, _BLOCK = 64, 32


def write_case(
    folder: Path,
    image: np.ndarray,
    label: np.ndarray,
    geometry: Mapping[str, Any],
    foreground: Mapping[int, np.ndarray],
) -> None:
    """Write a case as a whole: `folder` holds the old case, none, or all of the new one.

    Args:
        folder: `<store>/<case>`; an old case there is replaced.
        image: (C, X, Y, Z), finite and within float16 (|value| < 65504).
        label: (X, Y, Z), class ids 0..255.
        geometry: JSON-serialisable; must have `pad_value`.
        foreground: class id -> (N, 3) voxel coordinates, see `sample_foreground`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unique = f"{TEMPORARY}{uuid.uuid4().hex[:8]}"
    new, old = (folder.with_name(f"{unique}-{name}-{folder.name}") for name in ("new", "old"))
    try:
        new.mkdir()
        _write_array(new / "image.b2nd", np.asarray(image, np.float16))
        _write_array(new / "label.b2nd", np.asarray(label, np.uint8))
        coordinates = {str(i): np.asarray(xyz, np.int16) for i, xyz in foreground.items()}
        np.savez_compressed(new / "foreground.npz", **coordinates)
        text = json.dumps(geometry, indent=1, sort_keys=True, allow_nan=False) + "\n"
        (new / "geometry.json").write_text(text, encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


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
    """A prepared case. Nothing is opened before it is used, and no handle is kept.

    Each call opens the file anew (0.1 ms), so one object serves any number of processes and
    threads and can be pickled.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    @cached_property
    def geometry(self) -> dict[str, Any]:
        """Grids, intensity transform and statistics, as `kdpipe.data.prepare` wrote them."""
        try:
            return json.loads((self.folder / "geometry.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._damaged("geometry.json", error) from None

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        return self._open("label.b2nd").shape

    @cached_property
    def n_channels(self) -> int:
        """Number of image channels."""
        return self._open("image.b2nd").shape[0]

    def crop(self, start: Sequence[int], size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the box of `size` voxels that begins at voxel `start` (which may be negative).

        Outside the volume the image is the case's `pad_value` and the label is 0.

        Returns:
            image (C, *size) float32 and label (*size) uint8.
        """
        inside, target = [], []
        for begin, length, n in zip(start, size, self.shape, strict=True):
            low, high = min(max(begin, 0), n), max(min(begin + length, n), 0)
            inside.append(slice(low, max(low, high)))
            target.append(slice(low - begin, max(low, high) - begin))
        pad_value = self.geometry["pad_value"]
        image = np.full((self.n_channels, *size), pad_value, np.float32)
        label = np.zeros(tuple(size), np.uint8)
        if all(part.stop > part.start for part in inside):
            image[:, *target] = self._read("image.b2nd", (slice(None), *inside))
            label[*target] = self._read("label.b2nd", tuple(inside))
        return image, label

    def whole(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the whole image (C, X, Y, Z) float32 and label (X, Y, Z) uint8."""
        return self.crop((0, 0, 0), self.shape)

    def image(self) -> np.ndarray:
        """Return the whole image (C, X, Y, Z) float32; the label is not opened."""
        return self._read("image.b2nd", (...,)).astype(np.float32)

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
            return stored[str(class_id)]

    @contextmanager
    def _npz(self) -> Iterator[Any]:
        try:
            with np.load(self.folder / "foreground.npz", allow_pickle=False) as stored:
                yield stored
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise self._damaged("foreground.npz", error) from None

    def _open(self, name: str) -> blosc2.NDArray:
        file = self.folder / name
        try:
            if not file.is_file():
                raise FileNotFoundError("no such file")
            return blosc2.open(str(file), mode="r", mmap_mode="r", dparams={"nthreads": 1})
        except (OSError, RuntimeError, ValueError) as error:
            raise self._damaged(name, error) from None

    def _read(self, name: str, box: tuple[slice, ...]) -> np.ndarray:
        try:
            return self._open(name)[box]
        except RuntimeError as error:
            raise self._damaged(name, error) from None

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
    removed = []
    for folder in sorted(store.iterdir()) if store.is_dir() else []:
        if folder.is_dir() and folder.name.startswith(TEMPORARY):
            shutil.rmtree(folder)
        elif folder.name not in keep and (folder / "geometry.json").is_file():
            shutil.rmtree(folder)
            removed.append(folder.name)
    return removed


def _write_array(file: Path, array: np.ndarray) -> None:
    leading = (1,) * (array.ndim - 3)
    blosc2.asarray(
        np.ascontiguousarray(array),
        urlpath=os.fspath(file),
        mode="w",
        chunks=leading + tuple(min(_CHUNK, n) for n in array.shape[-3:]),
        blocks=leading + tuple(min(_BLOCK, n) for n in array.shape[-3:]),
        cparams={
            "codec": blosc2.Codec.ZSTD,
            "clevel": 1,
            "filters": [blosc2.Filter.SHUFFLE],
            "filters_meta": [0],
            "nthreads": 1,
        },
    )
