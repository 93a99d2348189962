r"""HLFD: the teacher's middle and last stages are fed back to earlier student stages.

Paper: Gorade, Mittal, Jha, Bagci: Rethinking Intermediate Layers Design in Knowledge Distillation
    for Kidney and Liver Tumor Segmentation, ISBI 2024 (arXiv:2311.16700), by its abstract and its
    authors' code (vangorade/RethinkingKD_ISBI24); the body of the paper was not at hand.

Idea: Distilling level to level teaches a student's shallow stages from what is shallow in the
    teacher. Here the first stage learns from a combination of the teacher's middle stages, and the
    stages between learn from the teacher's last one: encoders as importance maps (feature level),
    decoders as class distributions (pixel level).

Equation:

.. math::

    L = \frac{w_p}{2}\Big[KL_\tau(d^s_1, [d^t_1..d^t_{q-1}])
            + \sum_{i=2}^{p} KL_\tau(d^s_i, z^t)\Big]
      + \frac{w_f}{2}\Big[D(e^s_1, [e^t_2..e^t_{m-1}]) + \sum_{i=2}^{n-1} D(e^s_i, e^t_m)\Big]

    KL_\tau(a, b) = \frac{\tau^2}{B|S|}\sum_{b,v} KL(softmax(b/\tau)\,\|\,softmax(A(a)/\tau)),\quad
    D(a, b) = \frac{1}{B}\sum_b\|Q(a) - Q(b)\|_2^2,\quad
    Q = \frac{vec(mean_c F^4)}{\|vec(mean_c F^4)\|_2}

Taps: e_1..e_n are ``enc1``, ``enc2``, ... (finest first) and ``bottleneck``; d_1..d_p are ``dec1``,
    ``dec2``, ... (coarsest first) without a last one that is the logits; z is the logits. Networks
    of five levels give the paper's e1..e5 and d5..d2. At any other depth, first, last and the
    stages between are those of each network; where nothing lies between, its last encoder stage or
    its logits stand in. Or name the taps. Stages in [ ] are resized to the coarsest of them and
    joined.

Provenance:
- stated: middle stages combined feed earlier stages, the final layer feeds intermediate ones, both
  at the level of features and of pixels (abstract).
- code: which stages, halves of both sums, temperature 4, power 4, weights 0.1 and 0.9, the
  ablations in ``variant``, bilinear resizing; a single teacher map is compared on the teacher's
  grid, a combination on the student's.
- ours: the rule for other depths, trained adapters A, mean over voxels.

Deviations: The public code draws new random 1×1 adapters in every step and trains none; here they
    are drawn once and trained. For the combination it projects the *teacher*, which a trained
    adapter could make constant: here the student is projected to the teacher's channels (and
    compared on the coarser of both grids). ``adapters: frozen`` is near parity: the teacher's side
    is projected there and no adapter learns. Logits meet logits without an adapter. The published
    divergence is divided by half the number of elements, whatever the channels; this is
    ``normalisation: published`` and the same for two classes. In ``deep_kd`` the code compares the
    student's d5 with itself; here with the teacher's. ``attn_kd`` is published with weight 1, it
    has no pixel level. At the pixel level a decoder stage stands for logits, scaled to a root mean
    square of 1: the published networks normalise their stages, others sum them up (SegResNet),
    whose softmax is nearly one-hot (``scale: raw`` leaves them). Regions: logits are Bernoulli
    distributions, features stay softmaxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from kdpipe.discover import Field, Parameters
from kdpipe.errors import ConfigError
from kdpipe.methods._stages import decoder_stages, encoder_stages
from kdpipe.methods.base import Context, Distiller, Outputs, Progress, Side
from kdpipe.methods.kd import kd_loss
from kdpipe.terms.adapters import pointwise
from kdpipe.terms.features import (
    attention_distance,
    common_size,
    resize,
    resized_attention,
    unit_scale,
)
from kdpipe.terms.weights import weighted

Taps = tuple[str, ...]
_LOGITS: Taps = ("logits",)


class Params(Parameters):
    """Variant, taps, weights and ways of averaging and projecting."""

    variant: Literal["hlfd", "attn_kd", "wo_feedback", "deep_kd", "hifd", "ifd"] = Field(
        "hlfd",
        description="hlfd: the method; attn_kd: last encoder stage only; wo_feedback: last encoder "
        "stage and logits; deep_kd: level to level; hifd: last to every second stage; ifd: last "
        "to the joined student stages",
    )
    student_encoders: tuple[str, ...] = Field((), description="finest first; empty: all stages")
    student_decoders: tuple[str, ...] = Field((), description="coarsest first; empty: all stages")
    teacher_encoders: tuple[str, ...] = Field((), description="finest first; empty: all stages")
    teacher_decoders: tuple[str, ...] = Field((), description="coarsest first; empty: all stages")
    tau: float = Field(4.0, gt=0, description="temperature at the pixel level")
    power: int = Field(4, ge=1, description="of the features in importance maps")
    weight_pixel: float = Field(0.1, ge=0, description="of the pixel level")
    weight_feature: float = Field(0.9, ge=0, description="of the feature level")
    adapters: Literal["trained", "frozen"] = Field(
        "trained", description="frozen: random, and on the teacher's side of a combination"
    )
    scale: Literal["unit", "raw"] = Field(
        "unit", description="of stages at the pixel level: root mean square 1, or as they are"
    )
    normalisation: Literal["voxels", "published"] = Field(
        "voxels", description="mean over voxels, or over half the number of elements"
    )


class Flow(NamedTuple):
    """Student stages that learn, joined, from teacher stages, and the share in the sum."""

    ours: Taps
    theirs: Taps
    share: float = 1.0


def feedback(variant: str, ours: Taps, theirs: Taps, pixel: bool) -> list[Flow]:
    """Return which student stages learn from which teacher stages.

    Args:
        variant: as the parameter.
        ours: the student's stages, first to last; at least one. Encoders finest first, the last is
            the bottleneck; or decoders coarsest first, the last is the logits.
        theirs: the teacher's.
        pixel: whether they are decoders.
    """
    stages, last, source = ours[:-1], ours[-1:], theirs[-1:]
    if variant == "hlfd":
        middle = theirs[:-2] if pixel else theirs[1:-1]
        combined = Flow(stages[:1] or last, middle or source, 0.5)
        return [combined, *(Flow((tap,), source, 0.5) for tap in stages[1:] or last)]
    flows = [Flow(last, source)]
    if variant == "deep_kd":
        order = -1 if pixel else 1  # the finest stages are a pair, where one network has more
        pairs = zip(stages[::order], theirs[:-1][::order], strict=False)
        flows += [Flow((own,), (other,)) for own, other in pairs]
    elif variant == "hifd":
        flows += [Flow((tap,), source) for tap in stages[1::2]]
    elif variant == "ifd" and stages:
        flows.append(Flow(stages, source))
    return flows


def joined(features: Sequence[Tensor]) -> Tensor:
    """Return features ``(B, c_i, *s_i)`` on the coarsest grid of them, channels one after another.

    The coarsest grid has the shortest side along each axis; resizing is linear.
    """
    sizes = [feature.shape[2:] for feature in features]
    coarsest = [min(sides) for sides in zip(*sizes, strict=True)]
    return torch.cat([resize(feature, coarsest) for feature in features], dim=1)


def feature_loss(student: Tensor, teacher: Tensor, on: Side = "teacher", power: int = 4) -> Tensor:
    """Return the squared distance of two importance maps, mean over the batch, in [0, 2].

    Args:
        student: feature ``(B, c, *s)``.
        teacher: feature ``(B, C, *S)``; gets no gradient.
        on: whose grid the other is resized to.
        power: of the features, >= 1, taken after resizing.
    """
    size = (student if on == "student" else teacher).shape[2:]
    theirs = resized_attention(teacher.detach(), size, power)
    return attention_distance(resized_attention(student, size, power), theirs)


def pixel_loss(
    student: Tensor,
    teacher: Tensor,
    tau: float = 4.0,
    on: Side = "teacher",
    regions: bool = False,
    normalisation: str = "voxels",
) -> Tensor:
    """Return the softened divergence of two maps of equal channels, times tau squared.

    Args:
        student: ``(B, C, *s)``, projected where it had other channels.
        teacher: ``(B, C, *S)``; gets no gradient.
        tau: temperature, > 0.
        on: whose grid the other is resized to.
        regions: whether the channels are overlapping regions.
        normalisation: ``voxels``: mean over voxels; ``published``: sum over half of all elements.
    """
    size = (student if on == "student" else teacher).shape[2:]
    loss = kd_loss(resize(student, size), resize(teacher, size), tau, regions)
    return 2.0 * loss / student.shape[1] if normalisation == "published" else loss


class Method(Distiller):
    """Feedback of teacher stages to earlier student stages, and its ablations."""

    floor: ClassVar[float | None] = None  # adapters and other stages stand between the two

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        self.feature_flows: list[Flow] = []
        self.pixel_flows: list[Flow] = []
        if params.weight_feature:
            ours, theirs = self._encoders("student"), self._encoders("teacher")
            self.feature_flows = feedback(params.variant, ours, theirs, pixel=False)
        if params.weight_pixel and params.variant != "attn_kd":
            ours, theirs = self._decoders("student"), self._decoders("teacher")
            self.pixel_flows = feedback(params.variant, ours, theirs, pixel=True)
        self.adapters = nn.ModuleList(self._adapter(flow) for flow in self.pixel_flows)
        if params.adapters == "frozen":
            self.adapters.requires_grad_(False)

    def student_taps(self) -> Taps:
        """The stages that learn."""
        return _features(flow.ours for flow in (*self.feature_flows, *self.pixel_flows))

    def teacher_taps(self) -> Taps:
        """The stages that are fed back."""
        return _features(flow.theirs for flow in (*self.feature_flows, *self.pixel_flows))

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``pixel`` (not in ``attn_kd``) and ``feature``."""

        def pixel() -> Tensor:
            flows = zip(self.pixel_flows, self.adapters, strict=True)
            terms = [flow.share * self._pixel(flow, a, student, teacher) for flow, a in flows]
            return torch.stack(terms).sum()

        def feature() -> Tensor:
            flows = self.feature_flows
            terms = [flow.share * self._feature(flow, student, teacher) for flow in flows]
            return torch.stack(terms).sum()

        return weighted(
            pixel=(self.params.weight_pixel if self.pixel_flows else 0.0, pixel),
            feature=(self.params.weight_feature, feature),
        )

    def _feature(self, flow: Flow, student: Outputs, teacher: Outputs) -> Tensor:
        on: Side = "student" if len(flow.theirs) > 1 else "teacher"
        ours, theirs = _joined_stages(student, flow.ours), _joined_stages(teacher, flow.theirs)
        return feature_loss(ours, theirs, on, self.params.power)

    def _pixel(self, flow: Flow, adapter: nn.Module, student: Outputs, teacher: Outputs) -> Tensor:
        params = self.params
        on: Side = "teacher"
        unit = params.scale == "unit"
        ours = _joined_stages(student, flow.ours, unit)
        theirs = _joined_stages(teacher, flow.theirs, unit)
        if self._projects_teacher(flow):
            theirs, on = adapter(theirs), "student"
        else:  # resizing commutes with the adapter: first whatever makes the grid coarser
            size = common_size(ours, theirs)
            ours = adapter(resize(ours, size))
            theirs = resize(theirs, size) if len(flow.theirs) > 1 else theirs
        regions = self.regions and flow.theirs == _LOGITS
        return pixel_loss(ours, theirs, params.tau, on, regions, params.normalisation)

    def _adapter(self, flow: Flow) -> nn.Module:
        """The layer between the channels of the two sides of a flow."""
        if flow.ours == flow.theirs == _LOGITS:
            return nn.Identity()
        ends = self._channels("student", flow.ours), self._channels("teacher", flow.theirs)
        ends = ends[::-1] if self._projects_teacher(flow) else ends
        return pointwise(self.context.spatial_dims, *ends, bias=True)

    def _projects_teacher(self, flow: Flow) -> bool:
        return self.params.adapters == "frozen" and len(flow.theirs) > 1

    def _channels(self, side: Side, taps: Taps) -> int:
        context = self.context
        found = [context.tap(side, tap).channels for tap in taps if tap != "logits"]
        return sum(found) + context.num_classes * taps.count("logits")

    def _encoders(self, side: Side) -> Taps:
        stages: Taps = getattr(self.params, f"{side}_encoders")
        stages = stages or encoder_stages(self.context, side)
        if not stages:
            raise ConfigError(
                f"hlfd: the {side} has no stage enc1, enc2, ... and no bottleneck; name its "
                f"features, finest first, in {side}_encoders, or set weight_feature to 0"
            )
        self._channels(side, stages)  # a tap that is not there is refused
        return stages

    def _decoders(self, side: Side) -> Taps:
        stages: Taps = getattr(self.params, f"{side}_decoders")
        return (*(stages or decoder_stages(self.context, side)), "logits")


def _joined_stages(outputs: Outputs, taps: Taps, unit: bool = False) -> Tensor:
    scaled = unit_scale if unit else (lambda feature: feature)
    return joined(
        [outputs.logits if tap == "logits" else scaled(outputs.features[tap]) for tap in taps]
    )


def _features(groups: Iterable[Taps]) -> Taps:
    """The taps in order, each once; logits come with every output."""
    return tuple(dict.fromkeys(tap for taps in groups for tap in taps if tap != "logits"))
