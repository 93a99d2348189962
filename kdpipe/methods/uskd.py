r"""USKD: soft labels without a teacher, for the true class and, by Zipf's law, for the others.

Paper: Yang, Zeng, Li, Zhang, Yuan, Li: From Knowledge Distillation to Self-Knowledge Distillation:
    A Unified Approach with Normalized Loss and Customized Soft Labels, ICCV 2023
    (arXiv:2303.13005), applied voxel by voxel.

Idea: The true class gets a label around 1 that is higher where the student is surer than on
    average. The other classes get fixed shares 1, 1/2, 1/3, ... in the order in which the student
    and a weak head on a middle feature rank them. The weak head learns from smoothed labels.

Equation:

.. math::

    L = w_{tar}\,\overline{-P \log p_y}
      + w_{non}\,\overline{-\sum_{k \neq y} \zeta_k \log \hat p_k}
      + w_{weak}\,\overline{CE_{\epsilon}(y, u)},\quad P = p_y^2 + 1 - \overline{p_y^2},\quad
      \zeta_k \propto 1/rank_k(\hat p + \hat u)

    p are the student's probabilities, u the weak head's; a hat is a softmax over the classes other
    than y; the bar is the mean over the batch's voxels. P and the shares get no gradient.

Taps: logits, and the coarsest decoder stage (``tap``; ``bottleneck`` where there is none); the weak
    logits are interpolated to the patch.

Provenance:
- stated: both kinds of soft labels, Zipf's law over ranks, weak supervision of a middle layer.
- code: weights 1, 0.1, 0.005 (ImageNet; 0.1, 0.1, 0.1 on CIFAR), label smoothing 0.1, squares in P
  (yzd-v/cls_KD).
- ours: all of it at each voxel, the weak head a 1-wide convolution of the feature scaled to a root
  mean square of 1.

Deviations: The code adds logarithms where it ranks the student's probabilities, and counts the true
    class among the ranks before it drops it; here normalised probabilities of the other classes
    are added and ranked. Classes of equal probability share a rank. With two classes, or
    overlapping regions (each against its complement, summed in the target term), there is nothing
    to rank: the term of the others is left out, with a warning, and the weak head is deep
    supervision only. With ``weight_weak: 0`` there is no weak head to rank by.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.methods._stages import decoder_stages
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.adapters import pointwise
from kdpipe.terms.divergences import target_margin, without_target
from kdpipe.terms.features import resize, unit_scale
from kdpipe.terms.pieces import pieces
from kdpipe.terms.weights import weighted

_logger = logging.getLogger(__name__)


class Params(Parameters):
    """Tap of the weak head, label smoothing and weights."""

    tap: str = Field("", description="of the weak head; empty: the coarsest decoder stage")
    smoothing: float = Field(0.1, ge=0, lt=1, description="of the weak head's labels")
    weight_target: float = Field(1.0, ge=0, description="of the true class")
    weight_nontarget: float = Field(0.1, ge=0, description="of the other classes")
    weight_weak: float = Field(0.005, ge=0, description="of the weak head's cross-entropy")


def target_loss(logits: Tensor, target: Tensor, regions: bool = False) -> Tensor:
    """Return the cross-entropy with the smoothed label of the true class, mean over voxels.

    Args:
        logits: ``(B, C, *S)``.
        target: labels ``(B, *S)``, or regions ``(B, C, *S)``.
        regions: whether the channels are overlapping regions, which are summed.
    """
    margin = target_margin(logits, target, regions)
    square = margin.detach().sigmoid().square()
    entropy = -(square + 1.0 - square.mean()) * F.logsigmoid(margin)
    return entropy.sum(1).mean() if regions else entropy.mean()


@torch.no_grad()
def zipf_labels(logits: Tensor, weak: Tensor | None, target: Tensor) -> Tensor:
    """Return the soft labels of the other classes: 1/rank, 0 for the true one, in sum 1.

    Args:
        logits: ``(B, C, *S)`` of three classes or more.
        weak: logits ``(B, C, *S)`` that help to rank, or None.
        target: labels ``(B, *S)``.
    """
    shares = torch.empty_like(logits, memory_format=torch.contiguous_format)
    helpers = [] if weak is None else [weak]
    for scores, labels, result, *others in pieces([logits, target, shares, *helpers], 1):
        score = without_target(scores, labels).softmax(dim=1)
        for other in others:
            score += without_target(other, labels).softmax(dim=1)
        rank, ahead = torch.ones_like(score), torch.empty_like(score)
        for rival in score.unbind(dim=1):  # counted, as sorting takes indices of 64 bits
            rank += torch.gt(rival.unsqueeze(1), score, out=ahead)
        part = rank.reciprocal_().scatter_(1, labels.unsqueeze(1), 0.0)
        torch.div(part, part.sum(dim=1, keepdim=True), out=result)
    return shares


def nontarget_loss(logits: Tensor, weak: Tensor | None, target: Tensor) -> Tensor:
    """Return the cross-entropy of the other classes with Zipf's shares, mean over voxels.

    Args:
        logits: ``(B, C, *S)`` of three classes or more; those of the target get no gradient.
        weak: logits ``(B, C, *S)`` that help to rank, or None; get no gradient.
        target: labels ``(B, *S)``.
    """
    others = without_target(logits, target)
    return F.cross_entropy(others, zipf_labels(logits, weak, target))


def weak_loss(weak: Tensor, target: Tensor, smoothing: float, regions: bool = False) -> Tensor:
    """Return the cross-entropy of the weak head with smoothed labels, mean over voxels.

    Args:
        weak: logits ``(B, C, *S)``.
        target: labels ``(B, *S)``, or regions ``(B, C, *S)``.
        smoothing: share of the uniform distribution in the labels, in [0, 1).
        regions: whether the channels are overlapping regions, which are summed.
    """
    if not regions:
        return F.cross_entropy(weak, target, label_smoothing=smoothing)
    labels = (1.0 - smoothing) * target.to(weak.dtype) + 0.5 * smoothing
    entropy = F.binary_cross_entropy_with_logits(weak, labels, reduction="none")
    return entropy.sum(1).mean()


class Method(Distiller):
    """Customised soft labels at every voxel."""

    needs_teacher: ClassVar[bool] = False
    floor: ClassVar[float | None] = None  # cross-entropies with the labels

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        self.tap = params.tap or (decoder_stages(context, "student") or ("bottleneck",))[0]
        self.weight_nontarget: float = params.weight_nontarget
        if self.weight_nontarget and (self.regions or context.num_classes == 2):
            what = "overlapping regions" if self.regions else "two classes"
            _logger.warning("uskd: with %s there are no other classes to rank", what)
            self.weight_nontarget = 0.0
        self.head = None
        if params.weight_weak:
            inputs = context.tap("student", self.tap).channels
            self.head = pointwise(context.spatial_dims, inputs, context.num_classes, bias=True)

    def student_taps(self) -> tuple[str, ...]:
        """The weak head's feature."""
        return (self.tap,) if self.head is not None else ()

    def losses(
        self, student: Outputs, teacher: None, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``target``, ``nontarget`` and ``weak``."""
        params, logits = self.params, student.logits
        weak = None
        if self.head is not None:
            weak = resize(self.head(unit_scale(student.features[self.tap])), logits.shape[2:])

        def from_weak() -> Tensor:
            assert weak is not None  # there is a head where this term has a weight
            return weak_loss(weak, target, params.smoothing, self.regions)

        return weighted(
            target=(params.weight_target, lambda: target_loss(logits, target, self.regions)),
            nontarget=(self.weight_nontarget, lambda: nontarget_loss(logits, weak, target)),
            weak=(params.weight_weak, from_weak),
        )
