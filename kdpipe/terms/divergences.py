"""Divergences between what two networks say at each voxel.

Tensors are logits ``(B, C, *S)`` over classes (softmax) or overlapping regions (sigmoid).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_NEVER = -1e30  # a logit without probability; infinity would make 0 * inf of the gradients


def soft_kl(student: Tensor, teacher: Tensor, tau: float | Tensor, dim: int) -> Tensor:
    """Return the Kullback-Leibler divergence of softened distributions along `dim`, >= 0.

    ``sum_i q_i (log q_i - log p_i)`` with ``p = softmax(student / tau)`` and
    ``q = softmax(teacher / tau)``; `dim` is summed away. The teacher gets no gradient, a
    temperature that is a tensor does.
    """
    log_p = F.log_softmax(student / tau, dim=dim)
    log_q = F.log_softmax(teacher.detach() / tau, dim=dim)
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim)


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
    return logits.scatter(1, target.unsqueeze(1), _NEVER)


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
    chosen = logits.gather(1, target.unsqueeze(1)).squeeze(1)
    return chosen - without_target(logits, target).logsumexp(dim=1)
