r"""Reading of MSKD: filtered saliency maps and graphs of regions agree, layer by layer.

Paper: Zhao, Qian, Guo, Song, Hou, Gong: MSKD: Structured knowledge distillation for efficient
    medical image segmentation, Computers in Biology and Medicine 2023
    (doi:10.1016/j.compbiomed.2023.107284). Only the abstract could be read.

Idea: Feature filtering distillation compares where two networks are salient, at the places that
    the teacher is decided about. Region graph distillation compares how regions resemble each
    other, directly and after one step of message passing. Neither needs equal widths.

Equation:

.. math::

    L = \frac{r(t)}{|\ell|} \sum_\ell \Big( w_F\, mean_v\, W_v (Z^s_v - Z^t_v)^2
        + w_R \big( mean (E^s - E^t)^2 + mean (A^s E^s - A^t E^t)^2 \big) \Big)

    Z = standardised \sum_c softmax_c(mean_v F^+)\, F^+, \quad F^+ = ReLU(F), \quad
    W = u^\gamma / mean(u^\gamma)

    u = q\,[q \ge \kappa] + (1-q)\,[1-q \ge \kappa], \quad q = sigmoid(Z^t), \quad
    E = \hat v^\top \hat v, \quad A = softmax(E / 0.1)

Taps: of both, ``bottleneck``, the decoder stage before the finest, and ``penult`` (or
    ``student_taps`` and ``teacher_taps``). The student's map is resized to the teacher's grid;
    nodes are averages over one common coarse grid, or class means.

Provenance:
- stated: two modules, filtering of features and a graph of regions of higher order; no additional
  parameters; Synapse and KiTS.
- code: a third party's unfinished draft (ACF-BCKD) has ReLU, channel weights by softmax of the
  average, the two-sided filter, exponent 0.6, and pooled patches as nodes with their distance.
- ours: the standardised map, kappa 0.6, the graph's edges between nodes of standardised channels,
  the hop as our reading of "higher order", the layers, weights 0.5 and 1, the ramp over a fifth of
  the training, KD switched off.

Deviations: Not to be confused with the multi-scale distillation, also called MSKD, of LCOV-Net
    (Zhao Qianfei et al., TMI 2023), nor with multi-teacher MSKD. In the draft the map is not
    centred, so its filter at 0.5 keeps everything; and its mean over channels ties the map to the
    width: both are mended. Features are scaled to a root mean square of 1 before the softmax of
    their channels, and each channel is standardised over the voxels before patches are compared, as
    otherwise what all places share hides how they differ. Nodes themselves (mean of 1 minus their
    cosine) are compared only with ``node_adapter: true``, which trains a 1×1 projection, since
    channel i of the one network has nothing to do with channel i of the other. With ``region:
    class`` the nodes are means within the labels (overlapping regions have one each); a sample with
    fewer than two falls back to patches. It is not said of what the published gain of up to 18.56 %
    is a share; in this line of work such numbers are relative.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdpipe.discover import Field, Parameters
from kdpipe.methods._stages import chosen_pairs, decoder_stages
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.methods.kd import kd_loss
from kdpipe.terms.adapters import pointwise
from kdpipe.terms.features import (
    channel_standardised,
    normalised,
    resize,
    unit_scale,
)
from kdpipe.terms.masks import class_centres, class_masks, resize_target
from kdpipe.terms.relations import cosine_gram, default_grid, shared_nodes
from kdpipe.terms.weights import weighted

_EPS = 1e-6
_HOP_TAU = 0.1


class Params(Parameters):
    """Layers, the filter, the graph and the weights."""

    student_taps: tuple[str, ...] = Field(
        (), description="empty: bottleneck, the decoder stage before the finest, penult"
    )
    teacher_taps: tuple[str, ...] = Field((), description="as many as student_taps")
    weight_ffd: float = Field(0.5, ge=0, description="of the filtered saliency maps")
    weight_rgd: float = Field(1.0, ge=0, description="of the graphs of regions")
    weight_kd: float = Field(0.0, ge=0, description="of logits KD")
    tau: float = Field(4.0, gt=0, description="temperature of logits KD")
    kappa: float = Field(
        0.6, ge=0.5, lt=1, description="how decided the teacher must be; 0.5 keeps all places"
    )
    gamma: float = Field(0.6, gt=0, description="exponent of the filter's weights")
    region: Literal["patch", "class"] = Field(
        "patch", description="nodes: cells of a grid, or means within the labels"
    )
    grid: int | None = Field(
        None, ge=1, description="cells a side at most; null: 16 in 2D, 8 in 3D"
    )
    hop: bool = Field(True, description="compare the graphs after a step of message passing too")
    node_adapter: bool = Field(False, description="compare nodes too, the student's projected")
    ramp: float = Field(0.2, ge=0, le=1, description="share of the training that ffd, rgd rise in")


def saliency(feature: Tensor) -> Tensor:
    """Return the weighted sum of the positive channels, ``(B, 1, *S)``, >= 0.

    A channel's weight is the softmax, over channels, of its mean.

    Args:
        feature: ``(B, c, *S)``.
    """
    positive = feature.relu().flatten(2)
    weights = positive.mean(2).softmax(dim=1)
    total: Tensor = (weights.unsqueeze(1) @ positive).unflatten(2, feature.shape[2:])
    return total


def standardised(maps: Tensor) -> Tensor:
    """Return ``(B, n)`` with mean 0 and standard deviation 1; 0 where a map is constant."""
    centred = maps - maps.mean(1, keepdim=True)
    norms = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    deviation: Tensor = norms / maps.shape[1] ** 0.5
    return centred / (deviation + _EPS)


def decided(teacher: Tensor, kappa: float, gamma: float) -> Tensor:
    """Return the filter's weights ``(B, n)``, mean 1; 0 where the teacher is undecided.

    Args:
        teacher: standardised map ``(B, n)``.
        kappa: lowest probability, of salient or of clear, that is kept.
        gamma: exponent.
    """
    salient = teacher.sigmoid()
    clear = 1.0 - salient
    kept = salient * (salient >= kappa) + clear * (clear >= kappa)
    kept = torch.where(kept.amax(1, keepdim=True) > 0, kept, 1.0).pow(gamma)
    return kept / kept.mean(1, keepdim=True)


def filtering_loss(student: Tensor, teacher: Tensor, kappa: float, gamma: float) -> Tensor:
    """Return the weighted squared difference of two saliency maps, mean over batch and places.

    Args:
        student: feature ``(B, c, *s)``; its map is resized to the teacher's grid.
        teacher: feature ``(B, C, *S)``; gets no gradient.
        kappa: see `decided`.
        gamma: see `decided`.
    """
    theirs = standardised(saliency(unit_scale(teacher.detach())).flatten(1))
    ours = saliency(unit_scale(student))
    ours = standardised(resize(ours, teacher.shape[2:]).flatten(1))
    return (decided(theirs, kappa, gamma) * (ours - theirs).pow(2)).mean()


def graph_loss(student: Tensor, teacher: Tensor, hop: bool) -> Tensor:
    """Return the difference of two graphs' edges, directly and after message passing.

    Args:
        student: nodes ``(B, c, n)``.
        teacher: nodes ``(B, C, n)``; get no gradient.
        hop: whether to add the graphs after one step.
    """
    ours, theirs = cosine_gram(student), cosine_gram(teacher.detach())
    loss = (ours - theirs).pow(2).mean()
    return loss + (_passed(ours) - _passed(theirs)).pow(2).mean() if hop else loss


def node_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return one minus the mean cosine of nodes ``(B, c, n)``, in [0, 2]; as `graph_loss`."""
    ours, theirs = normalised(student, dim=1), normalised(teacher.detach(), dim=1)
    return 1.0 - (ours * theirs).sum(1).mean()


