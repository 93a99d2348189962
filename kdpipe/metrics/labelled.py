"""Surface voxels of all structures of a label volume in one pass.

The surface of a structure is the set of its voxels with a face neighbour outside it or outside the
image: mask XOR its erosion of connectivity 1, as in medpy and MONAI. Structures that share no label
are searched together; each voxel belongs to at most one of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np

from kdpipe.jit import compiled
from kdpipe.metrics.nearest import surface_to_surface
from kdpipe.metrics.points import Points, three_axes

WORTH_THREADS = 2**22
"""Voxels of a volume from which on threads save more than they cost to start."""

Ids = tuple[int, ...]
Directed = tuple[np.ndarray, np.ndarray]


def kernels(jit: bool | None = None) -> ModuleType | None:
    """The compiled loops, or None for the way without them.

    Args:
        jit: None takes them if numba can be imported and the environment variable `KDPIPE_JIT`
            is not `0`; False never; True always.

    Raises:
        ImportError: `jit` is True and numba cannot be imported.
    """
    if jit is None:
        return compiled(_loops)
    return _loops() if jit else None


def _loops() -> ModuleType:
    from kdpipe.metrics import labelled_jit

    return labelled_jit


def disjoint_groups(structures: Sequence[Ids]) -> list[list[Ids]]:
    """Divide structures, in order, into groups of which no two members share a label."""
    groups: list[list[Ids]] = []
    for ids in structures:
        for group in groups:
            if not any(set(ids) & set(other) for other in group):
                group.append(ids)
                break
        else:
            groups.append([ids])
    return groups


def labelled_distances(
    reference: np.ndarray,
    prediction: np.ndarray,
    structures: Sequence[Ids],
    spacing: tuple[float, ...],
    loops: ModuleType | None,
    threads: int = 1,
) -> list[Directed]:
    """Directed surface distances of structures that share no label, in one pass.

    Args:
        reference: labels as `overlap.joint_histogram` checks them, 2 or 3 axes.
        prediction: likewise, same shape.
        structures: the labels of each structure.
        spacing: one step an axis.
        loops: see `kernels`.
        threads: that share the work of the compiled loops, where the volume is large enough.

    Returns:
        For each structure the distances (prediction to reference, reference to prediction), each
        in C order of the voxels; all `inf` where the other volume lacks the structure.
    """
    threads = threads if reference.size >= WORTH_THREADS else 1
    sides = [
        surface_points(volume, structures, loops, threads) for volume in (reference, prediction)
    ]
    there, back = surface_to_surface(sides[0], sides[1], three_axes(spacing), loops, threads)
    return list(zip(there, back, strict=True))


def surface_points(
    volume: np.ndarray, structures: Sequence[Ids], loops: ModuleType | None, threads: int = 1
) -> Points:
    """Surface voxels of structures that share no label, as flat indices in C order."""
    shape = volume.shape if volume.ndim == 3 else (1, *volume.shape)
    find = _without_jit if loops is None else _with_jit
    index, sizes = find(volume, structures, loops, threads)
    return Points(index, np.array([0, *itertools.accumulate(sizes)]), shape)


def unsigned(volume: np.ndarray) -> np.ndarray:
    """The same memory as unsigned integers: labels are checked not to be negative."""
    return volume.view(f"u{volume.itemsize}")


def in_memory_order(volume: np.ndarray) -> tuple[np.ndarray, bool]:
    """C-contiguous unsigned volume of three axes, and whether the axes had to be reversed.

    Copies only what is contiguous in neither order, or does not start at a word's address.
    """
    volume = volume if volume.ndim == 3 else volume[None]
    reverse = volume.flags.f_contiguous and not volume.flags.c_contiguous
    laid_out = volume.T if reverse else volume
    if not laid_out.dtype.isnative:
        laid_out = laid_out.astype(laid_out.dtype.newbyteorder("="))
    plain = np.ascontiguousarray(laid_out)
    if plain.__array_interface__["data"][0] % 8:  # it is read in words of eight bytes
        plain = plain.copy()
    return unsigned(plain), reverse


def words(volume: np.ndarray) -> np.ndarray:
    """The memory of a C-contiguous volume as 64-bit words, without what is left over."""
    whole = volume.nbytes // 8
    flat = volume.reshape(-1)[: whole * (8 // volume.itemsize)]
    answer: np.ndarray = flat.view(np.uint64)
    return answer


def _with_jit(
    volume: np.ndarray, structures: Sequence[Ids], loops: ModuleType | None, threads: int
) -> tuple[np.ndarray, list[int]]:
    """Flat indices of all structures, one after the other, and how many each has."""
    assert loops is not None
    laid_out, reverse = in_memory_order(volume)
    number = np.zeros(max(max(ids) for ids in structures) + 1, np.uint16)
    for k, ids in enumerate(structures, start=1):
        number[list(ids)] = k
    flat_axis = volume.ndim == 2
    # What is flat comes last in reversed order; a plane of one column would look like an edge.
    if flat_axis and reverse:
        laid_out = laid_out.reshape(1, *laid_out.shape[:2])
    edges = [laid_out.shape[0] * part // threads for part in range(threads + 1)]

    def search(start: int, stop: int) -> Directed:
        found: Directed = loops.surface_voxels(laid_out, number, flat_axis, start, stop)
        return found

    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(search, edges[:-1], edges[1:]))
        index, value = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    else:
        index, value = search(*edges)
    order = np.argsort(value, kind="stable")  # a radix sort: C order stays within a structure
    index = index[order]
    sizes: list[int] = np.bincount(value, minlength=len(structures) + 1)[1:].tolist()
    if reverse:
        parts = np.split(index, list(itertools.accumulate(sizes))[:-1])
        index = np.concatenate([_transposed(part, volume.shape) for part in parts])
    return index, sizes


def _transposed(index: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Indices into C order, ascending, from those into Fortran order."""
    turned = np.ravel_multi_index(np.unravel_index(index, shape, order="F"), shape)
    return np.sort(turned)


