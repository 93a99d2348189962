"""Divergences between what two networks say at each voxel.

Tensors are logits ``(B, C, *S)`` over classes (softmax) or overlapping regions (sigmoid).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


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
