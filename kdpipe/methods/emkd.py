r"""EMKD: predictions, importance maps and affinities between tissue regions agree.

Paper: Qin et al.: Efficient Medical Image Segmentation Based on Knowledge Distillation, IEEE TMI
    2021 (arXiv:2108.09987), its three terms PMD, IMD and RAD.

Idea: Softened predictions tell what a voxel is, importance maps where a feature is strong. The
    region affinity tells how far apart two tissues lie in feature space: the cosine of their mean
    features, which blurred boundaries hardly change and which needs no adapter.

Equation:

.. math::

    L = w_p\,KL_\tau(z^s, z^t) + \sum_{F \in \{low, high\}} \Big( w_i\,
        \frac{1}{B}\sum_b\|Q^s_{b} - Q^t_{b}\|_2^2 + w_r\,mean_{b, i<j}
        (\cos(R^s_{bi}, R^s_{bj}) - \cos(R^t_{bi}, R^t_{bj}))^2 \Big)

    Q = \frac{vec(mean_c F^4)}{\|vec(mean_c F^4)\|_2},\quad
    R_{bk} = mean_{v:\,y_{bv} = k} F_{bv}

Taps: logits, one early and one deep feature of each network: ``enc1`` and the deepest encoder stage
    above the bottleneck (the bottleneck itself where there is no other). The student's importance
    map is resized to the teacher's grid, nearest; the labels go to the grid of each feature.

Provenance:
- stated: the three terms; the affinity is that of the regions' mean features.
- code: temperature 4, fourth power, weights 0.1, 0.9 and 0.9 (EagleMIT/EMKD and ACF-BCKD). All
  pairs of classes, nearest resizing, stages 1 and 3 of a four-stage U-Net (ACF-BCKD).
- ours: the mean over the pairs that a sample holds.

Deviations: The paper's text takes the magnitude, both codes the fourth power: ``power: 1`` is the
    text. The published sum over class pairs grows with their number squared; it is reached with
    ``pairs: published``. There a class absent from one sample can turn its pairs into NaN for the
    whole batch, and they are dropped; here only that sample's pairs are left out (in the published
    sum they count 0), as is a region whose mean feature is zero. A region of an overlapping set is
    compared with its own complement, and its prediction is a Bernoulli distribution. EMKD's own
    code resizes importance maps bilinearly and knows a foreground and a background only.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Context, Distiller, Outputs, Progress, Side
from kdpipe.methods.kd import kd_loss
from kdpipe.terms.features import attention, attention_distance, resize
from kdpipe.terms.masks import class_centres, class_masks, resize_target
from kdpipe.terms.weights import weighted

_NO_DIRECTION = 1e-6  # a mean feature shorter than this has no angle to another


class Params(Parameters):
    """Taps, temperature, power, weights and the way of averaging."""

    student_low: str = Field("enc1", description="the student's early feature")
    student_high: str = Field("", description="its deep feature; empty: the deepest encoder stage")
    teacher_low: str = Field("enc1", description="the teacher's early feature")
    teacher_high: str = Field("", description="its deep feature; empty: the deepest encoder stage")
    tau: float = Field(4.0, gt=0, description="temperature of the predictions")
    power: int = Field(4, ge=1, description="of the features in importance maps")
    weight_pmd: float = Field(0.1, ge=0, description="of the predictions")
    weight_imd: float = Field(0.9, ge=0, description="of the importance maps, each of the two")
    weight_rad: float = Field(0.9, ge=0, description="of the region affinities, each of the two")
    pairs: Literal["mean", "published"] = Field(
        "mean",
        description="mean over the pairs present, or as published: a sum over pairs of classes "
        "(a mean over regions), absent ones counting 0",
    )


def imd_loss(student: Tensor, teacher: Tensor, power: int = 4) -> Tensor:
    """Return the squared distance of two importance maps, mean over the batch, in [0, 2].

    Args:
        student: feature ``(B, c, *s)``; its map is resized to the teacher's grid, nearest.
        teacher: feature ``(B, C, *S)``; gets no gradient.
        power: of the features, >= 1.
    """
    ours = resize(attention(student, power), teacher.shape[2:], "nearest")
    return attention_distance(ours, attention(teacher.detach(), power))


def region_cosines(feature: Tensor, target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return cosines between mean features, and which of them exist.

    Args:
        feature: ``(B, c, *s)``.
        target: labels ``(B, *S)``, for all pairs ``i < j`` of classes, or regions ``(B, C, *S)``,
            each of which is paired with its complement. Resized to the feature's grid.
        classes: how many there are, absent ones included.

    Returns:
        Cosines ``(B, P)`` and booleans ``(B, P)``, for P pairs; 0 where one of the two is absent
        or has a mean feature of zero.
    """
    regions = target.ndim == feature.ndim
    masks = class_masks(resize_target(target, feature.shape[2:], regions), classes, regions)
    centres, present = class_centres(feature, masks)
    first, second = torch.triu_indices(classes, classes, 1, device=masks.device)
    if regions:
        outside, there = class_centres(feature, ~masks)
        centres, present = torch.cat((centres, outside), 1), torch.cat((present, there), 1)
        first = torch.arange(classes, device=masks.device)
        second = first + classes
    length = torch.linalg.vector_norm(centres, dim=2, keepdim=True)
    units = centres / length.clamp_min(_NO_DIRECTION)
    present = present & (length.squeeze(2) > _NO_DIRECTION)
    both = present[:, first] & present[:, second]
    return torch.where(both, (units[:, first] * units[:, second]).sum(2), 0.0), both


