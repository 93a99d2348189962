r"""KD (sigmoid MSE): the row "KD" of the ACF-BCKD tables, a squared error of sigmoids.

Paper: None of its own: the baseline called KD in the tables of ACF-BCKD (Expert Systems with
    Applications, 2025).

Idea: Each logit is squashed by a sigmoid of its own and regresses the teacher's. It is not the
    distillation of Hinton et al., but what the published numbers of the baseline come from.

Equation:

.. math::

    L = w\,\frac{1}{BC|S|}\sum_{b,c,v} (\sigma(z^s_{bcv}) - \sigma(z^t_{bcv}))^2

Taps: logits of both.

Provenance:
- stated: the tables call it KD; no equation for it was found.
- code: the KD configurations of ACF-BCKD set weight 10 and leave the loss at its default, which is
  this one, on BTCV and WORD (softmax problems) as on BraTS (regions).

Deviations: None. A fair baseline is `kd`, the divergence of softmaxes; this one serves the
    comparison with the published tables. The sigmoid ignores that classes exclude one another; for
    regions it is the right probability.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Distiller, Outputs, Progress
from kdpipe.terms.weights import weighted


class Params(Parameters):
    """Weight."""

    weight: float = Field(10.0, ge=0)


def sigmoid_mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over all elements of the squared difference of sigmoids, in [0, 1].

    Args:
        student: logits ``(B, C, *S)`` of classes or regions.
        teacher: logits ``(B, C, *S)``; gets no gradient.
    """
    return F.mse_loss(student.sigmoid(), teacher.detach().sigmoid())


class Method(Distiller):
    """Squared error of the sigmoids of the logits."""

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the term ``kd``."""
        return weighted(
            kd=(self.params.weight, lambda: sigmoid_mse_loss(student.logits, teacher.logits))
        )
