r"""NKD: normalised KD; a soft label for the target, and renormalised soft labels for the rest.

Paper: Yang, Zeng, Li, Zhang, Yuan, Li: From Knowledge Distillation to Self-Knowledge Distillation:
    A Unified Approach with Normalized Loss and Customized Soft Labels, ICCV 2023
    (arXiv:2303.13005), its NKD, voxel by voxel.

Idea: The non-target probabilities of student and teacher do not sum to the same, so their
    cross-entropy cannot be met. Both are normalised to 1 first; the teacher's confidence in the
    label weights the label's own cross-entropy.

Equation:

.. math::

    L = -\frac{1}{B|S|}\sum_{b,v} \Big( w_t\,p^t_y \log p^s_y +
        w_n\,\tau^2 \sum_{c \ne y} \hat p^t_c \log \hat p^s_c \Big),\quad
        \hat p = softmax_{c \ne y}(z/\tau)

Taps: logits of both, and the labels.

Provenance:
- stated: both parts, the target's without temperature.
- code: tau 1, weights 1 and 1.5, mean over voxels (the authors' code and ACF-BCKD).
- ours: the target's probability is computed from the margin of its logit, hence finite for any
  logits.

Deviations: With two classes, or for overlapping regions (each a problem of two classes), the one
    other class has a normalised probability of 1 and its term is 0: it is left out, with a
    warning. The target's part of regions is summed over the regions of a voxel.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.divergences import target_margin, without_target
from kdpipe.terms.target_split import Split, split_at_target
from kdpipe.terms.weights import weighted

_logger = logging.getLogger(__name__)


class Params(Parameters):
    """Temperature and weights."""

    tau: float = Field(1.0, gt=0, description="temperature of the non-target softmaxes")
    weight_target: float = Field(1.0, ge=0, description="of the label's soft cross-entropy")
    weight_nontarget: float = Field(1.5, ge=0, description="of the other classes")


def target_loss(student: Tensor, teacher: Tensor, target: Tensor, regions: bool = False) -> Tensor:
    """Return the label's cross-entropy weighted by the teacher's confidence, mean over voxels.

    Args:
        student: logits ``(B, C, *S)``.
        teacher: logits ``(B, C, *S)``; gets no gradient.
        target: labels ``(B, *S)``, or regions ``(B, C, *S)``.
        regions: whether the channels are overlapping regions, which are summed.
    """
    confidence = target_margin(teacher.detach(), target, regions).sigmoid()
    entropy = -confidence * F.logsigmoid(target_margin(student, target, regions))
    return entropy.sum(1).mean() if regions else entropy.mean()


def nontarget_loss(student: Tensor, teacher: Tensor, target: Tensor, tau: float) -> Tensor:
    """Return the soft cross-entropy over the other classes, times tau squared, mean over voxels.

    Args:
        student: logits ``(B, C, *S)`` of classes; those of the target get no gradient.
        teacher: logits ``(B, C, *S)``; gets no gradient.
        target: labels ``(B, *S)``.
        tau: temperature, > 0.
    """
    ours = without_target(student, target) / tau
    theirs = without_target(teacher.detach(), target) / tau
    return tau**2 * F.cross_entropy(ours, theirs.softmax(dim=1))


class Method(Distiller):
    """Soft cross-entropies of the label and of the normalised other classes."""

    floor: ClassVar[float | None] = None  # cross-entropies: the teacher's entropy remains

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        self.weight_nontarget: float = params.weight_nontarget
        if self.weight_nontarget and (self.regions or context.num_classes == 2):
            what = "overlapping regions" if self.regions else "two classes"
            _logger.warning("nkd: with %s the non-target term is always 0 and is left out", what)
            self.weight_nontarget = 0.0

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``target`` and ``nontarget``."""
        ours, theirs = student.logits, teacher.logits
        if self.params.weight_target and self.weight_nontarget and self.params.tau == 1:
            return self._both(split_at_target(ours, theirs, target, 1.0))
        return weighted(
            target=(
                self.params.weight_target,
                lambda: target_loss(ours, theirs, target, self.regions),
            ),
            nontarget=(
                self.weight_nontarget,
                lambda: nontarget_loss(ours, theirs, target, self.params.tau),
            ),
        )

    def _both(self, split: Split) -> dict[str, Tensor]:
        """The same terms, without a temperature, from the softmaxes that they share."""
        entropy = -split.teacher_margin.sigmoid() * F.logsigmoid(split.margin)
        return {
            "target": self.params.weight_target * entropy.mean(),
            "nontarget": self.weight_nontarget * (split.divergence + split.entropy).mean(),
        }
