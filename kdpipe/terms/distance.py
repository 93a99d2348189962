"""Exact Euclidean distance transforms on whatever device the masks are, in voxels, 2D and 3D.

A squared distance is separable: along one axis after the other, ``out[x] = min_j in[j] + (x-j)^2``.
Each minimum is taken over whole slices shifted by 1, 2, 3, ... and ends when no larger shift can
lower anything, so thin structures are done early. Only the box around a mask, and within it the box
around the voxels it measures from, are looked at. As nearly all patches have squared distances
below 2^16, these are held in 16 bits.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

#: voxels worked on at once where masks are taken together (a few bytes each)
_TOGETHER = 2**25


def distance_transform(masks: Tensor) -> Tensor:
    """Return the distance of each voxel inside a mask to the nearest voxel outside, else 0.

    Equals ``scipy.ndimage.distance_transform_edt`` of each mask; but of a full mask, which has no
    outside, it is 0.

    Args:
        masks: boolean ``(N, *S)``.

    Returns:
        float32 ``(N, *S)``, in voxels; without gradient.
    """
    return _squared(masks, both_sides=False).sqrt_()


def contour_distance(masks: Tensor) -> Tensor:
    """Return the distance to the contour, inside and outside; all 0 if a mask is empty or full.

    It is ``distance_transform(m) + distance_transform(~m)``, of which one is 0 at each voxel.

    Args:
        masks: boolean ``(N, *S)``.

    Returns:
        float32 ``(N, *S)``, in voxels; without gradient.
    """
    return squared_contour_distance(masks).sqrt_()


def squared_contour_distance(masks: Tensor) -> Tensor:
    """Return the square of `contour_distance`, whole numbers, as float32 ``(N, *S)``."""
    return _squared(masks, both_sides=True)


@torch.no_grad()
def _squared(masks: Tensor, both_sides: bool) -> Tensor:
    """Squared distances inside the masks, with `both_sides` also outside them.

    On a CPU the masks are taken one by one, each in its own box; elsewhere many together.
    """
    result = torch.zeros(masks.shape, dtype=torch.float32, device=masks.device)
    on_cpu = masks.device.type == "cpu"
    together = 1 if on_cpu else max(1, _TOGETHER // masks[0].numel())
    with _one_thread() if on_cpu else contextlib.nullcontext():
        for group, squared in zip(masks.split(together), result.split(together), strict=True):
            for inside in (group, ~group) if both_sides else (group,):
                box = _bounding_box(inside, margin=1)
                if box is not None:
                    _add_squared(inside[box], squared[box])
    return result


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch's operations on this thread; they are many and short.

    A second thread gains little, and on shared cores every operation would wait for it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _add_squared(masks: Tensor, squared: Tensor) -> None:
    """Add each voxel's squared distance to the nearest outside to `squared`, both ``(n, *S)``."""
    outside = ~masks
    box = _bounding_box(outside)
    if box is None:
        return
    size = masks.shape[1:]
    beyond = math.isqrt(sum((side - 1) ** 2 for side in size)) + 1  # more than any distance
    # 16 bits hold squares of 0 .. 2^16-1 if the lowest number stands for 0
    narrow = beyond**2 + (max(size) - 1) ** 2 < 2**16
    dtype, zero = (torch.int16, -(2**15)) if narrow else (torch.float32, 0)
    field = masks[box].to(dtype).mul_(beyond)

    # the last axis costs most, the fewer voxels it spreads from the better
    axes = sorted(range(1, masks.ndim), key=lambda axis: -field.shape[axis])
    order = [*axes, 0]
    field = field.permute(order)
    for place, axis in enumerate(axes):
        field = field.transpose(0, place).contiguous()
        order[0], order[place] = order[place], order[0]
        start, side = box[axis].start, size[axis - 1]
        if place == 0:
            field = _scan(field, start, side, beyond)
            field = field.mul_(field).add_(zero)
        else:
            field = _spread(field, start, side, beyond**2 + zero)
    field = field.permute([order.index(axis) for axis in range(masks.ndim)]).contiguous()
    measured = field.to(squared.dtype).sub_(zero)
    if len(masks) > 1:  # a full mask among others had nothing to measure from
        measured *= _any(outside.flatten(1), 1).view(-1, *[1] * len(size))
    squared += measured


def _scan(field: Tensor, start: int, size: int, beyond: int) -> Tensor:
    """Return ``out[x] = min_j field[j] + |x - start - j|`` along dimension 0, x in [0, size)."""
    result = field.new_full((size, *field.shape[1:]), beyond)
    result[start : start + len(field)] = field
    rows = result.flatten(1).unbind(0)
    step = torch.empty_like(rows[0])
    for order in (rows, rows[::-1]):
        for before, here in itertools.pairwise(order):
            torch.minimum(here, torch.add(before, 1, out=step), out=here)
    return result


def _spread(field: Tensor, start: int, size: int, far: int) -> Tensor:
    """Return ``out[x] = min_j field[j] + (x - start - j)^2`` along dimension 0, x in [0, size)."""
    source = field.flatten(1)
    rows = len(source)
    stop = start + rows
    result = source.new_full((size, source.shape[1]), far)
    result[start:stop] = source
    lowest = source.amin(0).float()
    shifted = torch.empty_like(source)
    reached = max(start, size - stop)  # before this shift, there are voxels that none has reached
    for shift in range(1, max(stop, size - start)):
        due = shift >= reached and (shift < 8 or shift % 8 == 0)  # a check costs as much as a step
        if due and (result.amax(0) - lowest).amax() <= shift**2:
            break
        torch.add(source, shift**2, out=shifted)
        ahead = result[start + shift : stop + shift]
        torch.minimum(ahead, shifted[: len(ahead)], out=ahead)
        behind = result[max(0, start - shift) : max(0, stop - shift)]
        torch.minimum(behind, shifted[rows - len(behind) :], out=behind)
    spread: Tensor = result.unflatten(1, field.shape[1:])
    return spread


def _bounding_box(masks: Tensor, margin: int = 0) -> tuple[slice, ...] | None:
    """Return the box around all masks ``(n, *S)`` plus `margin`, as slices; None if all are empty.

    The first slice takes all masks.
    """
    rest = _any(masks, 0)
    box = [slice(None)]
    for side in masks.shape[1:]:
        places = _any(rest.view(side, -1), 1).nonzero().flatten()
        if not len(places):
            return None
        first, last = int(places[0]), int(places[-1])
        box.append(slice(max(0, first - margin), min(side, last + 1 + margin)))
        rest = _any(rest, 0)
    return tuple(box)


def _any(masks: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """``masks.any(dim)``, which is slow on a CPU."""
    return masks.view(torch.uint8).amax(dim).bool()
