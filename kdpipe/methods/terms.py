"""Pieces that several methods share. All take logits or features ``(B, C, *S)``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_kl(student: Tensor, teacher: Tensor, tau: float, dim: int) -> Tensor:
    """Return the Kullback-Leibler divergence of softened distributions along `dim`, >= 0.

    ``sum_i q_i (log q_i - log p_i)`` with ``p = softmax(student / tau)`` and
    ``q = softmax(teacher / tau)``; `dim` is summed away. The teacher gets no gradient.
    """
    log_p = F.log_softmax(student / tau, dim=dim)
    log_q = F.log_softmax(teacher.detach() / tau, dim=dim)
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim)
