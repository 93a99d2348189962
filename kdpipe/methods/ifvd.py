r"""IFVD: intra-class feature variation; how far each voxel is from the centre of its class.

Paper: Wang, Zhou, Jiang, Bai, Xu: Intra-class Feature Variation Distillation for Semantic
    Segmentation, ECCV 2020.

Idea: The cosine between a voxel's feature and the mean feature of its true class says how typical
    the voxel is. The student learns the teacher's map of these cosines, whatever its channels.

Equation:

.. math::

    L = w_{variation}\,\frac{1}{B|s|}\sum_{b,v}(M^s_{bv} - M^t_{bv})^2
        + w_{kd}\,KD_\tau,\quad
        M_v = \cos(F_v, \mu_{y_v}),\; \mu_k = \frac{\sum_{y_v=k} F_v}{|\{y_v=k\}|}

Taps: ``penult`` of both (``student_tap``, ``teacher_tap``) and the logits; features and
    label are brought to the coarser of the two grids, nearest.

Provenance:
- stated: class centres per sample, map of cosines, mean squared error; next to KD.
- code: variation weight 20 with KD 1 at temperature 1 (CIRKD's baselines); the authors' code and
  ACF-BCKD have 200, with KD 10.
- ours: the smaller weights, since the mean of squared cosines is large beside a Dice loss.

Deviations: The authors add an adversary of weight 1e-3, which the re-implementations leave out too.
    ACF-BCKD's row has ``weight_variation: 200`` and, as KD, ten times `kd_mse_sigmoid` instead:
    ``{sum: [{ifvd: {weight_variation: 200, weight_kd: 0}}, kd_mse_sigmoid]}``. Its code for regions
    compares single channels, whose cosine is 1 or -1 without any gradient. Here each region splits
    the voxels in two, inside and outside, each with its centre in the full feature; the mean over
    regions is taken.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.methods.kd import kd_loss
from kdpipe.terms.features import common_size, lengths, resize
from kdpipe.terms.masks import class_centres, class_masks, resize_target
from kdpipe.terms.weights import weighted


class Params(Parameters):
    """Taps, weights and the temperature of the KD term."""

    student_tap: str = Field("penult", description="logical name of the student's feature")
    teacher_tap: str = Field("penult", description="logical name of the teacher's feature")
    weight_variation: float = Field(20.0, ge=0, description="published: 200, and 20 in CIRKD")
    weight_kd: float = Field(1.0, ge=0)
    tau: float = Field(1.0, gt=0, description="temperature of the KD term")


def variation_maps(feature: Tensor, target: Tensor, num_classes: int, regions: bool) -> Tensor:
    """Return the cosine of each voxel's feature with the centre of its class, ``(B, R, V)``.

    R is 1 for classes; for regions there is one map a region, with inside and outside as classes.

    Args:
        feature: ``(B, c, *S)``.
        target: labels ``(B, *S)``, or regions ``(B, R, *S)``, on the feature's grid.
        num_classes: number of classes; regions do not need it.
        regions: whether the target is overlapping regions.
    """
    flat = feature.flatten(2)
    units = flat / lengths(flat, dim=1).clamp_min(1e-6)
    maps = []
    for labels in target.unbind(1) if regions else [target]:
        masks = class_masks(labels, 2 if regions else num_classes, regions=False)
        centres, _ = class_centres(feature, masks)
        cosines = F.normalize(centres, dim=2, eps=1e-6) @ units  # (B, K, V)
        maps.append(cosines.gather(1, labels.flatten(1).unsqueeze(1)))
    return torch.cat(maps, dim=1)


def ifvd_loss(
    student: Tensor, teacher: Tensor, target: Tensor, num_classes: int, regions: bool = False
) -> Tensor:
    """Return the mean squared difference of both networks' maps of cosines, in [0, 4].

    Args:
        student: feature ``(B, c, *s)``.
        teacher: feature ``(B, C, *S)``; gets no gradient. Both are resized to the coarser grid.
        target: labels ``(B, *T)``, or regions ``(B, R, *T)``, on any grid.
        num_classes: channels of the logits.
        regions: whether the target is overlapping regions.
    """
    size = common_size(student, teacher)
    labels = resize_target(target, size, regions)
    ours, theirs = (
        variation_maps(resize(feature, size, "nearest"), labels, num_classes, regions)
        for feature in (student, teacher.detach())
    )
    return F.mse_loss(ours, theirs)


class Method(Distiller):
    """Maps of intra-class variation, and KD on the logits."""

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        self.compare(params.student_tap, params.teacher_tap)

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``variation`` and ``kd``."""
        params, classes = self.params, self.context.num_classes

        def variation() -> Tensor:
            ours = student.features[params.student_tap]
            theirs = teacher.features[params.teacher_tap]
            return ifvd_loss(ours, theirs, target, classes, self.regions)

        def kd() -> Tensor:
            return kd_loss(student.logits, teacher.logits, params.tau, self.regions)

        return weighted(variation=(params.weight_variation, variation), kd=(params.weight_kd, kd))
