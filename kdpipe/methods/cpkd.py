r"""Reading of CPKD: correlations between class maps, and between pixels, agree.

Paper: Xiong, Yu: Channel-wise and Pixel-wise relational Knowledge Distillation, Proc. SPIE 13213,
    2024 (doi:10.1117/12.3035260). Only the abstract could be read.

Idea: The correlation of two class maps says which organs a network confuses or keeps apart; the
    cosine of two pixels' class scores says which places it holds for the same. The student copies
    both matrices of the teacher.

Equation:

.. math::

    L = r(t) \Big( \frac{\alpha}{K^2} \|R^s - R^t\|_F^2 + \frac{\beta}{n^2} \|Q^s - Q^t\|_F^2 \Big)

    R_{kl} = Pearson_v(u_k, u_l), \quad Q_{ij} = \cos(v_i, v_j)

    u: \text{centred logits at all voxels}, \quad v: \text{the same at } n \text{ pooled places}

Taps: logits of both. With ``space: feature``, and for the pixel term of one or two channels,
    ``penult`` of both (``student_tap``, ``teacher_tap``) on the coarser of the two grids.

Provenance:
- stated: correlation between channels and correlation between pixels, for semantics between and
  within classes; the boundary (HD95) is where it is said to gain most.
- ours: the matrices themselves, logits less their mean over the classes as the space, pooling to
  16² or 8³ places, weights 3 and 1 (the channel term's gradient then starts about as large as the
  segmentation loss's), the ramp over a fifth of the training, the boundary option, KD off.

Deviations: Both matrices are blind to a joint permutation of the classes (the pixels' even to any
    rotation), so they teach nothing without the segmentation loss. A softmax does not see what is
    added to all logits of a voxel, correlations do: logits are centred over the classes first.
    Centred scores of two classes mirror each other: there the channel term is left out and the
    pixel term works on the feature, with a warning, as it does for one or two regions. Channels of
    a feature are standardised over the voxels, or what all places share would hide how they differ.
    A single region correlates with nothing: its channel term is 0. The row-wise correlation of
    teacher with student, another way to read the abstract, is DIST. ``space: prob`` softens by
    ``tau_prob`` because the gradient of a saturated student vanishes. ``space: feature`` trains a
    1×1 projection of the student for the channel term, where widths differ. With ``boundary: true``
    the places are drawn within three voxels of a boundary of the teacher's prediction; where these
    are too few, the rest is drawn elsewhere. Overlapping regions: sigmoid instead of softmax, all
    else the same.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.methods.kd import kd_loss
from kdpipe.terms.adapters import matching
from kdpipe.terms.divergences import probabilities
from kdpipe.terms.features import channel_standardised, common_size, pool_to
from kdpipe.terms.relations import cosine_gram, default_grid, pearson_gram, shared_nodes
from kdpipe.terms.weights import weighted

logger = logging.getLogger(__name__)

Space = Literal["logit", "prob", "feature"]
#: with this many channels or fewer, the scores of all pixels are collinear
_FEW = 2


class Params(Parameters):
    """Space, places and weights."""

    space: Literal["logit", "prob", "feature"] = Field("logit", description="what is correlated")
    weight_channel: float = Field(3.0, ge=0)
    weight_pixel: float = Field(1.0, ge=0)
    weight_kd: float = Field(0.0, ge=0, description="of logits KD")
    tau: float = Field(4.0, gt=0, description="temperature of logits KD")
    tau_prob: float = Field(4.0, gt=0, description="temperature of space: prob")
    grid: int | None = Field(
        None, ge=1, description="places a side at most; null: 16 in 2D, 8 in 3D"
    )
    boundary: bool = Field(
        False, description="draw as many places at the teacher's boundaries instead of pooling"
    )
    student_tap: str = Field("penult", description="the student's feature, where one is used")
    teacher_tap: str = Field("penult", description="the teacher's feature, where one is used")
    ramp: float = Field(0.2, ge=0, le=1, description="share of the training that the terms rise in")


def channel_loss(student: Tensor, teacher: Tensor, relative: bool = False) -> Tensor:
    """Return the mean squared difference of two matrices of correlations between channels.

    Args:
        student: ``(B, C, *s)``.
        teacher: ``(B, C, *S)``, of as many channels; gets no gradient.
        relative: whether each voxel's mean over the channels is taken from it first.
    """
    theirs = pearson_gram(teacher.detach().flatten(2), relative=relative)
    return (pearson_gram(student.flatten(2), relative=relative) - theirs).pow(2).mean()


def pixel_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of two matrices of cosines between places.

    Args:
        student: ``(B, c, n)``.
        teacher: ``(B, C, n)``, the same places; gets no gradient.
    """
    return (cosine_gram(student) - cosine_gram(teacher.detach())).pow(2).mean()