def _without_jit(
    volume: np.ndarray, structures: Sequence[Ids], *_: object
) -> tuple[np.ndarray, list[int]]:
    boxes = label_boxes(volume)
    parts = []
    for ids in structures:
        box = union_box([boxes], ids)
        if box is None:
            parts.append(np.empty(0, np.int64))
            continue
        inside = np.nonzero(surface_mask(mask_of(volume[box], ids)))
        corner = (axis.start for axis in box)
        places = tuple(i + start for i, start in zip(inside, corner, strict=True))
        parts.append(np.ravel_multi_index(places, volume.shape))
    return np.concatenate(parts), [len(part) for part in parts]


Box = tuple[slice, ...]


def label_boxes(volume: np.ndarray) -> list[Box | None]:
    """Bounding box of every label, label i at index i - 1."""
    from scipy import ndimage  # heavy, and a training does not need it

    plain = volume.view(np.uint8) if volume.dtype == bool else volume
    # scipy reads every integer type in place, but only in the machine's byte order.
    plain = plain.astype(plain.dtype.newbyteorder("="), copy=False)
    boxes: list[Box | None] = ndimage.find_objects(plain)
    return boxes


def union_box(boxes: Sequence[list[Box | None]], ids: Sequence[int]) -> Box | None:
    """Box that holds the labels `ids` in all volumes that `boxes` describe; None without any."""
    found = [volume[i - 1] for volume in boxes for i in ids if i <= len(volume)]
    corners = np.array([[(axis.start, axis.stop) for axis in box] for box in found if box])
    if not len(corners):
        return None
    low, high = corners[..., 0].min(axis=0), corners[..., 1].max(axis=0)
    return tuple(slice(int(start), int(stop)) for start, stop in zip(low, high, strict=True))


def mask_of(volume: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Boolean mask of the union of labels."""
    mask: np.ndarray = volume == ids[0]
    for label in ids[1:]:
        mask |= volume == label
    return mask


def surface_mask(mask: np.ndarray) -> np.ndarray:
    """Voxels of `mask` with a face neighbour outside the mask or outside the array."""
    interior = mask.copy()
    for axis in range(mask.ndim):
        inner, mask_along = np.moveaxis(interior, axis, 0), np.moveaxis(mask, axis, 0)
        inner[1:] &= mask_along[:-1]
        inner[:-1] &= mask_along[1:]
        inner[:1] = inner[-1:] = False
    interior ^= mask  # the interior lies in the mask: what remains is its rim
    return interior
