r"""PS-KD: labels are softened by what the student itself said an epoch ago.

Paper: Kim, Ji, Yoon, Hwang: Self-Knowledge Distillation with Progressive Refinement of Targets,
    ICCV 2021 (arXiv:2006.12000).

Idea: The past student is the teacher: each voxel's label is mixed with the probabilities of the
    previous epoch's weights. The share of the past grows with training, as the student gets
    better; in the first epoch there is no past.

Equation:

.. math::

    L = w\,\big[CE((1-a)\,y + a\,p_{t-1},\,p) - CE(y, p)\big]
      = \frac{w\,a}{B|S|}\sum_{b,v,k} (y - p_{t-1})_{bvk}\, z_{bvk},\quad a = \alpha\,\frac{t}{T}

    in epoch t = 2..T. With the segmentation loss, whose cross-entropy is CE(y, p), the sum is the
    published loss plus Dice.

Taps: logits of the student and of its past self.

Provenance:
- stated: soft targets, the linear growth of their share.
- code: alpha 0.8, t counts from 1, no effect in epoch 1 (lgcnsai/PS-KD-Pytorch).
- ours: the weights of the previous epoch are kept, not its predictions, as crops differ; the Dice
  part of the segmentation loss keeps the hard labels.

Deviations: Alone, the term is linear in the logits; only the cross-entropy it corrects bounds it.
    So ``labels: replaced`` wants a segmentation loss with cross-entropy, ``dice_ce``. With
    ``labels: kept`` the hard labels stay and a times the divergence from the past is added, which
    goes with any loss. Overlapping regions use binary cross-entropies; a mean over regions too
    where labels are replaced, to match ``dice_ce``, their sum where they are kept.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.errors import ConfigError
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.divergences import logit_kl, probabilities
from kdpipe.terms.masks import class_masks
from kdpipe.terms.segmentation import dice_ce
from kdpipe.terms.weights import weighted


class Params(Parameters):
    """Share of the past, and how it enters."""

    alpha: float = Field(0.8, ge=0, le=1, description="share of the past in the last epoch")
    labels: Literal["replaced", "kept"] = Field(
        "replaced", description="published: soft labels replace the hard ones of cross-entropy"
    )
    weight: float = Field(1.0, ge=0, description="1 replaces the labels exactly")


def past_share(alpha: float, progress: Progress) -> float:
    """Return the share of the past self in the labels: 0 in the first epoch, alpha in the last."""
    return alpha * (progress.epoch + 1) / progress.epochs if progress.epoch else 0.0


def soft_label_shift(
    student: Tensor, past: Tensor, target: Tensor, share: float, regions: bool = False
) -> Tensor:
    """Return the cross-entropy with softened labels minus that with the hard ones.

    The log-partition cancels, so it is computed from the logits alone; it may be negative.

    Args:
        student: logits ``(B, C, *S)``.
        past: logits ``(B, C, *S)`` of the previous epoch; get no gradient.
        target: labels ``(B, *S)``, or regions ``(B, C, *S)``.
        share: of the past in the labels, in [0, 1].
        regions: whether the channels are overlapping regions; then it is a mean over them too.
    """
    hard = class_masks(target, student.shape[1], regions).to(student.dtype)
    shift = (hard - probabilities(past.detach(), regions)) * student
    return share * (shift.mean() if regions else shift.sum(1).mean())


class Method(Distiller):
    """Soft labels from the student of the previous epoch."""

    needs_teacher: ClassVar[bool] = False
    past_self: ClassVar[bool] = True
    floor: ClassVar[float | None] = None  # the labels are part of the term

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        if params.labels == "replaced" and context.segmentation_loss is not dice_ce:
            raise ConfigError(
                "ps_kd: labels 'replaced' corrects the cross-entropy of the segmentation loss "
                "dice_ce, which this study does not train with: set labels to 'kept'"
            )
        if params.labels == "replaced" and params.weight * params.alpha > 1:
            raise ConfigError(
                f"ps_kd: weight {params.weight:g} times alpha {params.alpha:g} is above 1, which "
                "would give the true label a negative share: lower the one or the other"
            )

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the term ``past``; none in the first epoch."""
        share = past_share(self.params.alpha, progress)

        def loss() -> Tensor:
            if self.params.labels == "kept":
                return share * logit_kl(student.logits, teacher.logits, 1.0, self.regions).mean()
            return soft_label_shift(student.logits, teacher.logits, target, share, self.regions)

        return weighted(past=(self.params.weight if share else 0.0, loss))
