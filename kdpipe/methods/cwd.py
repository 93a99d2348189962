r"""CWD: channel-wise distillation; each class map becomes a distribution over the voxels.

Shu, Liu, Gao, Yan, Shen: Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021
(arXiv:2011.13256), eq. 2-4, on the logits:

.. math::

    L = w\,\frac{\tau^2}{BC}\sum_{b,c}
        KL(softmax_v(z^t_{bc}/\tau)\,\|\,softmax_v(z^s_{bc}/\tau))

The softmax runs over voxels, so a channel's divergence is summed over them, and its size is
independent of the patch. Default tau and weight as in the CT configurations of ACF-BCKD's code.
"""

from __future__ import annotations

from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Distiller, Outputs, Progress
from kdpipe.methods.terms import soft_kl


class Params(Parameters):
    """Temperature and weight."""

    tau: float = Field(4.0, gt=0, description="temperature of both softmaxes")
    weight: float = Field(1.0, ge=0)


def cwd_loss(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Return the mean over samples and channels of the softened KL over voxels, times tau squared.

    Args:
        student: logits ``(B, C, *S)``.
        teacher: logits ``(B, C, *S)``; gets no gradient.
        tau: temperature, > 0.
    """
    return tau**2 * soft_kl(student.flatten(2), teacher.flatten(2), tau, dim=2).mean()


class Method(Distiller):
    """Channel-wise distillation of the logits."""

    def forward(
        self, student: Outputs, teacher: Outputs | None, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the term ``cwd``."""
        if teacher is None or self.params.weight == 0:
            return {}
        loss = cwd_loss(student.logits.float(), teacher.logits.float(), self.params.tau)
        return {"cwd": self.params.weight * loss}
