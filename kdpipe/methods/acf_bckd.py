r"""ACF-BCKD: attention-corrected features, and boundaries that turn from hard to soft.

Paper: Yu, Teng, Zhang, Zheng, Chen: Attention correction feature and boundary constraint knowledge
    distillation for efficient 3D medical image segmentation, Expert Systems with Applications 262,
    2025 (125670).

Idea: Features: a learnt attention of the student stands for the teacher's residual correction
    (`acfd`). Logits: the student first learns at the label's boundaries (`hbd`), and more and more
    from the distance to the teacher's segmentation (`sbd`), which noise disturbs less.

Equation:

.. math::

    L = L_{AFD} + L_{CFD} + \lambda(t)\,L_{HBD} + (1 - \lambda(t))\,L_{SBD},\quad
        \lambda(t) = \max(\eta_{min},\; 1 - (1 - \eta_{end})\,t)

with t the share of the epochs that are done, and each loss with its weight.

Taps: ``pre_act`` of the student, ``corrected`` and ``correction`` of the teacher, and the logits.

Provenance:
- stated: the four losses and what they are for (abstract; the body of the paper was not at hand).
- code: every formula, tap and weight (official repository and its README); lambda falls by gamma an
  epoch. Nearly all published runs end at 0.5 to 0.55, hence ``eta_min`` and ``eta_end``; one series
  (BTCV, ResU-Net teacher) ends at 0.001: ``{eta_min: 0.001, eta_end: 0}``.
- ours: the schedule in shares of the training, and reductions that do not depend on the patch or
  the number of classes. The default weights are the published ones in this form: 0.226 is 25000 on
  a mean over 48³ voxels, 4 is the sum over 4 crops; the latter if all classes are in each crop.

Deviations: The published form is ``{reduction: mean, weight_afd: 25000, weight_cfd: 25000,
    hbd_reduction: sum, weight_hbd: 1}``, with ``gamma`` for the fall an epoch (0.001 and 0.0005 for
    BTCV's 1000 epochs, 0.0015 for WORD's 300, 0.01 for BraTS's 50; only the first has ``eta_min``
    0.001). A term is left out, not computed, while its weight is 0; the code computes the soft one
    at epoch 0. On the correction tap of SegResNet see `acfd`. Overlapping regions: as in `hbd` and
    `sbd`. A weight of 0 removes a part, and with both feature weights at 0 no taps are needed.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.methods import acfd
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.methods.hbd import hbd_loss
from kdpipe.methods.sbd import sbd_loss
from kdpipe.terms.weights import weighted


class Params(Parameters):
    """The parameters of the parts, and of the turn from hard to soft boundaries."""

    student_tap: str = Field("pre_act", description="logical name of the student's feature")
    corrected_tap: str = Field("corrected", description="the teacher's X + f(X)")
    correction_tap: str = Field("correction", description="the teacher's f(X)")
    weight_afd: float = Field(0.226, ge=0, description="of corrected features; mean: 25000")
    weight_cfd: float = Field(0.226, ge=0, description="of corrections; mean: 25000")
    reduction: Literal["sum", "mean"] = Field(
        "sum", description="of the feature losses, over voxels; published: mean"
    )
    weight_hbd: float = Field(4.0, ge=0, description="published: 1 with hbd_reduction sum")
    hbd_reduction: Literal["bands", "mean", "sum"] = Field("bands", description="see hbd")
    tau: float = Field(1.0, gt=0, description="temperature of the hard boundary loss")
    hbd_background: bool = Field(True, description="whether the background's band counts")
    weight_sbd: float = Field(1.0, ge=0)
    alpha: float = Field(2.0, gt=0, le=4, description="exponent of the soft boundary's distances")
    eta_end: float = Field(0.5, ge=0, le=1, description="share of the hard boundary in the end")
    eta_min: float = Field(0.5, ge=0, le=1, description="lowest share of the hard boundary")
    gamma: float | None = Field(
        None, ge=0, description="published: what the share falls an epoch, in place of eta_end"
    )


def hard_share(
    progress: Progress, eta_min: float, eta_end: float, gamma: float | None = None
) -> float:
    """Return the share of the hard boundary loss, in [eta_min, 1]; the rest is the soft one's.

    Args:
        progress: its epoch counts from 0.
        eta_min: lowest share.
        eta_end: share to which it would fall by the end of training.
        gamma: fall an epoch, in place of `eta_end`.
    """
    fall = (1.0 - eta_end) * progress.fraction if gamma is None else gamma * progress.epoch
    return max(eta_min, 1.0 - fall)


class Method(Distiller):
    """ACFD with hard and soft boundary distillation."""

    floor: ClassVar[float | None] = None  # as in acfd and sbd

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        names = acfd.Params.model_fields
        shared = acfd.Params(**{name: getattr(params, name) for name in names})
        self.acfd = acfd.Method(shared, context)

    def student_taps(self) -> tuple[str, ...]:
        """Those of `acfd`."""
        return self.acfd.student_taps()

    def teacher_taps(self) -> tuple[str, ...]:
        """Those of `acfd`."""
        return self.acfd.teacher_taps()

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``afd``, ``cfd``, ``hbd`` and ``sbd``."""
        params = self.params
        hard = hard_share(progress, params.eta_min, params.eta_end, params.gamma)
        ours, theirs = student.logits, teacher.logits

        def hbd() -> Tensor:
            return hbd_loss(
                ours,
                theirs,
                target,
                params.tau,
                self.regions,
                params.hbd_background,
                params.hbd_reduction,
            )

        def sbd() -> Tensor:
            return sbd_loss(ours, theirs, params.alpha, self.regions)

        terms = self.acfd.losses(student, teacher, target, progress)
        return terms | weighted(
            hbd=(params.weight_hbd * hard, hbd), sbd=(params.weight_sbd * (1.0 - hard), sbd)
        )