def _passed(edges: Tensor) -> Tensor:
    return (edges / _HOP_TAU).softmax(dim=2) @ edges


class Method(Distiller):
    """Filtered maps and region graphs over pairs of layers."""

    is_reading: ClassVar[bool] = True

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        named = params.student_taps, params.teacher_taps
        self.pairs = chosen_pairs("mskd", *named, _default_pairs(context))
        self.grid = params.grid or default_grid(context.spatial_dims)
        self.adapters = nn.ModuleDict()
        for index, (ours, theirs) in enumerate(self.pairs):
            widths = context.tap("student", ours).channels, context.tap("teacher", theirs).channels
            if params.node_adapter and params.weight_rgd:
                self.adapters[str(index)] = pointwise(context.spatial_dims, *widths)

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``ffd`` and ``rgd``, means over the layers, and ``kd``."""
        params, ramp = self.params, progress.ramp(self.params.ramp)
        pairs = [(student.features[ours], teacher.features[theirs]) for ours, theirs in self.pairs]

        def filtering() -> Tensor:
            terms = [filtering_loss(*pair, params.kappa, params.gamma) for pair in pairs]
            return torch.stack(terms).mean()

        def graphs() -> Tensor:
            terms = [self._graphs(index, *pair, target) for index, pair in enumerate(pairs)]
            return torch.stack(terms).mean()

        def logits() -> Tensor:
            return kd_loss(student.logits, teacher.logits, params.tau, self.regions)

        return weighted(
            ffd=(params.weight_ffd * ramp, filtering),
            rgd=(params.weight_rgd * ramp, graphs),
            kd=(params.weight_kd, logits),
        )

    def _graphs(self, index: int, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the graphs' (and nodes') difference in one layer."""
        name, alone = str(index), [1] * (student.ndim - 3)
        losses = []
        for ours, theirs in self._nodes(student, teacher, target):
            loss = graph_loss(ours, theirs, self.params.hop)
            if name in self.adapters:  # a 1×1 convolution over nodes in a row
                row = ours.reshape(*ours.shape, *alone)
                loss = loss + node_loss(self.adapters[name](row).flatten(2), theirs)
            losses.append(loss)
        return torch.stack(losses).mean()

    def _nodes(
        self, student: Tensor, teacher: Tensor, target: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield nodes ``(b, c, n)`` of both: of the batch at once, or of each sample."""
        features = channel_standardised(student), channel_standardised(teacher)
        patches = shared_nodes(*features, self.grid)
        if self.params.region == "patch":
            yield patches
            return
        (ours, seen), (theirs, known) = (self._centres(each, target) for each in (student, teacher))
        for sample, both in enumerate(seen & known):
            if both.sum() < 2:
                yield patches[0][sample : sample + 1], patches[1][sample : sample + 1]
            else:
                yield ours[sample, both].T.unsqueeze(0), theirs[sample, both].T.unsqueeze(0)

    def _centres(self, feature: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        labels = resize_target(target, feature.shape[2:], self.regions)
        masks = class_masks(labels, self.context.num_classes, self.regions)
        return class_centres(feature, masks)


def _default_pairs(context: Context) -> list[tuple[str, str]]:
    """The default layers; of a network with a single decoder stage, that stage."""
    ours, theirs = (decoder_stages(context, side)[-2:][:1] for side in ("student", "teacher"))
    middle = zip(ours, theirs, strict=False)
    return [("bottleneck", "bottleneck"), *middle, ("penult", "penult")]
