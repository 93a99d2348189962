r"""Reading of ACW-SKD: class-wise features and an adversarial temperature, without a teacher.

Paper: Yu, Shen, Zhang, Zheng: Adversarial class-wise self-knowledge distillation for medical image
    segmentation, Scientific Reports 15:13231, 2025. Only its abstract could be read.

Idea: An auxiliary head segments coarsely; its soft masks pool the penultimate feature into class
    centres. Reconstructed, feature and class-wise feature give a self-teacher, the objective of
    the next stage. The student learns from its logits at a temperature that is learnt against the
    student, and from its class centres, which are kept apart.

Equation:

.. math::

    L = w_{aux}\,seg(z_a, y) + w_{st}\,seg(\bar z, y) + r\Big[
        w_{adv}\,T^2 KL(p_T(\bar z)\,\|\,p_T(z))
        + w_{cls}\,\overline{\|\hat c_k - \bar c_k\|^2}
        + w_{sep}\,\overline{\max(0, \hat c_i \cdot \hat c_j - \delta)^2}\Big]

    with :math:`\bar z = h([\phi_p(F); \phi_c(F^{cw})])`, :math:`F^{cw}_v = \sum_k m_{vk} c_k`,
    masks m of the auxiliary head, centres c of F, :math:`\bar c` of :math:`\phi_p(F)`, both of
    unit length; k and pairs i, j over the classes present in the label, mean over the batch; r
    rises linearly over the first ``ramp`` of the steps;
    :math:`T = T_0 + T_1 \sigma(\theta)`, where the gradient of theta is reversed.

Taps: F is ``penult`` (``tap``), scaled to a root mean square of 1. The auxiliary head reads
    ``coarse_tap``: by default the finest decoder stage that is coarser than F, or the
    ``bottleneck`` in a shallow network.

Provenance:
- stated: no teacher; an auxiliary head's coarse masks refine class-wise features; class-wise
  feature distillation; feature reconstruction at the penultimate and at the class-wise layer;
  an adversarial loss with a learnable temperature; less similarity between classes.
- code: none could be had. The temperature is that of CTKD (zhengli97/CTKD): range 1 to 21, theta
  starts at 1, half-cosine growth of the reversal, here over a tenth of the steps.
- ours: all equations, the layers, the weights, the ramp, theta's learning rate.

Deviations: The published losses, weights and layers are unknown, so this is a reading, not a
    reproduction. Nothing of the three ramped terms reaches the self-teacher or the masks. Terms
    need the parts they rest on: weights that leave such a part untrained are refused. Without
    ``frm`` at the penultimate layer the centres equal their targets: the class term is left out,
    with a warning. The ablations are ``frm``, ``temperature`` (adversarial, plainly learnable or
    fixed at ``tau``), ``scope``, ``mask`` and the weights. Overlapping regions have sigmoid
    masks, Bernoulli divergences, summed, and no class for the background; nested regions share
    voxels, so their centres cannot part fully. Where divergences grow with the temperature, it
    drifts to ``start + span``; it is logged, and ``span: 4`` bounds it lower.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.discover import Field, Parameters
from kdpipe.errors import ConfigError
from kdpipe.methods._acw_modules import SelfTeacher, class_wise_feature
from kdpipe.methods._stages import decoder_stages
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.adapters import AdversarialTemperature, block, pointwise
from kdpipe.terms.divergences import bernoulli_kl, probabilities, soft_kl
from kdpipe.terms.features import resize, unit_scale
from kdpipe.terms.masks import class_centres, class_masks
from kdpipe.terms.weights import half_cosine, weighted

_logger = logging.getLogger(__name__)
#: norm below which a centre has no direction; features are scaled to a root mean square of 1
_DEAD = 1e-3


class Params(Parameters):
    """Taps, the parts and their ablations, schedules and weights."""

    tap: str = Field("penult", description="the feature that is refined")
    coarse_tap: str = Field("", description="empty: finest decoder stage coarser than tap")
    mask: Literal["soft", "argmax"] = Field("soft", description="masks of the auxiliary head")
    frm: Literal["both", "penult", "class", "none"] = Field(
        "both", description="where features are reconstructed"
    )
    frm_divisor: int = Field(1, ge=1, description="of the channels inside a reconstruction")
    temperature: Literal["adversarial", "learnable", "fixed"] = Field(
        "adversarial", description="learnt against the student, with it, or tau"
    )
    scope: Literal["global", "class"] = Field("global", description="one temperature, or one each")
    tau: float = Field(4.0, gt=0, description="the fixed temperature")
    start: float = Field(1.0, gt=0, description="lowest learnt temperature")
    span: float = Field(20.0, gt=0, description="the learnt temperature stays below start + span")
    growth: float = Field(0.1, ge=0, le=1, description="share of the steps to full reversal")
    lr_factor: float = Field(10.0, gt=0, description="of the temperature's learning rate")
    margin: float = Field(0.0, ge=-1, le=1, description="cosine of centres that costs nothing")
    ramp: float = Field(0.2, ge=0, le=1, description="share of the steps to full weights")
    weight_auxiliary: float = Field(0.4, ge=0, description="of the auxiliary head's loss")
    weight_self_teacher: float = Field(0.5, ge=0, description="of the self-teacher's loss")
    weight_adversarial: float = Field(1.0, ge=0, description="of the self-teacher's logits")
    weight_class: float = Field(1.0, ge=0, description="of the self-teacher's class centres")
    weight_separation: float = Field(0.1, ge=0, description="of the similarity of classes")


def tempered_kl(
    student: Tensor, teacher: Tensor, temperature: Tensor, regions: bool = False
) -> Tensor:
    """Return the softened divergence times the squared temperature, mean over voxels.

    Args:
        student: logits ``(B, C, *S)``.
        teacher: logits ``(B, C, *S)``; gets no gradient.
        temperature: ``(1,)`` for all, or ``(C,)``: that of the teacher's class at the voxel, or of
            the region; > 0. Gets the gradient of all its uses.
        regions: whether the channels are overlapping regions, which are summed.
    """
    if temperature.numel() > 1:
        if regions:
            temperature = temperature.view(1, -1, *[1] * (student.ndim - 2))
        else:
            temperature = temperature[teacher.detach().argmax(1, keepdim=True)]
    if regions:
        return (temperature.square() * bernoulli_kl(student, teacher, temperature)).sum(1).mean()
    divergence = soft_kl(student, teacher, temperature, dim=1).unsqueeze(1)
    return (temperature.square() * divergence).mean()


def class_pull(centres: Tensor, refined: Tensor, present: Tensor) -> Tensor:
    """Return the squared distance of unit class centres, mean over present classes and samples.

    Args:
        centres: ``(B, K, c)``.
        refined: ``(B, K, c)``; get no gradient.
        present: boolean ``(B, K)``; absent classes count nothing.
    """
    gap = F.normalize(centres, dim=2, eps=_DEAD) - F.normalize(refined.detach(), dim=2, eps=_DEAD)
    distance = torch.where(present, gap.square().sum(2), 0.0).sum(1)
    return (distance / present.sum(1).clamp_min(1)).mean()


def class_separation(centres: Tensor, present: Tensor, margin: float = 0.0) -> Tensor:
    """Return how similar classes are: squared cosines above `margin`, mean over pairs and samples.

    Args:
        centres: ``(B, K, c)``.
        present: boolean ``(B, K)``; a sample with fewer than two classes counts 0.
        margin: cosine up to which a pair costs nothing.
    """
    units = F.normalize(centres, dim=2, eps=_DEAD)
    excess = (units @ units.transpose(1, 2) - margin).relu().square()
    pairs = present.unsqueeze(1) & present.unsqueeze(2)
    pairs = pairs & ~torch.eye(present.shape[1], dtype=torch.bool, device=present.device)
    return (torch.where(pairs, excess, 0.0).sum((1, 2)) / pairs.sum((1, 2)).clamp_min(1)).mean()


class Method(Distiller):
    """Auxiliary head, class-wise features, reconstruction and an adversarial temperature."""

    needs_teacher: ClassVar[bool] = False
    is_reading: ClassVar[bool] = True
    floor: ClassVar[float | None] = None  # auxiliary head and self-teacher learn from labels

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        _check_weights(params)
        self.weight_class: float = params.weight_class
        if self.weight_class and params.frm in ("class", "none"):
            _logger.warning("acw_skd: without frm at the penultimate layer there is no class term")
            self.weight_class = 0.0
        self.coarse_tap = params.coarse_tap or _coarser(context, params.tap)
        self.auxiliary = self.self_teacher = self.adversary = None
        dims, outputs = context.spatial_dims, context.num_classes
        channels = context.tap("student", params.tap).channels
        if params.weight_auxiliary:
            inputs = context.tap("student", self.coarse_tap).channels
            head = pointwise(dims, channels, outputs, bias=True)
            self.auxiliary = nn.Sequential(block(dims, inputs, channels), head)
        if params.weight_self_teacher:
            places = {"penult", "class"} if params.frm == "both" else {params.frm}
            self.self_teacher = SelfTeacher(
                dims, channels, outputs, frozenset(places), params.frm_divisor
            )
        if params.weight_adversarial and params.temperature != "fixed":
            count = outputs if params.scope == "class" else 1
            self.adversary = AdversarialTemperature(params.start, params.span, count)

    def student_taps(self) -> tuple[str, ...]:
        """The refined feature and the auxiliary head's."""
        return (self.params.tap, self.coarse_tap)

    def losses(
        self, student: Outputs, teacher: None, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return ``auxiliary``, ``self_teacher``, ``adversarial``, ``class`` and ``separation``."""
        params, seg = self.params, self.context.segmentation_loss
        if self.auxiliary is None:
            return {}
        feature, size = unit_scale(student.features[params.tap]), student.logits.shape[2:]
        coarse = self.auxiliary(student.features[self.coarse_tap])
        masks = self._masks(resize(coarse.detach(), feature.shape[2:]))
        centres, _ = class_centres(feature, masks)
        logits = refined = feature.new_zeros(())  # not used without a self-teacher
        if self.self_teacher is not None:
            logits, refined = self.self_teacher(feature, class_wise_feature(centres, masks))
            logits = resize(logits, size)
        present = class_masks(target, self.context.num_classes, self.regions).flatten(2).any(2)
        present = present & (centres.detach().norm(dim=2) > _DEAD)

        def adversarial() -> Tensor:
            temperature = self._temperature(progress).to(logits)
            return tempered_kl(student.logits, logits, temperature, self.regions)

        def pull() -> Tensor:
            return class_pull(centres, class_centres(refined.detach(), masks)[0], present)

        ramp = progress.ramp(params.ramp)
        return weighted(
            auxiliary=(params.weight_auxiliary, lambda: seg(resize(coarse, size), target)),
            self_teacher=(params.weight_self_teacher, lambda: seg(logits, target)),
            adversarial=(ramp * params.weight_adversarial, adversarial),
            **{"class": (ramp * self.weight_class, pull)},
            separation=(
                ramp * params.weight_separation,
                lambda: class_separation(centres, present, params.margin),
            ),
        )

    def paced_parameters(self) -> Iterable[tuple[nn.Parameter, float]]:
        """The temperature's parameter: faster than the student, without weight decay."""
        return [(self.adversary.theta, self.params.lr_factor)] if self.adversary is not None else []

    def diagnostics(self) -> dict[str, float]:
        """The temperature, or those of the classes."""
        if self.adversary is None:
            return {}
        values = self.adversary(0.0).tolist()
        if len(values) == 1:
            return {"temperature": values[0]}
        return {f"temperature_{index}": value for index, value in enumerate(values)}

    def _masks(self, logits: Tensor) -> Tensor:
        if self.params.mask == "soft":
            return probabilities(logits, self.regions)
        if self.regions:
            return (logits > 0).to(logits.dtype)
        return class_masks(logits.argmax(1), logits.shape[1], False).to(logits.dtype)

    def _temperature(self, progress: Progress) -> Tensor:
        if self.adversary is None:
            return torch.tensor([self.params.tau])
        if self.params.temperature == "learnable":
            strength = -1.0  # reversed twice: theta descends like all else
        else:
            strength = half_cosine(progress.step / progress.steps, 0.0, self.params.growth)
        temperature: Tensor = self.adversary(strength)
        return temperature


def _check_weights(params: Any) -> None:
    """Refuse terms that rest on a part that nothing trains."""
    needs = {
        "weight_auxiliary": ("self_teacher", "adversarial", "class", "separation"),
        "weight_self_teacher": ("adversarial", "class"),
    }
    for part, terms in needs.items():
        used = [f"weight_{term}" for term in terms if getattr(params, f"weight_{term}")]
        if used and not getattr(params, part):
            raise ConfigError(
                f"acw_skd: {part} is 0, so nothing trains what {', '.join(used)} rest on: set "
                "these to 0 too"
            )


def _coarser(context: Context, tap: str) -> str:
    """The finest decoder stage coarser than `tap`, or the bottleneck."""
    fine = context.tap("student", tap).stride
    for stage in reversed(decoder_stages(context, "student")):
        stride = context.student[stage].stride
        if stride != fine and all(s >= f for s, f in zip(stride, fine, strict=True)):
            return stage
    return "bottleneck"
