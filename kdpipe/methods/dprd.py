r"""Reading of DPRD: cases lie to one another as they do in the teacher's feature space.

Paper: Ding et al.: Displacement Preserving Relational Distillation for Robust Medical Segmentation,
    MICCAI 2026. The paper was not read; this follows its public code.

Idea: Each case becomes one vector, its features averaged where the label has foreground. The
    displacements between all pairs of cases, direction and length, are matched at every stage of
    the encoder, relative to their mean length, so neither origin nor scale has to agree.

Equation:

.. math::

    L = r(t)\sum_l \omega_l \frac{1}{|P|}\sum_{(i,j) \in P}\Big[
        w_\Delta \sum_k h_\beta(\Delta^s_{ijk} - \Delta^t_{ijk})
        + w_d\, h_\beta(\|\Delta^s_{ij}\|_2 - \|\Delta^t_{ij}\|_2)\Big],\quad
        \Delta_{ij} = \frac{v_i - v_j}{mean_P \|v_i - v_j\|_2}

Taps: all encoder stages that both networks have, with the bottleneck (or ``student_taps`` and
    ``teacher_taps``); both are averaged into the same cells, however their grids differ.

Provenance:
- stated: only the title and the results of the repository's README.
- code: foreground mean in cells of 4 voxels a side, at least 2 cells; 1×1 projections of both to
  128 channels; displacements of all pairs over their mean length, smooth L1 with beta 1; weights
  0.5·1 and 0.5·0.5; stage weights; linear warm-up over 150 of 1000 epochs (DPRD-3D-MedSeg, AMOS22).
- ours: the warm-up as a share of the training; the stage weights scaled to a sum of 1; averaging
  before the projection, which is the same and needs little memory; at most 16 cells a side.

Deviations: The six stage weights are matched from the deepest stage on: of n stages the last n
    count, and the first is repeated for more. In the code both projections keep their random start,
    for the optimiser does not know them; here the student's is trained and the teacher's is fixed,
    since a trained one could shrink what it compares. The code drops the deepest stages where deep
    supervision has fewer targets than stages; here all count. A batch of one has no pairs: both
    terms are 0. A batch of two has one pair, whose relative length is 1: only its direction counts.
    Overlapping regions: foreground is where any region is.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.discover import Field, Parameters
from kdpipe.errors import ConfigError
from kdpipe.methods._stages import chosen_pairs, deepest_weights, encoder_pairs
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.adapters import matching
from kdpipe.terms.features import common_size, pool_to
from kdpipe.terms.masks import resize_target
from kdpipe.terms.weights import weighted


class Params(Parameters):
    """Taps, embedding, weights and warm-up."""

    student_taps: tuple[str, ...] = Field((), description="empty: encoder stages and bottleneck")
    teacher_taps: tuple[str, ...] = Field((), description="as many as student_taps")
    stage_weights: tuple[float, ...] = Field(
        (0.05, 0.1, 0.1, 0.15, 0.25, 0.35),
        min_length=1,
        description="finest first; of n stages the last n count",
    )
    channels: int | None = Field(
        128, ge=1, description="channels of the projections; null: the teacher's, not projected"
    )
    cell: int = Field(4, ge=1, description="voxels a side that are averaged into one cell")
    cells: int = Field(16, ge=2, description="cells a side at most; published: no limit")
    beta: float = Field(1.0, gt=0, description="of smooth L1, where it turns linear")
    weight_displacement: float = Field(0.5, ge=0)
    weight_distance: float = Field(0.25, ge=0)
    warmup: float = Field(0.15, ge=0, le=1, description="share of training that the weights rise")


def foreground_cells(feature: Tensor, inside: Tensor, size: list[int]) -> tuple[Tensor, Tensor]:
    """Return the mean of the feature over the foreground of each cell, and which cells have any.

    Args:
        feature: ``(B, c, *S)``.
        inside: boolean foreground ``(B, 1, *S)``.
        size: cells a side.

    Returns:
        ``(B, c, *size)``, 0 in cells without foreground, and boolean ``(B, 1, *size)``.
    """
    weight = inside.to(feature.dtype)
    share = pool_to(weight, size)
    present = share > 0
    mean = pool_to(feature * weight, size) / torch.where(present, share, 1.0)
    return torch.where(present, mean, 0.0), present


def displacements(vectors: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Return the differences of all pairs of rows and their lengths, over the mean length.

    Args:
        vectors: one row a case, ``(B, d)``.
        eps: added to the mean length.

    Returns:
        ``(P, d)`` and ``(P,)`` for the ``P = B (B - 1) / 2`` pairs.
    """
    first, second = torch.triu_indices(len(vectors), len(vectors), 1, device=vectors.device)
    apart = vectors[first] - vectors[second]
    lengths = torch.linalg.vector_norm(apart, dim=1)  # its gradient at 0 is 0
    scale = lengths.sum() / max(1, len(lengths)) + eps
    return apart / scale, lengths / scale


