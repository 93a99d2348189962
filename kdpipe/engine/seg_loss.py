"""The segmentation loss of every training: soft Dice plus cross-entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SMOOTH = 1e-5


def dice_ce(logits: Tensor, target: Tensor) -> Tensor:
    """Return soft Dice loss plus cross-entropy, a scalar in float32.

    Equals MONAI's ``DiceCELoss(to_onehot_y=True, softmax=True)``, the loss of ACF-BCKD: the
    background counts as a class, Dice is taken per sample and class and then averaged.

    Args:
        logits: ``(B, C, *S)``, any float type; computed in float32.
        target: labels ``(B, *S)``, integers in [0, C).
    """
    logits = logits.float()
    dims = tuple(range(2, logits.ndim))
    probability = logits.softmax(dim=1)
    inside = torch.zeros_like(logits).scatter_(1, target.unsqueeze(1), 1.0)
    overlap = (probability * inside).sum(dims)
    total = probability.sum(dims) + inside.sum(dims)
    dice = 1.0 - (2.0 * overlap + _SMOOTH) / (total + _SMOOTH)
    return dice.mean() + F.cross_entropy(logits, target)