def rad_loss(
    student: Tensor, teacher: Tensor, target: Tensor, classes: int, pairs: str = "mean"
) -> Tensor:
    """Return the squared difference of two networks' affinities between regions, >= 0.

    Args:
        student: feature ``(B, c, *s)``.
        teacher: feature ``(B, C, *S)``; gets no gradient.
        target: labels ``(B, *V)`` or regions ``(B, C, *V)``.
        classes: how many there are, or how many regions.
        pairs: ``mean`` over the pairs that are present, in [0, 4]; 0 where there is none.
            ``published``: mean over the batch of the sum over pairs of classes, or of the mean
            over regions, where an absent pair is 0.
    """
    ours, here = region_cosines(student, target, classes)
    theirs, there = region_cosines(teacher.detach(), target, classes)
    both = here & there
    squared = torch.where(both, ours - theirs, 0.0).pow(2)
    if pairs == "mean":
        return squared.sum() / both.sum().clamp_min(1)
    regions = target.ndim == student.ndim
    return squared.mean() if regions else squared.sum(1).mean()


class Method(Distiller):
    """Predictions, and importance maps and region affinities of two features."""

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        ours = _taps(context, "student", params.student_low, params.student_high)
        theirs = _taps(context, "teacher", params.teacher_low, params.teacher_high)
        self.pairs = list(zip(ours, theirs, strict=True))

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``pmd``, ``imd`` and ``rad``, the last two summed over the features."""
        params, classes = self.params, self.context.num_classes
        features = [(student.features[a], teacher.features[b]) for a, b in self.pairs]

        def pmd() -> Tensor:
            return kd_loss(student.logits, teacher.logits, params.tau, self.regions)

        def imd() -> Tensor:
            return torch.stack([imd_loss(*pair, params.power) for pair in features]).sum()

        def rad() -> Tensor:
            terms = [rad_loss(*pair, target, classes, params.pairs) for pair in features]
            return torch.stack(terms).sum()

        return weighted(
            pmd=(params.weight_pmd, pmd),
            imd=(params.weight_imd, imd),
            rad=(params.weight_rad, rad),
        )


def _taps(context: Context, side: Side, low: str, high: str) -> tuple[str, str]:
    """The early and the deep tap; a network without the early one is refused."""
    context.tap(side, low)
    deepest = (context.encoders(side) or [low])[-1]
    high = high or (deepest if deepest != low else "bottleneck")
    context.tap(side, high)
    return low, high
