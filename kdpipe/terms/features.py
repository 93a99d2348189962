"""Feature maps: on one grid, normalised, and as maps of attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(
    tensor: Tensor, size: Sequence[int], mode: Literal["nearest", "linear"] = "linear"
) -> Tensor:
    """Return ``(B, c, *S)`` on the grid `size`; linear is without aligned corners."""
    if tuple(tensor.shape[2:]) == tuple(size):
        return tensor
    if mode == "nearest":
        return F.interpolate(tensor, size=tuple(size), mode="nearest")
    linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[tensor.ndim - 2]
    return F.interpolate(tensor, size=tuple(size), mode=linear, align_corners=False)


def attention(feature: Tensor, power: int = 2) -> Tensor:
    """Return the channel mean of ``|F|^power``, ``(B, 1, *S)``, divided by a constant a sample.

    The constant (detached) keeps high powers of large features finite. Whatever normalises the map
    afterwards is not changed by it, neither in value nor in gradient.
    """
    peak = feature.detach().abs().amax(dim=tuple(range(1, feature.ndim)), keepdim=True)
    return (feature / peak.clamp_min(1e-12)).abs().pow(power).mean(dim=1, keepdim=True)


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


def normalised(tensor: Tensor, dim: int | tuple[int, ...], eps: float = 1e-6) -> Tensor:
    """Return the tensor divided by its L2 norm along `dim`, plus `eps`."""
    return tensor / (torch.linalg.vector_norm(tensor, dim=dim, keepdim=True) + eps)