def pair_loss(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Return smooth L1 summed over a pair's elements, mean over the pairs; 0 without pairs.

    Args:
        student: displacements ``(P, d)`` or lengths ``(P,)``.
        teacher: of the same shape; gets no gradient.
        beta: where the loss turns linear, > 0.
    """
    total = F.smooth_l1_loss(student, teacher.detach(), beta=beta, reduction="sum")
    return total / max(1, len(student))


class Method(Distiller):
    """Displacements between the cases of a batch, at all encoder stages."""

    is_reading: ClassVar[bool] = True
    floor: ClassVar[float | None] = None  # two different projections stand between the two

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        default = encoder_pairs(context)
        self.pairs = chosen_pairs("dprd", params.student_taps, params.teacher_taps, default)
        if min(params.stage_weights) < 0 or params.stage_weights[-1] == 0:
            raise ConfigError(
                f"dprd: stage_weights are {list(params.stage_weights)}; give numbers of 0 or more, "
                "of which the last, the deepest stage's, is above 0"
            )
        self.stage_weights = deepest_weights(params.stage_weights, len(self.pairs))
        self.ours, self.theirs = nn.ModuleList(), nn.ModuleList()
        dims = context.spatial_dims
        for ours, theirs in self.pairs:
            taught = context.tap("teacher", theirs).channels
            width = params.channels or taught
            self.ours.append(matching(dims, context.tap("student", ours).channels, width))
            self.theirs.append(matching(dims, taught, width).requires_grad_(False))

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``displacement`` and ``distance``."""
        params = self.params
        if not (params.weight_displacement or params.weight_distance):
            return {}
        ours, theirs = [], []
        for stage, (mine, taught) in enumerate(self.pairs):
            pair = self._embed(stage, student.features[mine], teacher.features[taught], target)
            ours.append(displacements(pair[0]))
            theirs.append(displacements(pair[1]))

        def loss(kind: int) -> Tensor:
            terms = [
                weight * pair_loss(mine[kind], taught[kind], params.beta)
                for weight, mine, taught in zip(self.stage_weights, ours, theirs, strict=True)
            ]
            return torch.stack(terms).sum()

        ramp = progress.ramp(params.warmup)
        return weighted(
            displacement=(ramp * params.weight_displacement, lambda: loss(0)),
            distance=(ramp * params.weight_distance, lambda: loss(1)),
        )

    def _embed(
        self, stage: int, ours: Tensor, theirs: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One vector a case, ``(B, d)``, of the student and of the teacher."""
        size = [
            min(side, max(2, min(side // self.params.cell, self.params.cells)))
            for side in common_size(ours, theirs)
        ]
        mine, mine_present = foreground_cells(ours, self._foreground(target, ours), size)
        taught, taught_present = foreground_cells(theirs, self._foreground(target, theirs), size)
        both = mine_present & taught_present  # on two grids a small region may be in one alone
        return (
            self.ours[stage](mine * both).flatten(1),
            self.theirs[stage](taught * both).flatten(1),
        )

    def _foreground(self, target: Tensor, feature: Tensor) -> Tensor:
        resized = resize_target(target, feature.shape[2:], self.regions) > 0
        return resized.any(1, keepdim=True) if self.regions else resized.unsqueeze(1)
