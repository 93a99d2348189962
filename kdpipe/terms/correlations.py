"""How far two predictions are from being correlated, with the gradient in closed form."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdpipe.terms.pieces import pieces

_FLAT = 1e-6  # a smaller standard deviation is one of rounding errors


def decorrelation(ours: Tensor, theirs: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return one minus the mean of Pearson's correlations along `dims`, in [0, 2].

    Where one side is constant the correlation counts as 0 and has no gradient.

    Args:
        ours: ``(B, C, *S)``.
        theirs: the same shape.
        dims: those that a correlation runs along; the mean is over all others.
    """
    ours, theirs = (p - p.mean(dims, keepdim=True) for p in (ours, theirs))
    powers = ours.square().mean(dims), theirs.square().mean(dims)
    correlation, _, _ = _correlation(*powers, (ours * theirs).mean(dims))
    return 1.0 - correlation.mean()


def softmax_decorrelations(student: Tensor, teacher: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Return the `decorrelation` of softmaxes along the classes, and along batch and voxels.

    Args:
        student: logits ``(B, C, *S)``.
        teacher: logits ``(B, C, *S)``; gets no gradient.
        tau: temperature, > 0.
    """
    inter, intra = _SoftmaxDecorrelations.apply(student, teacher.detach(), tau)  # type: ignore[no-untyped-call]
    return inter, intra


def _correlation(power: Tensor, theirs: Tensor, product: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Correlations from the means of squares and products, and their slopes.

    The gradient of the correlation, but for the mean's number of elements, is the first slope
    times their centred value, less the second times ours.
    """
    flat = torch.minimum(power, theirs) < _FLAT**2
    scale = (power * theirs).masked_fill(flat, math.inf).rsqrt()
    correlation = product * scale
    return correlation, scale, correlation / power.masked_fill(flat, 1.0)


class _SoftmaxDecorrelations(torch.autograd.Function):
    """Both terms in three passes through memory, in pieces that stay in a core's cache."""

    @staticmethod
    def forward(
        context: Any, student: Tensor, teacher: Tensor, tau: float
    ) -> tuple[Tensor, Tensor]:
        student, teacher = student.contiguous(), teacher.contiguous()
        ours, theirs = torch.empty_like(student), torch.empty_like(student)
        pull, push, inter = (torch.empty_like(student[:, 0]) for _ in range(3))
        count = student.shape[1]
        totals = student.new_zeros(2, student.shape[0], count, dtype=torch.float64)
        tensors = [student, teacher, ours, theirs, pull, push, inter]
        for a, b, p, q, first, second, correlation in pieces(tensors, 1):
            for logits, share, total in ((a, p, totals[0]), (b, q, totals[1])):
                torch.sub(F.softmax(logits / tau, dim=1), 1.0 / count, out=share)
                total += share.flatten(2).sum(2)
            found = _correlation(*((x * y).mean(1) for x, y in ((p, p), (q, q), (p, q))))
            for result, value in zip((correlation, first, second), found, strict=True):
                result.copy_(value)
        places = inter.numel()
        means = (totals.sum(1) / places).to(student.dtype)
        intra, *slopes = _correlation(*_moments(ours, theirs, means))
        context.save_for_backward(ours, theirs, pull, push, means, *slopes)
        context.tau = tau
        return 1.0 - inter.mean(), 1.0 - intra.mean()

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        ours, theirs, pull, push, means, *slopes = context.saved_tensors
        count, places = ours.shape[1], pull.numel()
        inter, intra = (gradient / (count * places * context.tau) for gradient in gradients)
        of_theirs, of_ours = (-intra * slopes[0])[:, None], (intra * slopes[1])[:, None]
        offset = -(of_theirs * means[1][:, None] + of_ours * means[0][:, None])
        result = torch.empty_like(ours)
        for p, q, first, second, slope in pieces([ours, theirs, pull, push, result], 1):
            wide = [first.flatten(1).unsqueeze(1) * -inter, second.flatten(1).unsqueeze(1) * inter]
            shares, others = p.flatten(2), q.flatten(2)
            pulled = (wide[0] + of_theirs).mul_(others)
            pulled.addcmul_(wide[1] + of_ours, shares).add_(offset)
            chances = shares + 1.0 / count
            mean = (pulled * chances).sum(1, keepdim=True)
            slope.copy_(pulled.sub_(mean).mul_(chances).view_as(slope))
        return result, None, None


def _moments(ours: Tensor, theirs: Tensor, means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means over batch and voxels of squares and products of what is centred, ``(C,)`` each."""
    sums = means.new_zeros(3, ours.shape[1], dtype=torch.float64)
    for p, q in pieces([ours, theirs], 1):
        a, b = p.flatten(2) - means[0][:, None], q.flatten(2) - means[1][:, None]
        for total, pair in zip(sums, ((a, a), (b, b), (a, b)), strict=True):
            total += torch.einsum("bcv,bcv->c", *pair)
    first, second, both = (sums / (ours.numel() // ours.shape[1])).to(ours.dtype)
    return first, second, both
