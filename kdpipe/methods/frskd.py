r"""FRSKD: a pyramid that refines the network's own features is its self-teacher.

Paper: Ji, Shin, Hwang, Park, Moon: Refine Myself by Teaching Myself: Feature Refinement via
    Self-Knowledge Distillation, CVPR 2021 (arXiv:2103.08273).

Idea: The decoder's features enter an auxiliary bidirectional feature pyramid. Trained with the
    label, it yields refined features and logits; late in training the network learns from both.
    The pyramid is thrown away afterwards.

Equation:

.. math::

    L = w_{st}\,seg(\bar z, y) + r(t)\Big[w_{log}\,\tau^2 KL(p_\tau(\bar z)\,\|\,p_\tau(z))
        + w_{att}\sum_l \|Q(F_l) - Q(\bar F_l)\|_2^2\Big]

    Q is the unit map of squared features. r is 0 up to ``start``, then exp(-5 x²) with x the share
    of the remaining epochs.

Taps: ``bottleneck`` and the decoder stages below the logits (``taps``, coarsest first).

Provenance:
- stated: self-teacher of a top-down and a bottom-up path, both losses, no gradient of theirs into
  the self-teacher.
- code: of the segmentation: a full pass and a last one top-down only, logits from the finest
  level, tau 1, weight 1 of the logits, off for 40 of 60 epochs, then the ramp; of the
  classification: learned fusion weights, depth-wise separable convolutions (MingiJi/FRSKD).
- ours: a U-Net's decoder stages in place of an FPN's levels, scaled to a root mean square of 1, a
  level's channels (64 at most), instance norm; attention as a sum over voxels with weight 1.

Deviations: The published attention loss is a mean over voxels, which ties its weight to the patch:
    ``{reduction: mean, weight_attention: 50}``. Grids of any ratio are pooled and interpolated.
    Overlapping regions are Bernoulli distributions, summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.errors import ConfigError
from kdpipe.methods._stages import decoder_stages
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.adapters import pointwise
from kdpipe.terms.divergences import logit_kl
from kdpipe.terms.features import attention, attention_distance, resize
from kdpipe.terms.pyramids import Pyramid
from kdpipe.terms.weights import exponential_ramp, weighted


class Params(Parameters):
    """Levels and width of the self-teacher, schedule and weights."""

    taps: tuple[str, ...] = Field((), description="coarsest first; empty: bottleneck and decoder")
    width: int = Field(64, ge=1, description="a level of the pyramid has at most so many channels")
    tau: float = Field(1.0, gt=0, description="temperature of both softmaxes")
    start: float = Field(0.667, ge=0, lt=1, description="share of the epochs without distillation")
    weight_self_teacher: float = Field(1.0, ge=0, description="of its segmentation loss")
    weight_logits: float = Field(1.0, ge=0)
    weight_attention: float = Field(1.0, ge=0, description="of each level")
    reduction: Literal["sum", "mean"] = Field("sum", description="attention; published: mean")


def attention_loss(
    student: Sequence[Tensor], refined: Sequence[Tensor], reduction: str = "sum"
) -> Tensor:
    """Return the distances of the attention maps of all levels, summed.

    Args:
        student: features ``(B, c_l, *s_l)``.
        refined: on the same grids; get no gradient.
        reduction: ``sum`` over voxels, or ``mean``.
    """
    distances = []
    for ours, theirs in zip(student, refined, strict=True):
        distance = attention_distance(attention(ours), attention(theirs.detach()))
        distances.append(distance / ours[0, 0].numel() if reduction == "mean" else distance)
    return torch.stack(distances).sum()


class Method(Distiller):
    """Distillation from an auxiliary pyramid over the student's own features."""

    needs_teacher: ClassVar[bool] = False
    floor: ClassVar[float | None] = None  # the self-teacher learns from labels

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        default = [tap for tap in ("bottleneck",) if tap in context.student]
        self.taps = params.taps or (*default, *decoder_stages(context, "student"))
        if len(self.taps) < 2:
            raise ConfigError(
                f"frskd: the pyramid needs two levels or more, there is {list(self.taps)}: name "
                "features in taps"
            )
        if params.weight_self_teacher == 0:
            if params.weight_logits or params.weight_attention:
                raise ConfigError(
                    "frskd: the self-teacher learns from weight_self_teacher alone: with 0, set "
                    "the other weights to 0 too"
                )
            return
        channels = [context.tap("student", tap).channels for tap in self.taps]
        self.pyramid = Pyramid(context.spatial_dims, channels, params.width)
        self.head = pointwise(
            context.spatial_dims, self.pyramid.widths[-1], context.num_classes, bias=True
        )

    def student_taps(self) -> tuple[str, ...]:
        """The pyramid's levels."""
        return self.taps

    def losses(
        self, student: Outputs, teacher: None, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``self_teacher`` and, later in training, ``logits``, ``attention``."""
        params = self.params
        if not params.weight_self_teacher:
            return {}
        ramp = exponential_ramp((progress.epoch + 1) / progress.epochs, params.start)
        features = [student.features[tap] for tap in self.taps]
        refined = self.pyramid(features)
        logits = resize(self.head(refined[-1]), student.logits.shape[2:])

        def logits_loss() -> Tensor:
            divergence = logit_kl(student.logits, logits, params.tau, self.regions)
            loss: Tensor = params.tau**2 * divergence.mean()
            return loss

        return weighted(
            self_teacher=(
                params.weight_self_teacher,
                lambda: self.context.segmentation_loss(logits, target),
            ),
            logits=(ramp * params.weight_logits, logits_loss),
            attention=(
                ramp * params.weight_attention,
                lambda: attention_loss(features, refined, params.reduction),
            ),
        )