def boundary_band(logits: Tensor, regions: bool, reach: int = 2) -> Tensor:
    """Return True near a change of the prediction, ``(B, 1, *S)``.

    The border of the patch is no change.

    Args:
        logits: ``(B, C, *S)``.
        regions: whether the channels are overlapping regions.
        reach: voxels by which both sides of a boundary are dilated.
    """
    pool = F.max_pool3d if logits.ndim == 5 else F.max_pool2d
    labels = logits > 0 if regions else logits.max(1, keepdim=True).indices
    labels = labels.to(logits.dtype)
    changes = pool(labels, 3, 1, 1) != -pool(-labels, 3, 1, 1)
    change = changes.any(1, keepdim=True).to(logits.dtype)
    return pool(change, 2 * reach + 1, 1, reach) > 0


def drawn_places(band: Tensor, count: int) -> Tensor:
    """Return the indices ``(B, n)`` of voxels drawn from a band without replacement.

    Args:
        band: boolean ``(B, 1, *S)``; where it has fewer voxels, the rest is drawn outside.
        count: how many, at most all voxels.
    """
    inside = band.flatten(1)
    chance = torch.rand(inside.shape, device=inside.device) + inside
    return chance.topk(min(count, inside.shape[1]), dim=1).indices


class Method(Distiller):
    """Channel-wise and pixel-wise relations."""

    is_reading: ClassVar[bool] = True

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        self.grid = params.grid or default_grid(context.spatial_dims)
        self.weight_channel: float = params.weight_channel
        if context.num_classes == 2 and not self.regions and params.space != "feature":
            logger.warning("cpkd: two classes mirror each other, so there is no channel term")
            self.weight_channel = 0.0
        self.pixel_space: Space = params.space
        if context.num_classes <= _FEW and params.space != "feature" and params.weight_pixel:
            logger.warning(
                "cpkd: %d channels of logits are too few for the pixel term in space %r: "
                "it uses the feature %r instead",
                context.num_classes,
                params.space,
                params.student_tap,
            )
            self.pixel_space = "feature"
        self.featured = "feature" in (self.pixel_space, params.space)
        if self.featured:
            student, teacher = self.compare(params.student_tap, params.teacher_tap)
            if params.space == "feature" and params.weight_channel:
                self.adapter = matching(context.spatial_dims, student.channels, teacher.channels)

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``channel``, ``pixel`` and ``kd``."""
        params, ramp = self.params, progress.ramp(self.params.ramp)

        @functools.cache  # both terms mostly have the same
        def maps(space: Space) -> tuple[Tensor, Tensor]:
            return self._maps(student, teacher, space)

        def channel() -> Tensor:
            ours, theirs = maps(params.space)
            ours = self.adapter(ours) if params.space == "feature" else ours
            return channel_loss(ours, theirs, self._relative(params.space))

        def pixel() -> Tensor:
            places: Sequence[Tensor] = self._places(*maps(self.pixel_space), teacher.logits)
            if self._relative(self.pixel_space):  # at few places that is cheap
                places = [at - at.mean(1, keepdim=True) for at in places]
            return pixel_loss(*places)

        def logits() -> Tensor:
            return kd_loss(student.logits, teacher.logits, params.tau, self.regions)

        return weighted(
            channel=(self.weight_channel * ramp, channel),
            pixel=(params.weight_pixel * ramp, pixel),
            kd=(params.weight_kd, logits),
        )

    def _relative(self, space: Space) -> bool:
        """Whether what is correlated is yet to be centred over the classes."""
        return space == "logit" and not self.regions

    def _maps(self, student: Outputs, teacher: Outputs, space: Space) -> tuple[Tensor, Tensor]:
        """Return what is correlated, on one grid."""
        if space == "logit":
            return student.logits, teacher.logits
        if space == "prob":
            how = self.regions, self.params.tau_prob
            return probabilities(student.logits, *how), probabilities(teacher.logits, *how)
        ours = student.features[self.params.student_tap]
        theirs = teacher.features[self.params.teacher_tap]
        size = common_size(ours, theirs)
        ours, theirs = channel_standardised(ours), channel_standardised(theirs)
        return pool_to(ours, size), pool_to(theirs, size)

    def _places(self, student: Tensor, teacher: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return both maps at the same places, ``(B, c, n)``: pooled, or near boundaries."""
        if not self.params.boundary:
            return shared_nodes(student, teacher, self.grid)
        band = boundary_band(logits, self.regions)
        pool = F.adaptive_max_pool3d if student.ndim == 5 else F.adaptive_max_pool2d
        band = pool(band.to(logits.dtype), student.shape[2:]) > 0  # thin bands stay
        index = drawn_places(band, self.grid ** (student.ndim - 2))
        return _at(student, index), _at(teacher, index)


def _at(maps: Tensor, index: Tensor) -> Tensor:
    """Return ``(B, c, *S)`` at the voxels `index` ``(B, n)``: ``(B, c, n)``."""
    return maps.flatten(2).gather(2, index.unsqueeze(1).expand(-1, maps.shape[1], -1))
