r"""Reading of CAKD + FNKD: affinities between classes, and logits softened by feature norms.

Paper: Zhao, Zhong, Xiao, Zhang, Chen, Liao, Zhang, Wang: Efficient Multi-Organ Segmentation From 3D
    Abdominal CT Images With Lightweight Network and Knowledge Distillation (LCOV-Net), IEEE TMI
    2023; FNKD after Xu, Rui, Li, Gu: Feature Normalized Knowledge Distillation for Image
    Classification, ECCV 2020.

Idea: How much two organs' probability maps overlap says which organs the teacher takes for similar;
    each class's row of overlaps is matched by its direction (CAKD). The norm of a feature serves as
    the temperature of its logits (FNKD): a noisy label shows as a long feature.

Equation:

.. math::

    L = -w_c\,mean_{b,k} \cos(G^s_{bk}, G^t_{bk}) - w_f\,\frac{1}{B|S|}\sum_{b,v}
        \sum_c q_{bcv} \log p_{bcv},\quad G_b = P_b P_b^\top

.. math::

    P = softmax(z) \in R^{C \times V},\quad p = softmax(z^s_v / n^s_v),\quad
        q = softmax(z^t_v / n^t_v),\quad n_v = \frac{\|F_v\|}{mean_u \|F_u\|}

Taps: logits and ``penult`` of both (``student_tap``, ``teacher_tap``); the norms are resized to the
    grid of the logits.

Provenance:
- stated: affinities of classes and normalised features, at several scales; the TMI paper itself
  could not be read, and its equations are those of public code.
- code: G, cosine of its rows, and weights 1 and 1 on one scale (ACF-BCKD). The authors' code
  weights 0.1 and 0.2 on four scales (.4, .2, .2, .2), under 0.8 Dice and 0.2 distillation.
- ours: the norm of each voxel's own feature over the sample's mean norm (a constant), so that the
  temperature is about 1 whatever the feature's scale and number of channels; at least 0.1, so that
  a dead voxel cannot blow up its logits. The affinity is a mean over voxels, which the cosine does
  not see.

Deviations: The authors' FNKD swaps student and teacher and rounds the soft labels to integers,
    which leaves nothing of them; not inherited. ACF-BCKD divides by one norm of the whole tensor of
    features, batch included: logits and gradients nearly vanish, and the temperature depends on the
    patch. ``norm: tensor`` is that row. One scale, as coarser logits are not at hand. For
    overlapping regions, sigmoids and binary cross-entropies, summed over regions (published weights
    for BraTS: 0.25 each).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.divergences import probabilities
from kdpipe.terms.features import lengths, resize
from kdpipe.terms.weights import weighted

_LEAST_NORM = 0.1
_EPS = 1e-6  # a feature of zeros has the relative norm 1


class Params(Parameters):
    """Taps, weights and the kind of norm."""

    student_tap: str = Field("penult", description="feature whose norm softens the logits")
    teacher_tap: str = Field("penult", description="feature whose norm softens the logits")
    weight_cakd: float = Field(1.0, ge=0, description="of the affinities between classes")
    weight_fnkd: float = Field(1.0, ge=0, description="of the logits softened by feature norms")
    norm: Literal["voxel", "tensor"] = Field(
        "voxel",
        description="norm of each voxel's feature over their mean; published: of the whole tensor",
    )


def cakd_loss(student: Tensor, teacher: Tensor, regions: bool = False) -> Tensor:
    """Return minus the mean cosine of the classes' rows of affinities, in [-1, 0].

    Args:
        student: logits ``(B, C, *S)``.
        teacher: logits ``(B, C, *S)``; gets no gradient.
        regions: whether the channels are overlapping regions.
    """
    ours, theirs = _affinity(student, regions), _affinity(teacher.detach(), regions)
    return -F.cosine_similarity(ours, theirs, dim=2).mean()


def fnkd_loss(
    student: Tensor,
    teacher: Tensor,
    student_feature: Tensor,
    teacher_feature: Tensor,
    regions: bool = False,
    norm: str = "voxel",
) -> Tensor:
    """Return the soft cross-entropy of logits divided by feature norms, mean over voxels.

    Args:
        student: logits ``(B, C, *S)``.
        teacher: logits ``(B, C, *S)``; gets no gradient.
        student_feature: ``(B, c, *s)``; gets a gradient through its norm.
        teacher_feature: ``(B, c', *s')``; gets no gradient.
        regions: whether the channels are overlapping regions, which are summed.
        norm: ``voxel``, along the channels, over the sample's mean norm, which gets no gradient;
            or ``tensor``, one number for the whole batch.
    """
    ours = _softened(student, student_feature, norm)
    theirs = _softened(teacher.detach(), teacher_feature.detach(), norm)
    if regions:
        entropy = F.binary_cross_entropy_with_logits(ours, theirs.sigmoid())
        return student.shape[1] * entropy
    return F.cross_entropy(ours, theirs.softmax(dim=1))


def _affinity(logits: Tensor, regions: bool) -> Tensor:
    """``(B, C, C)``: mean over voxels of the product of two classes' probabilities."""
    maps = probabilities(logits, regions).flatten(2)
    return maps @ maps.transpose(1, 2) / maps.shape[2]


def _softened(logits: Tensor, feature: Tensor, norm: str) -> Tensor:
    length: Tensor
    if norm == "tensor":
        length = torch.linalg.vector_norm(feature)
    else:
        norms = lengths(feature, dim=1)
        mean = norms.detach().mean(dim=tuple(range(1, norms.ndim)), keepdim=True)
        length = resize((norms + _EPS) / (mean + _EPS), logits.shape[2:])
    return logits / length.clamp_min(_LEAST_NORM)


class Method(Distiller):
    """Class affinities and feature-normalised logits."""

    is_reading: ClassVar[bool] = True
    floor: ClassVar[float | None] = None  # -1 of the cosines plus the teacher's entropy

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        if params.weight_fnkd:
            self.compare(params.student_tap, params.teacher_tap)

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``cakd`` and ``fnkd``."""
        params = self.params

        def fnkd() -> Tensor:
            return fnkd_loss(
                student.logits,
                teacher.logits,
                student.features[params.student_tap],
                teacher.features[params.teacher_tap],
                self.regions,
                params.norm,
            )

        return weighted(
            cakd=(
                params.weight_cakd,
                lambda: cakd_loss(student.logits, teacher.logits, self.regions),
            ),
            fnkd=(params.weight_fnkd, fnkd),
        )
