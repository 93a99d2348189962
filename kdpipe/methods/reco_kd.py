r"""Reading of ReCo-KD: encoder features agree region by region, in attention and in context.

Paper: Lan, Hsu, Khan, Jiang: ReCo-KD: Region- and Context-Aware Knowledge Distillation for
    Efficient 3D Medical Image Segmentation, 2026 (arXiv:2601.08301). Of the paper only the abstract
    and the opening were read.

Idea: Small structures drown in the mean over a volume. Features are compared class by class, each
    class by its own area, where the teacher attends; the attention itself and the global context
    of the features are matched too. The parts are those of FGD (CVPR 2022), for volumes.

Equation:

.. math::

    \begin{aligned}
    L &= r(t)\sum_l \omega_l \big[w_f E(M^f) + w_b E(M^b)
        + w_a (mean_v |S^s - S^t| + mean_c |C^s - C^t|) \\
      &\quad + w_c\,mean\,(F^s + g_s(F^s) - F^t - g_t(F^t))^2\big] \\
    E(M) &= \frac{\sum_{bv} M_{bv} S^t_{bv}\, mean_c\, C^t_{bc} (F^s_{bcv} - F^t_{bcv})^2}
        {\sum_{bv} M_{bv}} \\
    S &= |V|\,softmax_v(mean_c |F| / \tau),\quad C = c\,softmax_c(mean_v |F| / \tau),\quad
        rms(F^s) = rms(F^t) = 1
    \end{aligned}

Taps: all encoder stages that both networks have, without the bottleneck (or ``student_taps`` and
    ``teacher_taps``). The student is projected to the teacher's channels where they differ, and
    resized to the teacher's grid; the label is resized to it too, nearest.

Provenance:
- stated: class-aware masks, weights that are normalised by scale, several scales, alignment of
  context between teacher and student.
- code: all equations; tau 0.5, one weight 0.01 for the four terms, stage weights that fall with the
  number of voxels to the power 0.5, linear warm-up over 600 of 1000 epochs (``reco`` in
  DPRD-3D-MedSeg, which holds a port of the authors' trainer).
- ours: the warm-up as a share of the training; in 2D a stage has a quarter of the voxels of the one
  before, not an eighth; unequal grids; both features, the student's once it is projected and
  resized, divided by their root mean square in each sample.

Deviations: In the code neither projections nor context blocks reach the optimiser, and the blocks
    start at 0, so that its context term is a plain mean squared error; here they are trained, as
    in FGD. The code takes features as they are; where a teacher's are raw sums of residual
    blocks, its softmax at tau 0.5 attends to one voxel and the errors grow with the square of their
    scale. The student's division is part of the gradient. ``M`` is 1 over the area of the voxel's
    class in that sample; of overlapping regions the smallest one counts. A class that is too small
    for the grid of a stage drops out there. The code's exponent of ``M`` stays 1.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.discover import Field, Parameters
from kdpipe.methods._stages import chosen_pairs, decaying_weights, encoder_pairs
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.adapters import matching, pointwise
from kdpipe.terms.features import resize, unit_scale
from kdpipe.terms.masks import area_weights, resize_target
from kdpipe.terms.weights import weighted


class Params(Parameters):
    """Taps, temperature, weights and warm-up."""

    student_taps: tuple[str, ...] = Field((), description="empty: encoder stages")
    teacher_taps: tuple[str, ...] = Field((), description="as many as student_taps")
    tau: float = Field(0.5, gt=0, description="temperature of the attention")
    decay: float = Field(
        0.5, ge=0, description="a stage's weight is its number of voxels to this power"
    )
    weight_foreground: float = Field(0.01, ge=0)
    weight_background: float = Field(0.01, ge=0)
    weight_attention: float = Field(0.01, ge=0)
    weight_context: float = Field(0.01, ge=0)
    warmup: float = Field(0.6, ge=0, le=1, description="share of training that the weights rise")


def attention(feature: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Return where and in which channels ``(B, c, *S)`` is strong: ``(B, V)`` and ``(B, c)``.

    Both are >= 0 and have mean 1 over voxels and over channels.
    """
    strength = feature.flatten(2).abs()
    spatial, channel = strength.mean(1), strength.mean(2)
    return (
        spatial.shape[1] * (spatial / tau).softmax(1),
        channel.shape[1] * (channel / tau).softmax(1),
    )


