r"""SP: similarity-preserving; samples that look alike to the teacher look alike to the student.

Paper: Tung, Mori: Similarity-Preserving Knowledge Distillation, ICCV 2019 (arXiv:1907.09682).

Idea: The matrix of inner products of a batch's activations says which samples a network treats
    alike. It has the same size for any network, so features of unlike width and grid compare.

Equation:

.. math::

    L = w\,\frac{1}{B}\sum_{b,b'}(\tilde G^s_{bb'} - \tilde G^t_{bb'})^2,\quad
        \tilde G_b = \frac{G_b}{\|G_b\|_2},\; G = QQ^\top,\; Q_b = vec(F_b)

Taps: ``bottleneck`` of both (``student_tap``, ``teacher_tap``).

Provenance:
- stated: rows of unit length, squared Frobenius distance over the squared batch, weight 3000.
- ours: the bottleneck as the layer; one division by the batch instead of two, with weight 20, about
  3000 over a batch of 128 as in classification.

Deviations: Divided by B² the term is some hundred times larger for the batches of volumes than for
    those of small images: ``{sp: {reduction: entries, weight: 3000}}``. A batch of one has no
    relation: the term is 0 without gradient; batches of 2 to 4 carry little. Regions make no
    difference.
"""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.weights import weighted


class Params(Parameters):
    """Taps, weight and the way of averaging."""

    student_tap: str = Field("bottleneck", description="logical name of the student's feature")
    teacher_tap: str = Field("bottleneck", description="logical name of the teacher's feature")
    weight: float = Field(20.0, ge=0)
    reduction: Literal["rows", "entries"] = Field(
        "rows", description="mean over the rows of the matrix; published: over its entries"
    )


def sp_loss(student: Tensor, teacher: Tensor, reduction: str = "rows") -> Tensor:
    """Return the squared distance of two similarity matrices of a batch.

    Args:
        student: feature ``(B, c, *s)``.
        teacher: feature ``(B, C, *S)``; gets no gradient.
        reduction: ``rows`` gives the mean over rows, in [0, 4], ``entries`` that over entries.
    """
    difference = (_similarities(student) - _similarities(teacher.detach())).square()
    return difference.mean() if reduction == "entries" else difference.sum(dim=1).mean()


def _similarities(feature: Tensor) -> Tensor:
    """Inner products of all pairs of samples, rows of unit length, ``(B, B)``."""
    vectors = feature.flatten(1)
    return F.normalize(vectors @ vectors.T, dim=1)


class Method(Distiller):
    """Similarity of the samples of a batch at one feature."""

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        self.compare(params.student_tap, params.teacher_tap)

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the term ``similarity``."""
        params = self.params
        ours = student.features[params.student_tap]
        theirs = teacher.features[params.teacher_tap]
        return weighted(similarity=(params.weight, lambda: sp_loss(ours, theirs, params.reduction)))
