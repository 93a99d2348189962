r"""SBD: soft boundary distillation; a smooth Hausdorff distance to the teacher's segmentation.

Paper: Yu, Teng, Zhang, Zheng, Chen: Attention correction feature and boundary constraint knowledge
    distillation for efficient 3D medical image segmentation, Expert Systems with Applications 262,
    2025 (125670), its Soft BD, on the loss of Karimi, Salcudean: Reducing the Hausdorff Distance in
    Medical Image Segmentation with Convolutional Neural Networks, IEEE TMI 39, 2020, eq. 8.

Idea: What the student gets wrong counts more, the farther it lies from the contour of the teacher's
    segmentation or of the student's own. The whole field of distances takes part, so one noisy
    boundary voxel does little.

Equation:

.. math::

    L = w \log\Big(1 + \frac{1}{K}\sum_k \frac{1}{B|S|}\sum_{b,v}
        (p_{bkv} - g_{bkv})^2\,\big(D(\hat p_{bk})_v^\alpha + D(g_{bk})_v^\alpha\big)\Big)

with :math:`\hat p = [p > 1/2]` and D the distance in voxels to the contour of a mask, 0 if the mask
is empty or full.

Taps: logits of both.

Provenance:
- stated: soft boundary information by estimating the Hausdorff distance (abstract; the body of the
  paper was not at hand).
- code: the teacher's argmax (regions: probability of at least 1/2) is the target, the label is not
  used; alpha 2; logarithm; no background, but all regions; weight 1.

Deviations: The overview figure draws distillation between two distance fields; the code has this
    loss, which equals MONAI's ``LogHausdorffDTLoss`` with ``batch=True``. Distances are exact and
    come from the device of the logits. Anisotropic voxels count as cubes, as there. Both fields are
    computed in each step: the student's contour moves, and the teacher's is that of an augmented
    crop. A field computed once and stored, as boundary losses on the label have it, is no part of
    this loss. So a step on a CPU takes about half as long again as one of KD (14 classes, 96³).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Distiller, Outputs, Progress
from kdpipe.terms.distance import squared_contour_distance
from kdpipe.terms.divergences import probabilities
from kdpipe.terms.masks import class_masks
from kdpipe.terms.weights import weighted


class Params(Parameters):
    """Exponent, weight and which classes count."""

    alpha: float = Field(2.0, gt=0, le=4, description="exponent of the distances")
    weight: float = Field(1.0, ge=0)
    include_background: bool = Field(False, description="of classes; regions have none")
    log: bool = Field(True, description="log(1 + x), which tames the first, large values")


def sbd_loss(
    student: Tensor,
    teacher: Tensor,
    alpha: float = 2.0,
    regions: bool = False,
    include_background: bool = False,
    log: bool = True,
) -> Tensor:
    """Return the smooth Hausdorff distance between the student and the teacher's segmentation.

    Args:
        student: logits ``(B, C, *S)``.
        teacher: logits ``(B, C, *S)``, of which only the segmentation is used.
        alpha: exponent of the distances, > 0.
        regions: whether the channels are overlapping regions.
        include_background: whether class 0 counts; regions have no background.
        log: whether to return log(1 + distance).
    """
    chosen = teacher.detach() >= 0 if regions else teacher.detach().max(dim=1).indices
    masks = class_masks(chosen, student.shape[1], regions)
    first = 0 if regions or include_background else 1
    terms = [
        _hausdorff(ours, theirs, alpha)
        for ours, theirs in zip(
            probabilities(student, regions).unbind(1)[first:], masks.unbind(1)[first:], strict=True
        )
    ]
    mean = torch.stack(terms).mean()
    return mean.log1p() if log else mean


def _hausdorff(probability: Tensor, mask: Tensor, alpha: float) -> Tensor:
    """Mean over batch and voxels of one class, both ``(B, *S)``."""
    squared = [squared_contour_distance(m) for m in (probability.detach() > 0.5, mask)]
    if alpha != 2.0:
        squared = [field.pow_(alpha / 2.0) for field in squared]
    return ((probability - mask.to(probability.dtype)).pow(2) * squared[0].add_(squared[1])).mean()


class Method(Distiller):
    """Smooth Hausdorff distance to the teacher's segmentation."""

    floor: ClassVar[float | None] = None  # probabilities are not the segmentation they give

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the term ``sbd``."""
        params = self.params

        def loss() -> Tensor:
            return sbd_loss(
                student.logits,
                teacher.logits,
                params.alpha,
                self.regions,
                params.include_background,
                params.log,
            )

        return weighted(sbd=(params.weight, loss))
