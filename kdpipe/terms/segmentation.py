"""The supervised losses: every training has one, and auxiliary heads of methods share it.

All take logits ``(B, C, *S)`` of any float type and compute in float32 or wider. The target is
integers ``(B, *S)`` in [0, C), or 0 and 1 in ``(B, C, *S)`` for overlapping regions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdpipe.terms.pieces import exponential, pieces

_SMOOTH = 1e-5


def dice_ce(logits: Tensor, target: Tensor) -> Tensor:
    """Return soft Dice loss plus cross-entropy, a scalar.

    Equals MONAI's ``DiceCELoss(to_onehot_y=True, softmax=True)``, the loss of ACF-BCKD: the
    background counts as a class, Dice is taken per sample and class and then averaged. For regions
    it is ``DiceLoss(sigmoid=True)`` plus binary cross-entropy, mean over voxels and regions;
    ``DiceCELoss(sigmoid=True)`` is that for one region only, with more it takes the cross-entropy
    of a softmax, which makes overlapping regions exclude one another.

    Args:
        logits: ``(B, C, *S)``.
        target: labels ``(B, *S)``, or regions ``(B, C, *S)``.
    """
    logits = _wide(logits)
    if _is_regions(logits, target):
        entropy = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))
    elif logits.device.type == "cpu":
        loss: Tensor = _DiceOfClasses.apply(logits, target, True)  # type: ignore[no-untyped-call]
        return loss
    else:
        entropy = F.cross_entropy(logits, target)
    return dice(logits, target) + entropy


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """Return the soft Dice loss alone, as ACF-BCKD trains on BraTS; a scalar.

    Equals MONAI's ``DiceLoss``, with ``to_onehot_y=True, softmax=True`` for classes and with
    ``sigmoid=True`` for regions.

    Args:
        logits: ``(B, C, *S)``.
        target: labels ``(B, *S)``, or regions ``(B, C, *S)``.
    """
    logits = _wide(logits)
    if _is_regions(logits, target):
        return _dice(logits.sigmoid(), target.to(logits.dtype)).mean()
    if logits.device.type == "cpu":
        loss: Tensor = _DiceOfClasses.apply(logits, target, False)  # type: ignore[no-untyped-call]
        return loss
    inside = torch.zeros_like(logits).scatter_(1, target.unsqueeze(1), 1.0)
    return _dice(logits.softmax(dim=1), inside).mean()


def focal_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Return half the focal plus half the foreground Dice loss, as HLFD and EMKD train.

    Args:
        logits: ``(B, C, *S)``.
        target: labels ``(B, *S)``, or regions ``(B, C, *S)``.
    """
    return 0.5 * focal(logits, target) + 0.5 * foreground_dice(logits, target)


def focal(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Return the focal loss, mean over voxels (and regions).

    Source: Lin et al., ICCV 2017, with the modulating factor ``(1 - p_t)^gamma`` detached, as in
    HLFD's code.

    Args:
        logits: ``(B, C, *S)``.
        target: labels ``(B, *S)``, or regions ``(B, C, *S)``.
        gamma: >= 0; 0 is the cross-entropy.
    """
    logits = _wide(logits)
    if _is_regions(logits, target):
        entropy = F.binary_cross_entropy_with_logits(
            logits, target.to(logits.dtype), reduction="none"
        )
    else:
        entropy = F.cross_entropy(logits, target, reduction="none")
    return ((1.0 - torch.exp(-entropy.detach())) ** gamma * entropy).mean()


def foreground_dice(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """Return the soft Dice loss of the foreground over the whole batch, mean over its classes.

    Source: HLFD's code, where there is one foreground class. Deviation: with more, each class has
    its own Dice.

    Args:
        logits: ``(B, C, *S)``.
        target: labels ``(B, *S)``, or regions ``(B, C, *S)``.
        smooth: added to numerator and denominator.
    """
    logits = _wide(logits)
    if _is_regions(logits, target):
        probability, inside = logits.sigmoid(), target.to(logits.dtype)
    else:
        probability = logits.softmax(dim=1)[:, 1:]
        inside = torch.zeros_like(logits).scatter_(1, target.unsqueeze(1), 1.0)[:, 1:]
    dims = (0, *range(2, logits.ndim))
    return _dice(probability, inside, smooth, dims).mean()


#: name in the configuration -> loss
SEGMENTATION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dice_ce": dice_ce,
    "dice": dice,
    "focal_dice": focal_dice,
}


class _DiceOfClasses(torch.autograd.Function):
    """Dice loss of a softmax, with or without cross-entropy, and its gradient in closed form.

    Memory is what a CPU waits for here: one softmax serves both losses, and no one-hot target is
    written. On a GPU the sums by class would not be the same in each run.
    """

    @staticmethod
    def forward(context: Any, logits: Tensor, target: Tensor, entropy: bool) -> Tensor:
        samples, classes = logits.shape[:2]
        scores, labels = logits.flatten(2).contiguous(), target.flatten(1).unsqueeze(1)
        p, log_chosen = torch.empty_like(scores), torch.empty_like(scores[:, :1])
        total = scores.new_zeros(samples, classes, dtype=torch.float64)
        for part, place, share, sure in pieces([scores, labels, p, log_chosen], 1):
            log_p = part.log_softmax(dim=1)
            torch.gather(log_p, 1, place, out=sure)
            total += exponential(log_p, out=share).sum(2)
        chosen = log_chosen.exp()
        places = (labels.squeeze(1) + classes * torch.arange(samples).unsqueeze(1)).flatten()
        overlap = torch.bincount(places, chosen.flatten().double(), samples * classes)
        total += torch.bincount(places, minlength=samples * classes).view_as(total)
        numerator, denominator = 2.0 * overlap.view(total.shape) + _SMOOTH, total + _SMOOTH
        context.save_for_backward(p, chosen, labels, numerator, denominator)
        context.shape, context.entropy = logits.shape, entropy
        loss = (1.0 - numerator / denominator).mean().to(logits.dtype)
        return loss - log_chosen.mean() if entropy else loss

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        p, chosen, labels, numerator, denominator = context.saved_tensors
        share = 1.0 / chosen.numel() if context.entropy else 0.0
        # slopes of the Dice loss: by each probability of a class, and more where it is the label
        everywhere = (numerator / denominator.square() / denominator.numel()).to(p.dtype)
        inside = (-2.0 / denominator / denominator.numel()).to(p.dtype)
        everywhere, inside, share = (part * gradients[0] for part in (everywhere, inside, share))
        slopes = torch.empty_like(p)
        for part, sure, place, slope in pieces([p, chosen, labels, slopes], 1):
            at_label = inside.gather(1, place.squeeze(1)).unsqueeze(1) * sure
            mean = torch.bmm(everywhere.unsqueeze(1), part) + at_label
            torch.mul(everywhere.unsqueeze(2) + share - mean, part, out=slope)
            slope.scatter_add_(1, place, at_label - share)
        return slopes.view(context.shape), None, None


def _dice(
    probability: Tensor, inside: Tensor, smooth: float = _SMOOTH, dims: tuple[int, ...] = ()
) -> Tensor:
    dims = dims or tuple(range(2, probability.ndim))
    overlap = (probability * inside).sum(dims)
    total = probability.sum(dims) + inside.sum(dims)
    return 1.0 - (2.0 * overlap + smooth) / (total + smooth)


def _is_regions(logits: Tensor, target: Tensor) -> bool:
    return target.ndim == logits.ndim


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
