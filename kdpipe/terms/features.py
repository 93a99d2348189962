"""Feature maps: on one grid, normalised, and as maps of attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_PIECE = 2**25  # elements that are resized at once, 128 MB of float32
_EXACT = (torch.float32, torch.float64)


def resize(
    tensor: Tensor, size: Sequence[int], mode: Literal["nearest", "linear"] = "linear"
) -> Tensor:
    """Return ``(B, c, *S)`` on the grid `size`; linear is without aligned corners."""
    if tuple(tensor.shape[2:]) == tuple(size):
        return tensor
    if mode == "nearest":
        return F.interpolate(tensor, size=tuple(size), mode="nearest")
    grows = tensor.ndim == 5 and tensor.shape[2:].numel() < math.prod(size)
    if grows and tensor.device.type == "cpu" and tensor.dtype in _EXACT:
        return _resize_by_axes(tensor, size)
    linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[tensor.ndim - 2]
    return F.interpolate(tensor, size=tuple(size), mode=linear, align_corners=False)


def _resize_by_axes(tensor: Tensor, size: Sequence[int]) -> Tensor:
    """Linear resizing as a matrix product an axis: on a CPU faster than torch's own in 3D.

    The weights are torch's. The last axis comes last: its product is the largest and the fastest.
    """
    for dim, side in enumerate(size, start=2):
        length = tensor.shape[dim]
        if length == side:
            continue
        unit = torch.eye(length, dtype=tensor.dtype)[None]
        weights = F.interpolate(unit, size=side, mode="linear", align_corners=False)[0]
        if dim == tensor.ndim - 1:
            return tensor @ weights
        rows = tensor.flatten(dim + 1).flatten(0, dim - 1)
        shape = (*tensor.shape[:dim], side, *tensor.shape[dim + 1 :])
        tensor = (weights.T @ rows).view(shape)
    return tensor


def pool_to(tensor: Tensor, size: Sequence[int]) -> Tensor:
    """Return ``(B, c, *S)`` averaged into the cells of a grid of `size`, no side longer than S."""
    if tuple(tensor.shape[2:]) == tuple(size):
        return tensor
    even = all(side % cells == 0 for side, cells in zip(tensor.shape[2:], size, strict=True))
    if even and tensor.device.type == "cpu" and tensor.dtype in _EXACT:
        return _pool_by_axes(tensor, size)
    pool: Callable[..., Tensor] = (
        F.adaptive_avg_pool3d if tensor.ndim == 5 else F.adaptive_avg_pool2d
    )
    return pool(tensor, list(size))


def _pool_by_axes(tensor: Tensor, size: Sequence[int]) -> Tensor:
    """Averages along one axis after the other: on a CPU the gradient takes a third of the time."""
    for dim, cells in enumerate(size, start=2):
        if tensor.shape[dim] != cells:
            tensor = tensor.unflatten(dim, (cells, -1)).mean(dim + 1)
    return tensor


def common_size(first: Tensor, second: Tensor) -> list[int]:
    """Return the shorter of two ``(B, c, *S)`` tensors' sides along each axis."""
    return [min(sides) for sides in zip(first.shape[2:], second.shape[2:], strict=True)]


def attention(feature: Tensor, power: int = 2) -> Tensor:
    """Return the channel mean of ``|F|^power``, ``(B, 1, *S)``, divided by a constant a sample.

    The constant (detached) keeps high powers of large features finite. Whatever normalises the map
    afterwards is not changed by it, neither in value nor in gradient.
    """
    peak = feature.detach().abs().amax(dim=tuple(range(1, feature.ndim)), keepdim=True)
    scaled = feature / peak.clamp_min(1e-12)
    return _raised(scaled, power).mean(dim=1, keepdim=True)


def _raised(tensor: Tensor, power: int) -> Tensor:
    """``|F|^power``; even powers by way of squares, as torch is slow beyond the third."""
    if power % 2:
        return tensor.abs().pow(power)
    square = tensor.square()
    return square if power == 2 else square.pow(power // 2)


def resized_attention(feature: Tensor, size: Sequence[int], power: int = 2) -> Tensor:
    """Return `attention` of the feature on the grid `size` (linear), ``(B, 1, *size)``.

    The power is taken after resizing, so channels cannot be reduced before. Where they would not
    all fit the finer grid at once, they are taken a few at a time.
    """
    width = max(1, _PIECE // (feature.shape[0] * math.prod(size)))
    if width >= feature.shape[1] or tuple(feature.shape[2:]) == tuple(size):
        return attention(resize(feature, size), power)
    peak = feature.detach().abs().amax(dim=tuple(range(1, feature.ndim)), keepdim=True)
    pieces = torch.split(feature / peak.clamp_min(1e-12), width, dim=1)
    total = torch.zeros(len(feature), 1, *size, dtype=feature.dtype, device=feature.device)
    for piece in pieces:
        total = total + _raised(resize(piece, size), power).sum(dim=1, keepdim=True)
    return total / feature.shape[1]


def unit_map(attention_map: Tensor) -> Tensor:
    """Return a map ``(B, 1, *S)`` as unit vectors ``(B, V)`` over its voxels (L2, eps 1e-12)."""
    return F.normalize(attention_map.flatten(1), dim=1)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared L2 distance of two unit maps, mean over the batch, in [0, 2].

    It is a sum over voxels, hence independent of the patch size. AT's published mean over voxels is
    this divided by the number of voxels.

    Args:
        student: `attention` map ``(B, 1, *S)``.
        teacher: map on the same grid; gets no gradient.
    """
    difference = unit_map(student) - unit_map(teacher.detach())
    return difference.pow(2).sum(1).mean()


def lengths(tensor: Tensor, dim: int) -> Tensor:
    """Return the L2 norm along `dim`, which stays with size 1; its gradient at 0 is 0.

    Over channels, on a CPU, torch's `vector_norm` takes ten times as long.
    """
    squared = tensor.square().sum(dim, keepdim=True)
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)


def normalised(tensor: Tensor, dim: int, eps: float = 1e-6) -> Tensor:
    """Return the tensor divided by its L2 norm along `dim`, plus `eps`."""
    return tensor / (lengths(tensor, dim) + eps)


def unit_scale(feature: Tensor, constant: bool = True) -> Tensor:
    """Return ``(B, c, *S)`` divided by each sample's root mean square.

    Some networks' features are raw sums of many layers. Heads on them would start with logits, and
    learn with steps, that grow with the depth of the network.

    Args:
        feature: ``(B, c, *S)``.
        constant: the root mean square gets no gradient. Not for what is itself regressed: an error
            would pull it towards zero for ever, which changes nothing in the error.
    """
    given = feature.detach() if constant else feature
    square = given.square().mean(dim=tuple(range(1, feature.ndim)), keepdim=True)
    return feature / (square + 1e-6).sqrt()


def channel_standardised(feature: Tensor, eps: float = 1e-5) -> Tensor:
    """Return ``(B, c, *S)`` with mean 0 and variance 1 over the voxels of each channel and sample.

    Without it, what all places have in common dominates their cosines. A channel that is constant
    becomes 0.
    """
    dims = tuple(range(2, feature.ndim))
    centred = feature - feature.mean(dims, keepdim=True)
    return centred / (centred.square().mean(dims, keepdim=True) + eps).sqrt()
