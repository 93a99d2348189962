r"""RKD: relational distillation; distances and angles between embeddings, not the embeddings.

Paper: Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR 2019 (arXiv:1904.05068).

Idea: What matters is how examples lie to one another. The student reproduces the teacher's
    distances of all pairs, relative to their mean, and its angles at all triples, whatever the
    widths of the two embeddings.

Equation:

.. math::

    L = w_{distance}\,mean_{ij}\,H(\psi^s_{ij}, \psi^t_{ij})
        + w_{angle}\,mean_{ijk}\,H(\cos\angle^s_{ijk}, \cos\angle^t_{ijk}),\quad
        \psi_{ij} = \frac{\|e_i - e_j\|_2}{mean_{i \neq j}\|e_i - e_j\|_2}

Taps: ``bottleneck`` of both (``student_tap``, ``teacher_tap``), averaged over the cells of a coarse
    grid; e are the cells of all samples.

Provenance:
- stated: both potentials, relative to the mean distance, and Huber's loss H with its bend at 1.
- code: means over all pairs and triples, those of an element with itself included; weights 25 and
  50 for classification (RepDistiller), in the same ratio as the authors' 1 and 2.
- ours: the bottleneck as the layer, and cells as examples.

Deviations: The paper has one embedding a sample: ``grid: 1``. Volumes come in batches of 2 to 4,
    and two embeddings have no relation left: their distance is its own mean, and an angle needs
    three. Hence two cells a side by default, 8 examples from each volume. With fewer than three
    embeddings both terms are 0, without gradient. Cells of plain background are nearly equal, and a
    direction between equals has no derivative: below a hundredth of the mean distance a direction
    is shorter than 1. Regions make no difference.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.relations import pairwise_distances, shared_nodes
from kdpipe.terms.weights import weighted


class Params(Parameters):
    """Taps, cells and weights."""

    student_tap: str = Field("bottleneck", description="logical name of the student's feature")
    teacher_tap: str = Field("bottleneck", description="logical name of the teacher's feature")
    grid: int = Field(2, ge=1, le=3, description="cells a side; 1, one a sample, is published")
    weight_distance: float = Field(25.0, ge=0)
    weight_angle: float = Field(50.0, ge=0)


def embeddings(student: Tensor, teacher: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Return the cell means of both features, ``(B * n, c)`` and ``(B * n, C)``.

    Args:
        student: feature ``(B, c, *s)``.
        teacher: feature ``(B, C, *S)``.
        grid: cells a side, n in all; fewer where a side of either is shorter.
    """
    ours, theirs = shared_nodes(student, teacher, grid)
    return ours.transpose(1, 2).flatten(0, 1), theirs.transpose(1, 2).flatten(0, 1)


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Huber loss of all distances, each over its network's mean distance.

    Args:
        student: embeddings ``(n, c)``.
        teacher: embeddings ``(n, C)``; gets no gradient.
    """
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher.detach()))


def _relative_distances(vectors: Tensor) -> Tensor:
    distances = pairwise_distances(vectors)
    return distances / _mean_distance(distances)


def _mean_distance(distances: Tensor) -> Tensor:
    """Mean of the distances above 0, or a small number where there are none."""
    apart = (distances > 0).sum().clamp_min(1)
    return (distances.sum() / apart).clamp_min(1e-6)


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Huber loss of the cosines at all triples of embeddings.

    Args:
        student: embeddings ``(n, c)``.
        teacher: embeddings ``(n, C)``; gets no gradient.
    """
    return F.smooth_l1_loss(_angles(student), _angles(teacher.detach()))


def _angles(vectors: Tensor) -> Tensor:
    """Cosines ``(n, n, n)`` at the first index between the directions to the other two."""
    lengths = pairwise_distances(vectors)
    shortest = 0.01 * _mean_distance(lengths).detach()
    apart = vectors.unsqueeze(0) - vectors.unsqueeze(1)
    directions = apart / torch.maximum(lengths, shortest).unsqueeze(2)
    return directions @ directions.transpose(1, 2)


class Method(Distiller):
    """Distances and angles between the cells of a batch."""

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        self.compare(params.student_tap, params.teacher_tap)

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``distance`` and ``angle``."""
        params = self.params
        if not (params.weight_distance or params.weight_angle):
            return {}
        ours, theirs = embeddings(
            student.features[params.student_tap], teacher.features[params.teacher_tap], params.grid
        )
        return weighted(
            distance=(params.weight_distance, lambda: distance_loss(ours, theirs)),
            angle=(params.weight_angle, lambda: angle_loss(ours, theirs)),
        )
