r"""FitNet: the student's feature, projected, regresses the teacher's feature.

Paper: Romero et al.: FitNets: Hints for Thin Deep Nets, ICLR 2015 (arXiv:1412.6550), eq. 3.

Idea: A hidden layer of the teacher is a hint for a hidden layer of the student. A learnt projection
    bridges the difference in width and is thrown away after training.

Equation:

.. math::

    L = w\,\frac{1}{B\,c_t|s|}\sum \Big(r(F^s) - \frac{F^t}{rms(F^t)}\Big)^2

Taps: ``penult`` of both (``student_tap``, ``teacher_tap``), averaged onto the coarser of the two
    grids.

Provenance:
- stated: squared error of a regressed hidden layer.
- code: 1×1 projection without bias, weight 10 (CIRKD's baselines).
- ours: one stage instead of hints first, then KD; the mean over elements; the hint divided by each
  sample's root mean square.

Deviations: The paper trains the hint first and distils logits afterwards; here both losses run
    together, as in later comparisons. Add logits with ``{sum: [kd, fitnet]}``. The published hint
    is the feature as it is, ``scale: raw``. Where that is a raw sum of residual blocks, its root
    mean square may be 100 and more and the term 10000 times as large: it drowns the segmentation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.adapters import pointwise
from kdpipe.terms.features import common_size, pool_to, unit_scale
from kdpipe.terms.weights import weighted


class Params(Parameters):
    """Taps, weight and the scale of the hint."""

    student_tap: str = Field("penult", description="logical name of the student's feature")
    teacher_tap: str = Field("penult", description="logical name of the teacher's feature")
    weight: float = Field(10.0, ge=0)
    scale: Literal["unit", "raw"] = Field(
        "unit", description="root mean square of the hint in a sample: 1; published: as it is"
    )


def hint_loss(
    student: Tensor, teacher: Tensor, project: Callable[[Tensor], Tensor], scale: str = "unit"
) -> Tensor:
    """Return the mean squared error of the projected student against the teacher.

    Args:
        student: feature ``(B, c, *s)``.
        teacher: ``(B, C, *S)``; gets no gradient.
        project: maps c channels to C; applied on the coarser grid, where it costs least.
        scale: ``unit`` divides each sample of the teacher, on that grid, by its root mean square;
            ``raw`` leaves it.
    """
    size = common_size(student, teacher)
    hint = pool_to(teacher.detach(), size)
    hint = unit_scale(hint) if scale == "unit" else hint
    return F.mse_loss(project(pool_to(student, size)), hint)


class Method(Distiller):
    """Regression of one teacher feature through a trained projection."""

    floor: ClassVar[float | None] = None  # the projection stands between the two

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        student, teacher = self.compare(params.student_tap, params.teacher_tap)
        self.project = pointwise(context.spatial_dims, student.channels, teacher.channels)

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the term ``hint``."""
        ours = student.features[self.params.student_tap]
        theirs = teacher.features[self.params.teacher_tap]

        def loss() -> Tensor:
            return hint_loss(ours, theirs, self.project, self.params.scale)

        return weighted(hint=(self.params.weight, loss))
