r"""AT: attention transfer; maps of where features are strong agree at every stage.

Paper: Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017 (arXiv:1612.03928), eq. 2
    with p = 2.

Idea: The channel mean of squared features shows where a network looks. Normalised to unit length,
    these maps of student and teacher are compared stage by stage, whatever their widths.

Equation:

.. math::

    L = w\sum_{l}\frac{1}{B}\sum_{b}\|Q^s_{lb} - Q^t_{lb}\|_2^2,\quad
        Q = \frac{vec(mean_c F^2)}{\|vec(mean_c F^2)\|_2}

Taps: all stages that both networks have, from ``enc1`` to the finest decoder (or ``student_taps``
    and ``teacher_taps``); the teacher's map is resized to the student's grid, nearest.

Provenance:
- stated: squared attention maps of unit length, L2 distance, several stages.
- code: seven stages, the teacher's map resized to the student (ACF-BCKD).
- ours: the sum over voxels, and weight 1.

Deviations: ACF-BCKD's code takes the *mean* over voxels with weight 200 a stage, which ties the
    weight to the patch: ``{at: {reduction: mean, weight: 200}}`` is that row. For a teacher whose
    last stage is not its logits (SegResNet) it also has the student's logits copy that stage's
    attention, at a weight of 0.0002 in our form; here logits are paired with logits or not at all.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.methods._stages import chosen_pairs
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.features import attention, attention_distance, resize
from kdpipe.terms.weights import weighted


class Params(Parameters):
    """Taps, weight and the way of averaging."""

    student_taps: tuple[str, ...] = Field((), description="empty: all stages that both have")
    teacher_taps: tuple[str, ...] = Field((), description="as many as student_taps")
    weight: float = Field(1.0, ge=0, description="of each stage")
    reduction: Literal["sum", "mean"] = Field("sum", description="over voxels; published: mean")


def at_loss(student: Tensor, teacher: Tensor, reduction: str = "sum") -> Tensor:
    """Return the distance of two attention maps, mean over the batch.

    Args:
        student: feature ``(B, c, *s)``.
        teacher: feature ``(B, C, *S)``, resized to the student's grid; gets no gradient.
        reduction: ``sum`` over voxels, in [0, 2], or ``mean``.
    """
    theirs = resize(attention(teacher.detach()), student.shape[2:], "nearest")
    loss = attention_distance(attention(student), theirs)
    return loss / student[0, 0].numel() if reduction == "mean" else loss


class Method(Distiller):
    """Attention transfer over pairs of stages."""

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        self.pairs = chosen_pairs(
            "at", params.student_taps, params.teacher_taps, context.stage_pairs()
        )

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the term ``at``, summed over the stages."""

        def loss() -> Tensor:
            terms = [
                at_loss(student.features[ours], teacher.features[theirs], self.params.reduction)
                for ours, theirs in self.pairs
            ]
            return sum(terms[1:], terms[0])

        return weighted(at=(self.params.weight, loss))
