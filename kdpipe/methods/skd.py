r"""SKD: structured distillation; pixels, relations between places, and the map as a whole.

Paper: Liu, Chen, Liu, Qin, Luo, Wang: Structured Knowledge Distillation for Semantic Segmentation,
    CVPR 2019 (arXiv:1903.04197).

Idea: Segmentation is a structured task, so single voxels are not all there is to learn. The
    similarities of coarse nodes of a feature are matched as well, and optionally a critic that
    tells teacher from student judges the whole prediction.

Equation:

.. math::

    L = \frac{w_{pixel}}{B|S|}\sum_{b,v}\Bigl(-\sum_c q_{bvc}\log p_{bvc}\Bigr)
        + \frac{w_{pair}}{Bn^2}\sum_{b,i,j}(a^s_{bij} - a^t_{bij})^2
        - \frac{w_{holistic}}{B}\sum_b D(p_b)

.. math::

    a_{ij} = \hat f_i^\top \hat f_j,\quad
    L_D = E\,D(p) - E\,D(q) + 10\,E(\|\nabla D\| - 1)^2

Taps: logits of both, and ``penult`` of both (``student_tap``, ``teacher_tap``) for the nodes.

Provenance:
- stated: the three terms; Wasserstein critic with gradient penalty 10; weights 10 and 0.1.
- code: max-pooled nodes, unit vectors whose norm gets no gradient; half the side a node, hence two
  nodes a side; pair weight 1, as the input of the last up stage in ACF-BCKD (which has no critic).
- ours: mean over the batch; the critic sees probabilities, not logits, and not the image; it has no
  spectral norm, and its slope is measured per voxel, so that its scores fit any patch.

Deviations: The public code sums the pixel term over the batch: ``pixel_reduction: batch_sum``. It
    takes the node size from the teacher's grid for both networks; here each feature is pooled to
    the same nodes whatever its grid. For regions the pixel term is binary cross-entropy, summed
    over the regions; ACF-BCKD's sigmoid branch has a wrong sign and is not offered. The critic is
    off unless ``weight_holistic`` > 0 (published: 0.1); it learns at the engine's rate for critics.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.adversarial import Critic, frozen_score, wasserstein_loss
from kdpipe.terms.divergences import probabilities
from kdpipe.terms.relations import gram_distance, shared_nodes
from kdpipe.terms.weights import weighted


class Params(Parameters):
    """Taps, nodes, weights and the way of averaging."""

    student_tap: str = Field("penult", description="logical name of the student's feature")
    teacher_tap: str = Field("penult", description="logical name of the teacher's feature")
    grid: int = Field(
        2, ge=2, le=32, description="nodes a side; the inverse of the published scale 0.5"
    )
    weight_pixel: float = Field(10.0, ge=0)
    weight_pair: float = Field(1.0, ge=0)
    weight_holistic: float = Field(
        0.0, ge=0, description="0 builds no critic; published: 0.1, with a critic"
    )
    pixel_reduction: Literal["mean", "batch_sum"] = Field(
        "mean", description="over the batch; published: its sum"
    )


def pixel_loss(
    student: Tensor, teacher: Tensor, regions: bool = False, reduction: str = "mean"
) -> Tensor:
    """Return the cross-entropy of the student under the teacher's probabilities, voxel mean.

    Args:
        student: logits ``(B, C, *S)``.
        teacher: logits ``(B, C, *S)``; gets no gradient.
        regions: whether the channels are overlapping regions, whose entropies are summed.
        reduction: over the batch, ``mean`` or ``batch_sum``.
    """
    theirs = probabilities(teacher.detach(), regions)
    if regions:
        entropy = F.binary_cross_entropy_with_logits(student, theirs, reduction="none").sum(1)
    else:
        entropy = -(theirs * student.log_softmax(dim=1)).sum(1)
    return entropy.mean() * (len(student) if reduction == "batch_sum" else 1)


def pair_loss(student: Tensor, teacher: Tensor, grid: int) -> Tensor:
    """Return the mean squared difference of the nodes' cosine similarities.

    Args:
        student: feature ``(B, c, *s)``.
        teacher: feature ``(B, C, *S)``; gets no gradient.
        grid: nodes a side; fewer where a side of either feature is shorter.
    """
    ours, theirs = shared_nodes(student, teacher.detach(), grid, kind="max")
    return gram_distance(_units(ours), _units(theirs))


def _units(nodes: Tensor) -> Tensor:
    """The columns over their norms, which are constants, as published."""
    norms: Tensor = torch.linalg.vector_norm(nodes.detach(), dim=1, keepdim=True)
    return nodes / norms.clamp_min(1e-6)


class Method(Distiller):
    """Pixel-wise and pair-wise distillation, with an adversary if asked for."""

    floor: ClassVar[float | None] = None  # a cross-entropy ends at the teacher's entropy

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        self.compare(params.student_tap, params.teacher_tap)
        adversarial = params.weight_holistic > 0
        self.critic: nn.Module | None = (
            Critic(context.spatial_dims, context.num_classes) if adversarial else None
        )

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``pixel``, ``pair`` and ``holistic``."""
        params = self.params

        def pixel() -> Tensor:
            return pixel_loss(student.logits, teacher.logits, self.regions, params.pixel_reduction)

        def pair() -> Tensor:
            ours = student.features[params.student_tap]
            return pair_loss(ours, teacher.features[params.teacher_tap], params.grid)

        def holistic() -> Tensor:
            assert self.critic is not None
            return -frozen_score(self.critic, probabilities(student.logits, self.regions)).mean()

        return weighted(
            pixel=(params.weight_pixel, pixel),
            pair=(params.weight_pair, pair),
            holistic=(params.weight_holistic, holistic),
        )

    def critic_loss(self, student: Outputs, teacher: Outputs | None) -> Tensor | None:
        """Return the critic's Wasserstein loss on the probabilities of both, in float32."""
        if self.critic is None or teacher is None:
            return None
        with torch.autocast(student.logits.device.type, enabled=False):
            fake, real = (
                probabilities(outputs.logits.detach().float(), self.regions)
                for outputs in (student, teacher)
            )
            return wasserstein_loss(self.critic, fake, real, penalty=10.0)

    def critic_parameters(self) -> Iterable[nn.Parameter]:
        """The critic's, if there is one."""
        return self.critic.parameters() if self.critic is not None else ()
