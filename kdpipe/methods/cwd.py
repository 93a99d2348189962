r"""CWD: channel-wise distillation; each class map becomes a distribution over the voxels.

Paper: Shu, Liu, Gao, Yan, Shen: Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021
    (arXiv:2011.13256), eq. 2-4, on the logits.

Idea: A softmax over the voxels of one channel says where a class is most salient. Matching these
    distributions channel by channel ignores how strong a class is and keeps where it is.

Equation:

.. math::

    L = w\,\frac{\tau^2}{BC}\sum_{b,c}
        KL(softmax_v(z^t_{bc}/\tau)\,\|\,softmax_v(z^s_{bc}/\tau))

Taps: logits of both.

Provenance:
- stated: softmax over positions, KL summed over them, tau 4.
- code: weight 1 as in the CT configurations of ACF-BCKD (0.1 for BraTS); the paper has 3.

Deviations: None. The divergence of a channel is summed over its voxels, so its size does not depend
    on the patch. Channels may be classes or overlapping regions.
"""

from __future__ import annotations

from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Distiller, Outputs, Progress
from kdpipe.terms.divergences import soft_kl
from kdpipe.terms.weights import weighted


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

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the term ``cwd``."""
        params = self.params
        return weighted(
            cwd=(params.weight, lambda: cwd_loss(student.logits, teacher.logits, params.tau))
        )
