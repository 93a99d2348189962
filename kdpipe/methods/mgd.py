r"""MGD: masked generative distillation; the student restores the teacher's feature from a part.

Paper: Yang, Li, Shao, Shi, Yuan, Yuan: Masked Generative Distillation, ECCV 2022
    (arXiv:2205.01529).

Idea: Most positions of the student's feature are erased and two convolutions generate the
    teacher's whole feature from what is left. The student has to put context into every position
    instead of copying the teacher voxel by voxel.

Equation:

.. math::

    L = w\,\frac{1}{B\,c_t|s|}\sum \Big(G(A(F^s) \odot m) - \frac{F^t}{rms(F^t)}\Big)^2,\quad
        m_v \sim Bernoulli(1 - \lambda),\; G = Conv_3\,ReLU\,Conv_3

Taps: ``bottleneck`` of both (``student_tap``, ``teacher_tap``), the backbone's last stage; the
    finer of the two grids is averaged to the coarser.

Provenance:
- stated: random positions of the student's feature are masked and a simple block generates the
  teacher's full feature.
- code: the block; one mask for all channels, 0.75 of the positions for segmentation; a 1×1
  convolution before it only where the channels differ; the last stage of the backbone.
- ours: the mean over elements, weight 10 as for the hints of FitNet; the teacher's feature divided
  by each sample's root mean square.

Deviations: The authors sum over elements with weight 2e-5, which ties it to channels and patch, and
    take the teacher's feature as it is, which ties it to that network: a raw sum of residual blocks
    may be ten times as large as a normalised feature, and the term 100 times. The published form is
    ``{mgd: {reduction: sum, weight: 2e-5, scale: raw}}``. Their segmentation code adds channel-wise
    logits at tau 4 with weight 3: ``{sum: [mgd, {cwd: {weight: 3}}]}``. The mask is drawn anew in
    each step, so the same batch twice gives two values. Regions make no difference.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.adapters import convolution, matching
from kdpipe.terms.features import common_size, pool_to, unit_scale
from kdpipe.terms.weights import weighted


class Params(Parameters):
    """Taps, share of erased positions, weight, the way of averaging and the teacher's scale."""

    student_tap: str = Field("bottleneck", description="logical name of the student's feature")
    teacher_tap: str = Field("bottleneck", description="logical name of the teacher's feature")
    erased: float = Field(0.75, ge=0, lt=1, description="probability that a position is erased")
    weight: float = Field(10.0, ge=0)
    reduction: Literal["mean", "sum"] = Field(
        "mean", description="over the elements of a sample; published: sum"
    )
    scale: Literal["unit", "raw"] = Field(
        "unit",
        description="root mean square of the teacher's feature in a sample: 1; published: as it is",
    )


def erase(feature: Tensor, share: float) -> Tensor:
    """Return the feature ``(B, c, *S)`` with random positions set to 0, in all channels at once.

    Args:
        feature: ``(B, c, *S)``.
        share: probability of a position to be erased, in [0, 1).
    """
    kept = torch.rand_like(feature[:, :1].detach()) >= share
    return feature * kept


def generation_loss(student: Tensor, teacher: Tensor, reduction: str = "mean") -> Tensor:
    """Return the squared error of the generated feature, mean over the batch.

    Args:
        student: generated ``(B, c, *S)``.
        teacher: ``(B, c, *S)``; gets no gradient.
        reduction: over the elements of a sample, ``mean`` or ``sum``.
    """
    loss = F.mse_loss(student, teacher.detach())
    return loss * student[0].numel() if reduction == "sum" else loss


class Method(Distiller):
    """Generation of one teacher feature from a masked student feature."""

    floor: ClassVar[float | None] = None  # a mask and a generator stand between the two
    order_matters: ClassVar[bool] = True

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        dims = context.spatial_dims
        student, teacher = self.compare(params.student_tap, params.teacher_tap)
        channels = teacher.channels
        self.align = matching(dims, student.channels, channels, bias=True)
        self.generate = nn.Sequential(
            convolution(dims, channels, channels), nn.ReLU(), convolution(dims, channels, channels)
        )

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the term ``generation``."""
        params = self.params

        def loss() -> Tensor:
            ours = student.features[params.student_tap]
            theirs = teacher.features[params.teacher_tap]
            size = common_size(ours, theirs)
            generated = self.generate(erase(self.align(pool_to(ours, size)), params.erased))
            theirs = pool_to(theirs, size)
            theirs = unit_scale(theirs) if params.scale == "unit" else theirs
            return generation_loss(generated, theirs, params.reduction)

        return weighted(generation=(params.weight, loss))
