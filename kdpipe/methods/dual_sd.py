r"""Dual self-distillation: the last encoder and decoder stages teach the earlier ones.

Paper: Banerjee, Dong, Glide-Hurst: Dual self-distillation of U-shaped networks for 3D medical image
    segmentation, ISBI 2024 (arXiv:2306.03271).

Idea: Every stage of a U-Net gets a light exit to the image's grid. The decoder's exits learn from
    the label; within the encoder and within the decoder, the stage that comes last teaches those
    before it by its softened output. After training the exits are thrown away.

Equation:

.. math::

    L = w_{lab}\sum_{i \in D \cup \{e\}} seg(z_i, y)
        + w_{dec}\,\tau^2\sum_{i \in D, i \neq d} KL(p_\tau(z_d)\,\|\,p_\tau(z_i))
        + w_{enc}\,\tau^2\sum_{i \in E, i \neq e} KL(p_\tau(z_e)\,\|\,p_\tau(z_i))

    with d the finest of the decoder exits D and e the coarsest of the encoder exits E.

Taps: D is ``bottleneck`` and the decoder stages below the logits (``decoder_taps``), E is
    ``enc1..encN`` (``encoder_taps``); in both, the last named is the teacher.

Provenance:
- stated: labels for the decoder, distillation within both halves, from the deepest stage.
- code: deepest means last to be computed; tau 3, all weights 1, divergence summed over classes,
  mean over voxels; bottleneck features count as a decoder exit (soumbane/DualSelfDistillation).
- ours: exits scale features to a root mean square of 1, as networks differ in it, and interpolate
  linearly after the 1-wide convolution.

Deviations: The code upsamples by transposed convolutions as wide as the stride. It lets gradient
    flow into the teaching exits, and its encoder exits see no label (some share weights with
    decoder exits), so that they could agree by saying nothing. Here the teaching exits get no
    gradient from what they teach, and the encoder's learns from the label. A half with fewer than
    two stages has no such term, with a warning. Overlapping regions are Bernoulli distributions,
    summed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdpipe.discover import Field, Parameters
from kdpipe.errors import ConfigError
from kdpipe.methods._stages import decoder_stages
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.adapters import pointwise
from kdpipe.terms.divergences import logit_kl
from kdpipe.terms.features import resize, unit_scale
from kdpipe.terms.weights import weighted

_logger = logging.getLogger(__name__)


class Params(Parameters):
    """Where the exits are, temperature and weights."""

    decoder_taps: tuple[str, ...] = Field(
        (), description="the last one teaches; empty: bottleneck and decoder stages"
    )
    encoder_taps: tuple[str, ...] = Field(
        (), description="the last one teaches; empty: all encoder stages"
    )
    tau: float = Field(3.0, gt=0, description="temperature of all softmaxes")
    weight_labels: float = Field(1.0, ge=0, description="of each exit's segmentation loss")
    weight_decoders: float = Field(1.0, ge=0, description="of each decoder exit's divergence")
    weight_encoders: float = Field(1.0, ge=0, description="of each encoder exit's divergence")


def half_loss(exits: Sequence[Tensor], tau: float, regions: bool = False) -> Tensor:
    """Return the sum of the divergences of all exits but the last from the last.

    Args:
        exits: logits ``(B, C, *S)`` of two exits or more; the last gets no gradient.
        tau: temperature, > 0; the loss is multiplied by its square.
        regions: whether the channels are overlapping regions.
    """
    *pupils, teacher = exits
    terms = [logit_kl(pupil, teacher, tau, regions).mean() for pupil in pupils]
    return tau**2 * torch.stack(terms).sum()


class Method(Distiller):
    """Exits at all stages, taught by labels and by the last stage of each half."""

    needs_teacher: ClassVar[bool] = False
    floor: ClassVar[float | None] = None  # exits learn from labels too, and have random weights

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        self.decoders = params.decoder_taps or _decoders(context)
        self.encoders = params.encoder_taps or tuple(context.encoders("student"))
        self.weight_decoders: float = self._kept("decoder", params.weight_decoders, self.decoders)
        self.weight_encoders: float = self._kept("encoder", params.weight_encoders, self.encoders)
        if not params.weight_labels and (self.weight_decoders or self.weight_encoders):
            raise ConfigError(
                "dual_sd: the teaching exits learn from the labels alone: with weight_labels 0 "
                "set weight_decoders and weight_encoders to 0 too"
            )
        if not params.weight_labels:
            self.decoders = self.encoders = ()
        elif not self.weight_encoders:
            self.encoders = ()
        taps = dict.fromkeys((*self.decoders, *self.encoders))
        self.exits = nn.ModuleDict({tap: self._exit(tap) for tap in taps})

    def student_taps(self) -> tuple[str, ...]:
        """The stages that have an exit."""
        return tuple(self.exits)

    def losses(
        self, student: Outputs, teacher: None, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``labels``, ``decoders`` and ``encoders``."""
        size, tau = student.logits.shape[2:], self.params.tau
        exits = {
            tap: resize(head(unit_scale(student.features[tap])), size)
            for tap, head in self.exits.items()
        }

        def labels() -> Tensor:
            labelled = dict.fromkeys((*self.decoders, *self.encoders[-1:]))
            seg = self.context.segmentation_loss
            return torch.stack([seg(exits[tap], target) for tap in labelled]).sum()

        def half(taps: tuple[str, ...]) -> Tensor:
            return half_loss([exits[tap] for tap in taps], tau, self.regions)

        return weighted(
            labels=(self.params.weight_labels, labels),
            decoders=(self.weight_decoders, lambda: half(self.decoders)),
            encoders=(self.weight_encoders, lambda: half(self.encoders)),
        )

    def _exit(self, tap: str) -> nn.Module:
        inputs = self.context.tap("student", tap).channels
        return pointwise(self.context.spatial_dims, inputs, self.context.num_classes, bias=True)

    def _kept(self, half: str, weight: float, taps: tuple[str, ...]) -> float:
        """The weight of a half's divergence, 0 where there is nobody to teach."""
        if weight and len(taps) < 2:
            _logger.warning("dual_sd: the %s has %d exits, none to teach", half, len(taps))
            return 0.0
        return weight


def _decoders(context: Context) -> tuple[str, ...]:
    bottleneck = ["bottleneck"] if "bottleneck" in context.student else []
    return (*bottleneck, *decoder_stages(context, "student"))
