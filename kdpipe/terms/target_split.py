"""The label's class against the rest, and the rest among themselves, from one softmax a network.

Methods that split the target from the other classes need both. Each alone takes a softmax over the
other classes of student and teacher; here they share it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdpipe.terms.divergences import NEVER
from kdpipe.terms.pieces import exponential, pieces


class Split(NamedTuple):
    """Maps ``(B, *S)`` of softened logits; only `divergence` and `margin` have gradients.

    `divergence` is KL(teacher || student) over the other classes and `entropy` the teacher's;
    `margin` and `teacher_margin` are logits of the target's probability.
    """

    divergence: Tensor
    margin: Tensor
    entropy: Tensor
    teacher_margin: Tensor


def split_at_target(student: Tensor, teacher: Tensor, target: Tensor, tau: float) -> Split:
    """Return what `soft_kl` of `without_target` and `target_margin` give for logits over `tau`.

    Args:
        student: logits ``(B, C, *S)`` of classes, float32 or wider.
        teacher: logits ``(B, C, *S)``; gets no gradient.
        target: labels ``(B, *S)``.
        tau: temperature, > 0.
    """
    return Split(*_SplitAtTarget.apply(student, teacher.detach(), target, tau))  # type: ignore[no-untyped-call]


def _others(logits: Tensor, labels: Tensor, tau: float, margin: Tensor) -> Tensor:
    """Log-probabilities of the other classes; writes the target's `margin`."""
    place = labels.unsqueeze(1)
    soft = logits / tau
    chosen = soft.gather(1, place).squeeze(1)
    others = soft.scatter_(1, place, NEVER)  # as `without_target` does, in place
    log_share = others.log_softmax(dim=1)
    rest = others.amax(1) - log_share.amax(1)  # the logarithm of their summed exponentials
    torch.sub(chosen, rest, out=margin)
    return log_share


class _SplitAtTarget(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, student: Tensor, teacher: Tensor, target: Tensor, tau: float
    ) -> tuple[Tensor, ...]:
        ours, theirs, labels = student.contiguous(), teacher.contiguous(), target.contiguous()
        shares, difference = torch.empty_like(ours), torch.empty_like(ours)
        maps = [torch.empty_like(ours[:, 0]) for _ in range(4)]
        for a, b, chosen, share, apart, kl, margin, entropy, taught in pieces(
            [ours, theirs, labels, shares, difference, *maps], 1
        ):
            log_p = _others(a, chosen, tau, margin)
            log_q = _others(b, chosen, tau, taught)
            q = exponential(log_q)
            torch.sum(q * log_q, 1, out=entropy)
            torch.sum(log_q.sub_(log_p).mul_(q), 1, out=kl)
            exponential(log_p, out=share)
            torch.sub(share, q, out=apart)
        context.save_for_backward(shares, difference, labels)
        context.tau = tau
        context.mark_non_differentiable(*maps[2:])
        maps[2].neg_()
        return tuple(maps)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        shares, difference, labels = context.saved_tensors
        by_kl, by_margin = ((slope / context.tau).unsqueeze(1) for slope in gradients[:2])
        result = (difference * by_kl).sub_(shares * by_margin)
        return result.scatter_(1, labels.unsqueeze(1), by_margin), None, None, None