def attended_error(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Return the squared error at each voxel ``(B, V)``, weighted by the teacher's attention.

    Args:
        student: ``(B, c, *S)``.
        teacher: ``(B, c, *S)``; gets no gradient.
        tau: temperature of the attention.
    """
    teacher = teacher.detach()
    spatial, channel = attention(teacher, tau)
    squared = (student - teacher).pow(2).flatten(2)
    return spatial * (channel.unsqueeze(1) @ squared).squeeze(1) / student.shape[1]


def region_loss(error: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of ``(B, V)`` errors by weights >= 0; 0 where there are none."""
    return (error * weights).sum() / weights.sum().clamp_min(1e-8)


def attention_loss(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Return the mean absolute difference of both attentions, in [0, 4]; teacher without grad."""
    pairs = zip(attention(student, tau), attention(teacher.detach(), tau), strict=True)
    first, second = (F.l1_loss(ours, theirs) for ours, theirs in pairs)
    return first + second


class ContextBlock(nn.Module):
    """Global context block (Cao et al., GCNet, 2019): what a feature says on the whole.

    An attention over the voxels pools the feature, a bottleneck turns that into an offset a
    channel, which is 0 at the start of training.
    """

    def __init__(self, spatial_dims: int, channels: int):
        super().__init__()
        hidden = max(2, channels // 2)
        self.attend = pointwise(spatial_dims, channels, 1)
        nn.init.kaiming_normal_(self.attend.weight, nonlinearity="relu")
        last = nn.Linear(hidden, channels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.offset = nn.Sequential(
            nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.ReLU(), last
        )

    def forward(self, feature: Tensor) -> Tensor:
        """Return the offset ``(B, c)`` for ``(B, c, *S)``."""
        share: Tensor = self.attend(feature).flatten(1).softmax(1)
        offset: Tensor = self.offset((feature.flatten(2) @ share.unsqueeze(2)).squeeze(2))
        return offset


class Stage(nn.Module):
    """Projection and, where they are wanted, context blocks of one stage."""

    def __init__(self, spatial_dims: int, inputs: int, channels: int, context: bool = True):
        super().__init__()
        self.project = matching(spatial_dims, inputs, channels, bias=True)
        if context:
            self.ours = ContextBlock(spatial_dims, channels)
            self.theirs = ContextBlock(spatial_dims, channels)

    def context_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean squared error of features ``(B, c, *S)`` with their context added."""
        teacher = teacher.detach()
        offset: Tensor = self.ours(student) - self.theirs(teacher)
        return ((student - teacher).flatten(2) + offset.unsqueeze(2)).pow(2).mean()


class Method(Distiller):
    """Regions, attention and context of the encoder's features."""

    is_reading: ClassVar[bool] = True

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        default = encoder_pairs(context, bottleneck=False)
        self.pairs = chosen_pairs("reco_kd", params.student_taps, params.teacher_taps, default)
        self.stages = nn.ModuleList(
            Stage(
                context.spatial_dims,
                context.tap("student", ours).channels,
                context.tap("teacher", theirs).channels,
                params.weight_context > 0,
            )
            for ours, theirs in self.pairs
        )
        ratio = 2.0 ** (-context.spatial_dims * params.decay)
        self.stage_weights = decaying_weights(ratio, len(self.pairs))

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``foreground``, ``background``, ``attention`` and ``context``."""
        params = self.params
        stages = cast(Sequence[Stage], self.stages)  # a ModuleList does not say of what

        @functools.cache
        def taught(stage: int) -> Tensor:
            return unit_scale(teacher.features[self.pairs[stage][1]].detach())

        @functools.cache
        def ours(stage: int) -> Tensor:
            projected = stages[stage].project(student.features[self.pairs[stage][0]])
            return unit_scale(resize(projected, taught(stage).shape[2:]), constant=False)

        @functools.cache
        def regions(stage: int) -> tuple[Tensor, Tensor, Tensor]:
            label = resize_target(target, taught(stage).shape[2:], self.regions)
            error = attended_error(ours(stage), taught(stage), params.tau)
            return error, *area_weights(label, self.context.num_classes, self.regions)

        def total(loss: Any) -> Tensor:
            terms = [weight * loss(stage) for stage, weight in enumerate(self.stage_weights)]
            return torch.stack(terms).sum()

        def region(kind: int) -> Tensor:
            return total(lambda stage: region_loss(regions(stage)[0], regions(stage)[kind]))

        ramp = progress.ramp(params.warmup)
        return weighted(
            foreground=(ramp * params.weight_foreground, lambda: region(1)),
            background=(ramp * params.weight_background, lambda: region(2)),
            attention=(
                ramp * params.weight_attention,
                lambda: total(lambda s: attention_loss(ours(s), taught(s), params.tau)),
            ),
            context=(
                ramp * params.weight_context,
                lambda: total(lambda s: stages[s].context_loss(ours(s), taught(s))),
            ),
        )
