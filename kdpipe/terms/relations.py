"""Relations between places or channels: nodes on a coarse grid and their similarity matrices.

A matrix over all voxels of a 48³ map would take gigabytes, so nodes are pooled to a fixed grid:
at most 16² in 2D and 8³ in 3D by default.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdpipe.terms.divergences import soft_kl
from kdpipe.terms.features import common_size, lengths, normalised, pool_to
from kdpipe.terms.pieces import pieces


def default_grid(spatial_dims: int) -> int:
    """Return the nodes a side that keep a relation matrix at 512² entries or fewer."""
    return 16 if spatial_dims == 2 else 8


def shared_nodes(
    student: Tensor, teacher: Tensor, grid: int, kind: str = "average"
) -> tuple[Tensor, Tensor]:
    """Return both features' nodes on one grid, however their own grids differ.

    Args:
        student: ``(B, c, *s)``.
        teacher: ``(B, C, *S)``.
        grid: nodes a side at most.
        kind: ``average`` or ``max``.
    """
    size = [min(grid, side) for side in common_size(student, teacher)]
    return _pooled(student, size, kind), _pooled(teacher, size, kind)


def _pooled(feature: Tensor, size: list[int], kind: str) -> Tensor:
    """The feature's average or maximum in the cells of a grid, ``(B, c, n)``."""
    if kind == "average":
        return pool_to(feature, size).flatten(2)
    pool = F.adaptive_max_pool3d if len(size) == 3 else F.adaptive_max_pool2d
    return pool(feature, size).flatten(2)


def cosine_gram(vectors: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the cosines of all pairs of columns of ``(B, c, n)``: ``(B, n, n)`` in [-1, 1]."""
    units = normalised(vectors, dim=1, eps=eps)
    return units.transpose(1, 2) @ units


def gram_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean squared difference of the scalar products of all pairs of columns.

    Where there are more columns n than rows, no ``n × n`` matrix is built:
    ``||A'A - B'B||² = ||AA'||² + ||BB'||² - 2 ||AB'||²``, in float64, as these are differences of
    large numbers.

    Args:
        first: ``(B, c, n)``.
        second: ``(B, C, n)``.
    """
    columns = first.shape[2]
    if columns <= max(first.shape[1], second.shape[1]):
        return F.mse_loss(first.transpose(1, 2) @ first, second.transpose(1, 2) @ second)
    a, b = first.double(), second.double()
    products = (a @ a.transpose(1, 2), b @ b.transpose(1, 2), a @ b.transpose(1, 2))
    ours, theirs, both = (matrix.square().sum((1, 2)) for matrix in products)
    squared = (ours + theirs - 2.0 * both).clamp_min(0.0)
    return (squared.mean() / columns**2).to(first.dtype)


def pearson_gram(rows: Tensor, eps: float = 1e-6, relative: bool = False) -> Tensor:
    """Return the Pearson correlations of all pairs of rows of ``(B, k, n)``: ``(B, k, k)``.

    Args:
        rows: ``(B, k, n)``.
        eps: is added to the root of a row's summed squares.
        relative: correlate what remains when each column's mean is taken from it.
    """
    products: Tensor = _CentredProducts.apply(rows, relative)  # type: ignore[no-untyped-call]
    power = products.diagonal(dim1=1, dim2=2)
    apart = power > 0
    norms = torch.where(apart, torch.where(apart, power, 1.0).sqrt(), 0.0) + eps
    return products / (norms.unsqueeze(1) * norms.unsqueeze(2))


class _CentredProducts(torch.autograd.Function):
    """Scalar products of all pairs of rows less their means, ``(B, k, n)`` to ``(B, k, k)``.

    Its gradient is made of centred rows, so it needs no second centring. The norms are on the
    diagonal: no row is divided. Centred rows are never written to memory, but made twice.
    """

    @staticmethod
    def forward(context: Any, rows: Tensor, relative: bool) -> Tensor:
        rows = rows.contiguous()
        means = rows.mean(dim=2, keepdim=True)
        products = rows.new_zeros(*rows.shape[:2], rows.shape[1])
        for (part,) in pieces([rows], 1):
            centred = _centred(part, means, relative)
            products += centred @ centred.transpose(1, 2)
        context.save_for_backward(rows, means)
        context.relative = relative
        return products

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        rows, means = context.saved_tensors
        slopes = gradients[0] + gradients[0].transpose(1, 2)
        if context.relative:
            slopes = slopes - slopes.mean(dim=1, keepdim=True)
        result = torch.empty_like(rows)
        for part, slope in pieces([rows, result], 1):
            torch.bmm(slopes, _centred(part, means, context.relative), out=slope)
        return result, None


def _centred(rows: Tensor, means: Tensor, relative: bool) -> Tensor:
    """Rows less their means and, if `relative`, each column less its mean."""
    rows = rows - means
    return rows.sub_(rows.mean(dim=1, keepdim=True)) if relative else rows


def relation_kl(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Return the mean over rows of KL between softmaxes of similarity matrices ``(..., m, n)``."""
    return soft_kl(student, teacher, tau, dim=-1).mean()


def pairwise_distances(vectors: Tensor) -> Tensor:
    """Return Euclidean distances of all pairs of rows of ``(n, c)``: ``(n, n)``, diagonal 0.

    The gradient of a distance of 0 is 0.
    """
    return lengths(vectors.unsqueeze(1) - vectors.unsqueeze(0), dim=-1).squeeze(-1)
