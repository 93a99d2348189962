"""Divergences between what two networks say at each voxel.

Tensors are logits ``(B, C, *S)`` over classes (softmax) or overlapping regions (sigmoid).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdpipe.terms.pieces import exponential, pieces

NEVER = -1e30  # a logit without probability; infinity would make 0 * inf of the gradients


def soft_kl(student: Tensor, teacher: Tensor, tau: float | Tensor, dim: int) -> Tensor:
    """Return the Kullback-Leibler divergence of softened distributions along `dim`, >= 0.

    ``sum_i q_i (log q_i - log p_i)`` with ``p = softmax(student / tau)`` and
    ``q = softmax(teacher / tau)``; `dim` is summed away. The teacher gets no gradient, a
    temperature that is a tensor does.
    """
    on_cpu = student.device.type == "cpu"  # elsewhere a temperature would have to be waited for
    if not isinstance(tau, Tensor) or (on_cpu and tau.numel() == 1):
        divergence: Tensor = _SoftKl.apply(student, teacher.detach(), tau, dim)  # type: ignore[no-untyped-call]
        return divergence
    log_p = F.log_softmax(student / tau, dim=dim)
    log_q = F.log_softmax(teacher.detach() / tau, dim=dim)
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim)


class _SoftKl(torch.autograd.Function):
    """`soft_kl` with its gradient in closed form, (p - q) / tau, in half as many passes."""

    @staticmethod
    def forward(
        context: Any, student: Tensor, teacher: Tensor, tau: float | Tensor, dim: int
    ) -> Tensor:
        dim %= student.ndim
        learned = isinstance(tau, Tensor)
        context.tau, context.dim, warmth = tau, dim, float(tau)
        ours, theirs = student.contiguous(), teacher.contiguous()
        difference = torch.empty_like(ours)
        divergence = ours.new_empty((*ours.shape[:dim], *ours.shape[dim + 1 :]))
        by_tau = torch.empty_like(divergence if learned else divergence[:0])
        tensors = [ours, theirs, difference, divergence, *([by_tau] if learned else [])]
        for a, b, slope, total, *by_warmth in pieces(tensors, dim):
            log_p, log_q = F.log_softmax(a / warmth, dim=dim), F.log_softmax(b / warmth, dim=dim)
            q = exponential(log_q)
            parts = log_q.sub_(log_p).mul_(q)
            torch.sum(parts, dim, out=total)
            torch.sub(exponential(log_p), q, out=slope)
            if by_warmth:
                pull = (slope * a).add_((parts - q * total.unsqueeze(dim)).mul_(b))
                torch.sum(pull.mul_(-1.0 / warmth**2), dim, out=by_warmth[0])
        context.save_for_backward(difference, by_tau)
        return divergence

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        difference, by_tau = context.saved_tensors
        tau = context.tau
        factor = (gradients[0] / float(tau)).unsqueeze(context.dim)
        learned = (by_tau * gradients[0]).sum().view_as(tau) if isinstance(tau, Tensor) else None
        return difference * factor, None, learned, None


def bernoulli_kl(student: Tensor, teacher: Tensor, tau: float | Tensor) -> Tensor:
    """Return the divergence of the Bernoulli distributions of each element, >= 0, same shape.

    Probabilities are ``sigmoid(logit / tau)``. The teacher gets no gradient.
    """
    student, teacher = student / tau, teacher.detach() / tau
    q = teacher.sigmoid()
    positive = F.logsigmoid(teacher) - F.logsigmoid(student)
    negative = F.logsigmoid(-teacher) - F.logsigmoid(-student)
    return q * positive + (1.0 - q) * negative


def logit_kl(student: Tensor, teacher: Tensor, tau: float | Tensor, regions: bool) -> Tensor:
    """Return the softened divergence at each voxel, ``(B, *S)``, >= 0.

    Over classes it is `soft_kl` of the softmax, over regions the sum of their `bernoulli_kl`.

    Args:
        student: logits ``(B, C, *S)``.
        teacher: logits ``(B, C, *S)``; gets no gradient.
        tau: temperature, > 0; a tensor must broadcast against the logits.
        regions: whether the channels are overlapping regions.
    """
    if regions:
        return bernoulli_kl(student, teacher, tau).sum(1)
    return soft_kl(student, teacher, tau, dim=1)


def probabilities(logits: Tensor, regions: bool, tau: float = 1.0) -> Tensor:
    """Return softmax (classes) or sigmoid (regions) of ``logits / tau``, ``(B, C, *S)``."""
    return (logits / tau).sigmoid() if regions else (logits / tau).softmax(dim=1)


def without_target(logits: Tensor, target: Tensor) -> Tensor:
    """Return logits whose softmax is that of the other classes: the target has probability 0.

    Args:
        logits: ``(B, C, *S)``, float32 or wider; the target's gets no gradient.
        target: labels ``(B, *S)``.
    """
    return logits.scatter(1, target.unsqueeze(1), NEVER)


def target_margin(logits: Tensor, target: Tensor, regions: bool) -> Tensor:
    """Return the logit of the target's probability against all the rest: its sigmoid is p_target.

    Args:
        logits: ``(B, C, *S)``, float32 or wider.
        target: labels ``(B, *S)``, or regions ``(B, C, *S)``.
        regions: whether the channels are overlapping regions.

    Returns:
        ``(B, *S)``; for regions ``(B, C, *S)``, each against its own complement.
    """
    if regions:
        return torch.where(target > 0, logits, -logits)
    margin: Tensor = _TargetMargin.apply(logits, target)  # type: ignore[no-untyped-call]
    return margin


class _TargetMargin(torch.autograd.Function):
    """`target_margin` of classes; its gradient is 1 at the target, minus a softmax of the rest."""

    @staticmethod
    def forward(context: Any, logits: Tensor, target: Tensor) -> Tensor:
        logits, labels = logits.contiguous(), target.contiguous()
        shares, margin = torch.empty_like(logits), torch.empty_like(logits[:, 0])
        for scores, chosen, share, result in pieces([logits, labels, shares, margin], 1):
            place = chosen.unsqueeze(1)
            others = without_target(scores, chosen)
            log_share = others.log_softmax(dim=1)
            rest = others.amax(1) - log_share.amax(1)  # the logarithm of their summed exponentials
            torch.sub(scores.gather(1, place).squeeze(1), rest, out=result)
            exponential(log_share, out=share)
        context.save_for_backward(shares, labels)
        return margin

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        shares, labels = context.saved_tensors
        slope = gradients[0].unsqueeze(1)
        return (shares * -slope).scatter_(1, labels.unsqueeze(1), slope), None
