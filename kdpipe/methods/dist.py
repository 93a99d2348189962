r"""DIST: the student's predictions correlate with the teacher's, across classes and across voxels.

Paper: Huang, You, Wang, Qian, Xu: Knowledge Distillation from A Stronger Teacher, NeurIPS 2022
    (arXiv:2205.10536).

Idea: A much stronger teacher need not be copied; its ranking of classes at a voxel (inter-class)
    and of voxels for a class (intra-class) should be kept. Pearson's correlation asks for that and
    leaves scale and offset free.

Equation:

.. math::

    L = \tau^2 \Big( w_{inter}\big(1 - mean_{b,v}\,\rho(p^s_{b\cdot v}, p^t_{b\cdot v})\big)
        + w_{intra}\big(1 - mean_c\,\rho(p^s_{\cdot c\cdot}, p^t_{\cdot c\cdot})\big)\Big),\quad
        p = softmax(z/\tau)

Taps: logits of both.

Provenance:
- stated: one minus Pearson's correlation along the classes and along the samples.
- code: all voxels of a batch are one population for the intra-class term, weights 1 (ACF-BCKD);
  tau 1 (the authors).
- ours: where all probabilities are equal there is no correlation: it counts as 0 and has no
  gradient. The published eps gives it a gradient of 1e8.

Deviations: A correlation does not see the scale of what it compares, so no gradient is lost to
    tau as in KD, and the factor tau² is a plain weight. ACF-BCKD's row is ``{dist: {tau: 4}}``,
    which is 16 times as strong; its lab takes tau 1 and weights 3 in 2D. ACF-BCKD's code accepts a
    total weight and ignores it; here the two weights count. For overlapping regions, probabilities
    are sigmoids. With two channels of logits the correlation across them is +1 or -1 and has no
    gradient: that term is left out, with a warning.
"""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.correlations import decorrelation, softmax_decorrelations
from kdpipe.terms.divergences import probabilities
from kdpipe.terms.weights import weighted

_logger = logging.getLogger(__name__)


class Params(Parameters):
    """Temperature and weights."""

    tau: float = Field(
        1.0, gt=0, description="temperature; both terms have the factor tau²; ACF-BCKD: 4"
    )
    weight_inter: float = Field(1.0, ge=0, description="correlation across classes at a voxel")
    weight_intra: float = Field(1.0, ge=0, description="correlation across voxels of a class")


def inter_loss(student: Tensor, teacher: Tensor, tau: float, regions: bool = False) -> Tensor:
    """Return one minus the mean correlation across channels at a voxel, times tau squared.

    Args:
        student: logits ``(B, C, *S)``, C > 2.
        teacher: logits ``(B, C, *S)``; gets no gradient.
        tau: temperature, > 0.
        regions: whether the channels are overlapping regions.
    """
    return tau**2 * _inter(*_both(student, teacher, tau, regions))


def intra_loss(student: Tensor, teacher: Tensor, tau: float, regions: bool = False) -> Tensor:
    """Return one minus the mean correlation over all voxels of a channel, times tau squared.

    Args:
        student: logits ``(B, C, *S)``.
        teacher: logits ``(B, C, *S)``; gets no gradient.
        tau: temperature, > 0.
        regions: whether the channels are overlapping regions.
    """
    return tau**2 * _intra(*_both(student, teacher, tau, regions))


def _both(student: Tensor, teacher: Tensor, tau: float, regions: bool) -> tuple[Tensor, Tensor]:
    """Probabilities of student and teacher."""
    ours, theirs = (probabilities(z, regions, tau) for z in (student, teacher.detach()))
    return ours, theirs


def _inter(ours: Tensor, theirs: Tensor) -> Tensor:
    return decorrelation(ours, theirs, (1,))


def _intra(ours: Tensor, theirs: Tensor) -> Tensor:
    return decorrelation(ours, theirs, (0, *range(2, ours.ndim)))


class Method(Distiller):
    """Correlation of predictions, between and within classes."""

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        self.weight_inter: float = params.weight_inter
        if context.num_classes <= 2 and self.weight_inter:
            _logger.warning(
                "dist: with %d channels of logits the inter-class term has no gradient and is "
                "left out",
                context.num_classes,
            )
            self.weight_inter = 0.0

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``inter`` and ``intra``."""
        tau = self.params.tau
        logits = student.logits, teacher.logits, tau
        if self.weight_inter and self.params.weight_intra and not self.regions:
            inter, intra = softmax_decorrelations(*logits)  # they share nearly all of their work
            return weighted(
                inter=(self.weight_inter, lambda: tau**2 * inter),
                intra=(self.params.weight_intra, lambda: tau**2 * intra),
            )
        shared = _both(*logits, self.regions)
        return weighted(
            inter=(self.weight_inter, lambda: tau**2 * _inter(*shared)),
            intra=(self.params.weight_intra, lambda: tau**2 * _intra(*shared)),
        )
