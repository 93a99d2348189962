r"""KD: the student matches the teacher's softened class probabilities at every voxel.

Paper: Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015
    (arXiv:1503.02531), eq. 1 and section 2, applied voxel by voxel.

Idea: Next to the label, the student learns from what the teacher thinks of all other classes.
    A temperature above 1 makes these small probabilities count; tau² keeps the gradient's size.

Equation:

.. math::

    L = w\,\frac{\tau^2}{B|S|}\sum_{b,v}
        KL(softmax(z^t_{bv}/\tau)\,\|\,softmax(z^s_{bv}/\tau))

Taps: logits of both.

Provenance:
- stated: divergence of softened probabilities, times tau².
- code: tau 4 as in EMKD's prediction map; others run tau from 1 to 30.
- ours: weight 1; mean over voxels, so that the weight does not depend on the patch.

Deviations: Overlapping regions are Bernoulli distributions of their own, summed. With
    ``reduction: elements`` the sum over classes is a mean too, as in several codes; with
    ``tau_squared: false`` the factor is left out, as in ACF-BCKD's KL branch. The row "KD" of the
    ACF-BCKD tables is another loss: `kd_mse_sigmoid`.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Distiller, Outputs, Progress
from kdpipe.terms.divergences import logit_kl
from kdpipe.terms.weights import weighted


class Params(Parameters):
    """Temperature, weight and the way of averaging."""

    tau: float = Field(4.0, gt=0, description="temperature of both softmaxes")
    weight: float = Field(1.0, ge=0)
    reduction: Literal["voxels", "elements"] = Field(
        "voxels", description="mean over voxels, or over voxels and classes"
    )
    tau_squared: bool = Field(
        True, description="factor tau², which keeps the gradient's size when tau changes"
    )


def kd_loss(
    student: Tensor,
    teacher: Tensor,
    tau: float,
    regions: bool = False,
    reduction: str = "voxels",
    tau_squared: bool = True,
) -> Tensor:
    """Return the mean of the softened KL divergence, times tau squared.

    Args:
        student: logits ``(B, C, *S)``.
        teacher: logits ``(B, C, *S)``; gets no gradient.
        tau: temperature, > 0.
        regions: whether the channels are overlapping regions.
        reduction: ``voxels`` sums over the channels, ``elements`` averages over them too.
        tau_squared: whether to multiply by tau squared.
    """
    loss = logit_kl(student, teacher, tau, regions).mean()
    if tau_squared:
        loss = tau**2 * loss
    return loss / student.shape[1] if reduction == "elements" else loss


class Method(Distiller):
    """Voxel-wise KD on the logits."""

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the term ``kd``."""
        params = self.params

        def loss() -> Tensor:
            return kd_loss(
                student.logits,
                teacher.logits,
                params.tau,
                self.regions,
                params.reduction,
                params.tau_squared,
            )

        return weighted(kd=(params.weight, loss))
