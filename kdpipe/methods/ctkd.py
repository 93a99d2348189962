r"""CTKD: KD whose temperature is learnt against the student, from easy to hard.

Paper: Li, Li, Yang, Zhao, Song, Luo, Li, Yang: Curriculum Temperature for Knowledge Distillation,
    AAAI 2023 (arXiv:2211.16231), the global variant.

Idea: One temperature for the whole task is moved, through a gradient reversal, to where the
    student's loss is larger. The reversal's strength grows slowly, so that the task becomes harder
    as training goes on.

Equation:

.. math::

    L = w\,\frac{T^2}{B|S|}\sum_{b,v} KL(softmax(z^t_{bv}/T)\,\|\,softmax(z^s_{bv}/T)),\quad
        T = T_0 + T_1\,\sigma(\theta),\quad
        \nabla_\theta \leftarrow -\lambda\,\nabla_\theta,\quad
        \lambda = \tfrac12 (1 - \cos(\pi \min(1, t / t_c)))

Taps: logits of both.

Provenance:
- stated: an adversarial temperature, one a task or one a sample; the strength rises from 0 to 1 as
  a cosine; divergence times the squared temperature.
- code: theta starts at 1, T lies in 1 to 21 (so it starts at 15.6), the cosine takes 10 of 240
  epochs; cross-entropy and distillation are weighted 0.1 and 0.9.
- ours: weight 1, as for `kd`; a strength by step instead of by epoch; theta without weight decay,
  clipped to [-4, 4], at ten times the learning rate, as it hardly moves otherwise.

Deviations: Only the global variant: no temperature a sample. The published balance with the
    supervised loss is ``weight: 9``. For classes that a network hardly knows yet, the loss
    rises with T, and the adversary drifts to the upper end; ``span: 4`` keeps it low. The
    temperature is logged every epoch. Overlapping regions are Bernoulli distributions, summed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.adapters import AdversarialTemperature
from kdpipe.terms.divergences import logit_kl
from kdpipe.terms.weights import half_cosine, weighted


class Params(Parameters):
    """Range of the temperature, its curriculum and its learning rate."""

    weight: float = Field(1.0, ge=0)
    start: float = Field(1.0, gt=0, description="lowest temperature")
    span: float = Field(20.0, gt=0, description="the temperature stays below start + span")
    growth: float = Field(
        0.042, ge=0, le=1, description="share of the steps until the reversal has its full strength"
    )
    lr_factor: float = Field(
        10.0, gt=0, description="on the student's learning rate, for the temperature"
    )


def ctkd_loss(student: Tensor, teacher: Tensor, temperature: Tensor, regions: bool) -> Tensor:
    """Return the mean over voxels of the softened KL divergence, times the squared temperature.

    Args:
        student: logits ``(B, C, *S)``.
        teacher: logits ``(B, C, *S)``; gets no gradient.
        temperature: ``(1,)``, > 0; gets the gradient of both its uses.
        regions: whether the channels are overlapping regions.
    """
    divergence = logit_kl(student, teacher, temperature, regions).mean()
    return (temperature.square() * divergence).squeeze()


class Method(Distiller):
    """Voxel-wise KD with an adversarial temperature."""

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        self.temperature = AdversarialTemperature(params.start, params.span)

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the term ``ctkd``."""

        def loss() -> Tensor:
            strength = half_cosine(progress.step / progress.steps, 0.0, self.params.growth)
            temperature = self.temperature(strength)
            return ctkd_loss(student.logits, teacher.logits, temperature, self.regions)

        return weighted(ctkd=(self.params.weight, loss))

    def paced_parameters(self) -> Iterable[tuple[nn.Parameter, float]]:
        """The temperature's parameter: faster than the student, without weight decay."""
        return [(self.temperature.theta, self.params.lr_factor)]

    def diagnostics(self) -> dict[str, float]:
        """The temperature."""
        return {"temperature": self.temperature(0.0).item()}
