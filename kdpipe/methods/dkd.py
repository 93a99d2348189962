r"""DKD: decoupled KD; how sure the teacher is of the label, and how it ranks the other classes.

Paper: Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation, CVPR 2022 (arXiv:2203.08679),
    eq. 7, voxel by voxel.

Idea: KD is a term on the label's probability (TCKD) plus one on the distribution over the other
    classes (NCKD), which fades where the teacher is sure. Freed from that factor and weighted up,
    the second one carries what the teacher knows of similar classes.

Equation:

.. math::

    L = \frac{\tau^2}{B|S|}\sum_{b,v} \Big( w_t\,KL(b^t\,\|\,b^s) +
        w_n\,KL(\hat p^t\,\|\,\hat p^s)\Big),\quad
        b = (p_y, 1 - p_y),\quad \hat p_c = \frac{p_c}{1 - p_y}\ (c \ne y),\quad
        p = softmax(z/\tau)

Taps: logits of both, and the labels.

Provenance:
- stated: the decomposition; the target's weight 1, the other's between 2 and 8.
- code: tau 4, weights 1 and 8 under a total weight of 0.1, mean over voxels (ACF-BCKD); here
  0.1 and 0.8. Regions as in its BraTS variant.
- ours: the target's term is computed from the margin of its logit, hence finite for any logits.

Deviations: For overlapping regions the published variant is kept, a squared error of sigmoids
    without temperature: its mean over all elements, plus its mean over elements outside their
    region; its published row is ``weight_tckd: 1, weight_nckd: 8``. With two classes there is one
    other class, whose share of the rest is always 1: NCKD is left out, with a warning, and TCKD
    equals KD.
"""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.divergences import bernoulli_kl, soft_kl, target_margin, without_target
from kdpipe.terms.target_split import Split, split_at_target
from kdpipe.terms.weights import weighted

_logger = logging.getLogger(__name__)


class Params(Parameters):
    """Temperature and weights."""

    tau: float = Field(4.0, gt=0, description="temperature of the softmaxes; unused for regions")
    weight_tckd: float = Field(0.1, ge=0, description="of the label's probability")
    weight_nckd: float = Field(0.8, ge=0, description="of the distribution over other classes")


def tckd_loss(
    student: Tensor, teacher: Tensor, target: Tensor, tau: float, regions: bool = False
) -> Tensor:
    """Return the divergence of label against rest, times tau squared, mean over voxels.

    Args:
        student: logits ``(B, C, *S)``.
        teacher: logits ``(B, C, *S)``; gets no gradient.
        target: labels ``(B, *S)``, or regions ``(B, C, *S)``.
        tau: temperature, > 0; unused for regions.
        regions: whether the channels are overlapping regions: the squared error of their sigmoids.
    """
    if regions:
        return _squared_error(student, teacher).mean()
    ours = target_margin(student / tau, target, regions=False)
    theirs = target_margin(teacher.detach() / tau, target, regions=False)
    return tau**2 * bernoulli_kl(ours, theirs, 1.0).mean()


def nckd_loss(
    student: Tensor, teacher: Tensor, target: Tensor, tau: float, regions: bool = False
) -> Tensor:
    """Return the divergence over the other classes, times tau squared, mean over voxels.

    Args:
        student: logits ``(B, C, *S)``; those of the target get no gradient.
        teacher: logits ``(B, C, *S)``; gets no gradient.
        target: labels ``(B, *S)``, or regions ``(B, C, *S)``.
        tau: temperature, > 0; unused for regions.
        regions: whether the channels are overlapping regions: the squared error outside of them,
            divided by the number of all elements.
    """
    if regions:
        return _squared_error(student, teacher).masked_fill(target > 0, 0.0).mean()
    ours = without_target(student, target)
    theirs = without_target(teacher.detach(), target)
    return tau**2 * soft_kl(ours, theirs, tau, dim=1).mean()


def _squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    return (student.sigmoid() - teacher.detach().sigmoid()).square()


class Method(Distiller):
    """KD in two parts, label and other classes."""

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        self.weight_nckd: float = params.weight_nckd
        if context.num_classes == 2 and not self.regions and self.weight_nckd:
            _logger.warning("dkd: with two classes NCKD is always 0 and is left out")
            self.weight_nckd = 0.0

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``tckd`` and ``nckd``."""
        settings = (student.logits, teacher.logits, target, self.params.tau, self.regions)
        if self.params.weight_tckd and self.weight_nckd and not self.regions:
            return self._both(split_at_target(*settings[:4]))
        return weighted(
            tckd=(self.params.weight_tckd, lambda: tckd_loss(*settings)),
            nckd=(self.weight_nckd, lambda: nckd_loss(*settings)),
        )

    def _both(self, split: Split) -> dict[str, Tensor]:
        """The same terms from the softmaxes that they share."""
        factor = self.params.tau**2
        decided = bernoulli_kl(split.margin, split.teacher_margin, 1.0).mean()
        return {
            "tckd": self.params.weight_tckd * factor * decided,
            "nckd": self.weight_nckd * factor * split.divergence.mean(),
        }
