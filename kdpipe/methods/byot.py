r"""BYOT: exits at the decoder stages learn from the network's own logits and features.

Paper: Zhang et al.: Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks
    via Self Distillation, ICCV 2019 (arXiv:1905.08094).

Idea: A network is cut into stages, each with a small exit of its own. The exits learn from the
    label, from the last exit's softened logits and from its feature, and the stages with them.
    After training they are thrown away.

Equation:

.. math::

    L = w_{exits}\sum_i seg(z_i, y) + w_{logits}\,\tau^2\sum_i KL(p_\tau(z)\,\|\,p_\tau(z_i))
        + w_{hint}\sum_i mean(m_i (f_i - F)^2),\quad m_i = [f_i > 0\ or\ F > 0]

Taps: the decoder stages below the logits (``taps``; the ``bottleneck`` where there is none), and
    ``penult`` as the last feature F (``hint_tap``). Features of exits are resized to F's grid,
    logits to the patch.

Provenance:
- stated: exits, the three losses and the direction, from the deepest classifier to the others.
- code: tau 3, alpha 0.1, beta 1e-6 on a sum, the mask, sums over the exits
  (luanyunteng/pytorch-be-your-own-teacher).
- ours: exits at decoder stages, each a 3-wide convolution, instance norm, ReLU and a 1-wide head;
  the study's segmentation loss for the exits; F scaled to a root mean square of 1, as networks
  differ in it; weight 0.1 of the hint as a mean.

Deviations: The published sum (1 - alpha)(labels) + alpha(logits) is divided by 1 - alpha, so that
    the network's own segmentation loss keeps the weight 1: hence ``weight_logits`` 0.111. Its
    hint is a sum over all elements: ``{reduction: sum, weight_hint: 1.1e-6}``. The divergence has
    the gradient of the published soft cross-entropy. The exits' logits of overlapping regions are
    Bernoulli distributions, summed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdpipe.discover import Field, Parameters
from kdpipe.errors import ConfigError
from kdpipe.methods._stages import decoder_stages
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.adapters import block, pointwise
from kdpipe.terms.divergences import logit_kl
from kdpipe.terms.features import resize, unit_scale
from kdpipe.terms.weights import weighted


class Params(Parameters):
    """Where the exits are, temperature and weights."""

    taps: tuple[str, ...] = Field((), description="empty: the decoder stages below the logits")
    hint_tap: str = Field("penult", description="the feature that the exits' features regress")
    tau: float = Field(3.0, gt=0, description="temperature of both softmaxes")
    weight_exits: float = Field(1.0, ge=0, description="of each exit's segmentation loss")
    weight_logits: float = Field(0.111, ge=0, description="of each exit's divergence")
    weight_hint: float = Field(0.1, ge=0, description="of each exit's feature")
    reduction: Literal["mean", "sum"] = Field("mean", description="of the hint; published: sum")


def exit_loss(logits: Tensor, last: Tensor, tau: float, regions: bool = False) -> Tensor:
    """Return the softened divergence of an exit from the last logits, mean over voxels.

    Args:
        logits: the exit's ``(B, C, *S)``.
        last: the network's logits ``(B, C, *S)``; get no gradient.
        tau: temperature, > 0; the loss is multiplied by its square.
        regions: whether the channels are overlapping regions.
    """
    return tau**2 * logit_kl(logits, last, tau, regions).mean()


def hint_loss(feature: Tensor, last: Tensor, reduction: str = "mean") -> Tensor:
    """Return the squared error of an exit's feature where it or the last feature is positive.

    Args:
        feature: the exit's ``(B, c, *s)``, resized to the grid of `last`.
        last: ``(B, c, *S)``; gets no gradient.
        reduction: ``mean`` or ``sum`` over all elements, those left out counting 0.
    """
    feature, last = resize(feature, last.shape[2:]), last.detach()
    error = torch.where((feature > 0) | (last > 0), feature - last, 0.0).square()
    return error.sum() if reduction == "sum" else error.mean()


class Method(Distiller):
    """Exits that learn from the labels and from the end of their own network."""

    needs_teacher: ClassVar[bool] = False
    floor: ClassVar[float | None] = None  # exits learn from labels too, and have random weights

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        self.taps = params.taps or decoder_stages(context, "student") or ("bottleneck",)
        self.labelled = bool(params.weight_exits or params.weight_logits)
        self.bodies, self.heads = nn.ModuleDict(), nn.ModuleDict()
        if params.weight_hint and params.hint_tap in self.taps:
            raise ConfigError(f"byot: hint_tap {params.hint_tap!r} is one of the exits' taps")
        if not (self.labelled or params.weight_hint):
            return
        dims, width = context.spatial_dims, context.tap("student", params.hint_tap).channels
        for tap in self.taps:
            self.bodies[tap] = block(dims, context.tap("student", tap).channels, width)
            if self.labelled:
                self.heads[tap] = pointwise(dims, width, context.num_classes, bias=True)

    def student_taps(self) -> tuple[str, ...]:
        """The exits' stages and the last feature."""
        return (*self.taps, self.params.hint_tap)

    def losses(
        self, student: Outputs, teacher: None, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``exits``, ``logits`` and ``hint``, each summed over the exits."""
        params, last = self.params, student.logits
        features = [body(student.features[tap]) for tap, body in self.bodies.items()]
        exits = [
            resize(head(feature), last.shape[2:])
            for head, feature in zip(self.heads.values(), features, strict=False)
        ]
        seg = self.context.segmentation_loss

        def total(loss: Callable[[Tensor], Tensor], tensors: list[Tensor]) -> Tensor:
            return torch.stack([loss(tensor) for tensor in tensors]).sum()

        def hint() -> Tensor:
            deepest = unit_scale(student.features[params.hint_tap])
            return total(lambda f: hint_loss(f, deepest, params.reduction), features)

        return weighted(
            exits=(params.weight_exits, lambda: total(lambda z: seg(z, target), exits)),
            logits=(
                params.weight_logits,
                lambda: total(lambda z: exit_loss(z, last, params.tau, self.regions), exits),
            ),
            hint=(params.weight_hint, hint),
        )
