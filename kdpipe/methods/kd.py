r"""KD: the student matches the teacher's softened class probabilities at every voxel.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015 (arXiv:1503.02531), eq. 1
and section 2, applied voxel by voxel:

.. math::

    L = w\,\frac{\tau^2}{B|S|}\sum_{b,v}
        KL(softmax(z^t_{bv}/\tau)\,\|\,softmax(z^s_{bv}/\tau))

Deviation: the mean is over voxels, so the weight does not depend on the patch size. The row "KD"
of the ACF-BCKD tables is another loss, the mean squared error of sigmoids.
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


def kd_loss(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Return the voxel mean of the softened KL divergence, times tau squared.

    Args:
        student: logits ``(B, C, *S)``.
        teacher: logits ``(B, C, *S)``; gets no gradient.
        tau: temperature, > 0.
    """
    return tau**2 * soft_kl(student, teacher, tau, dim=1).mean()


class Method(Distiller):
    """Voxel-wise KD on the logits."""

    def forward(
        self, student: Outputs, teacher: Outputs | None, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the term ``kd``."""
        if teacher is None or self.params.weight == 0:
            return {}
        loss = kd_loss(student.logits.float(), teacher.logits.float(), self.params.tau)
        return {"kd": self.params.weight * loss}
