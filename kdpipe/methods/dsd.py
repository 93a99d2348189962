r"""Reading of DSD: double similarity, of attention between stages and of classes with each other.

Paper: Feng, Sun, Diao, Li, Gao: Double Similarity Distillation for Semantic Image Segmentation,
    IEEE TIP 2021 (arXiv:2107.08591), by its abstract and a third party's code.

Idea: The difference between two stages' attention maps shows what the layers between them have
    added; the student learns the teacher's differences (PSD). Of the logits it learns how much the
    places of two classes have in common (CSD).

Equation:

.. math::

    L = w_{pixel}\,\frac{1}{BK}\sum_{b,m>n}\|R^s_{bmn} - R^t_{bmn}\|_2^2
        + w_{category}\,\frac{1}{BC^2}\sum_{b,i,j}(G^s_{bij} - G^t_{bij})^2

.. math::

    R_{mn} = \frac{A_m - A_n}{\|A_m - A_n\|_2},\quad
    A = \frac{vec(mean_c F^2)}{\|vec(mean_c F^2)\|_2},\quad
    G_{ij} = \cos(\phi_i, \phi_j),\; \phi_i = softmax_v(z_i/\tau)

Taps: all encoder stages that both networks have and the bottleneck (or ``student_taps`` and
    ``teacher_taps``, two at least), and the logits.

Provenance:
- stated: residual attention maps over several layers; a correlation matrix of the categories.
- code: all pairs of layers, tau 4 and logits pooled by 2 (CIRKD's baselines, which also have the
  mean over voxels with weight 1000, and products of distributions with weight 10).
- ours: maps of unlike grids are averaged to the coarsest one; the sum over voxels with weight 1;
  cosines of the distributions.

Deviations: The product of two softmaxes over V voxels is about 1/V, so that the published category
    term vanishes in 3D; cosines do not depend on the patch. The published forms are
    ``{dsd: {reduction: mean, weight_pixel: 1000, similarity: product}}``. Regions are correlated
    like classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.discover import Field, Parameters
from kdpipe.errors import ConfigError
from kdpipe.methods._stages import chosen_pairs, encoder_pairs
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.features import attention, pool_to, unit_map
from kdpipe.terms.relations import cosine_gram
from kdpipe.terms.weights import weighted


class Params(Parameters):
    """Taps, temperature, weights and the published forms."""

    student_taps: tuple[str, ...] = Field((), description="empty: encoder stages and bottleneck")
    teacher_taps: tuple[str, ...] = Field((), description="as many as student_taps")
    tau: float = Field(4.0, gt=0, description="temperature of the softmax over voxels")
    weight_pixel: float = Field(1.0, ge=0)
    weight_category: float = Field(10.0, ge=0)
    reduction: Literal["sum", "mean"] = Field(
        "sum", description="of the pixel term over voxels; published: mean"
    )
    similarity: Literal["cosine", "product"] = Field(
        "cosine", description="of two classes' distributions; published: product"
    )


def psd_loss(
    students: Sequence[Tensor], teachers: Sequence[Tensor], reduction: str = "sum"
) -> Tensor:
    """Return the squared distance of residual attention maps, mean over pairs of stages and batch.

    Args:
        students: features ``(B, c, *s)`` of two stages or more.
        teachers: as many features ``(B, C, *S)``; get no gradient.
        reduction: over voxels, ``sum``, in [0, 4], or ``mean``.
    """
    every = [*students, *teachers]
    size = [min(sides) for sides in zip(*(each.shape[2:] for each in every), strict=True)]
    ours = _residuals(students, size)
    theirs = _residuals([teacher.detach() for teacher in teachers], size)
    difference = (ours - theirs).square()
    return difference.mean() if reduction == "mean" else difference.sum(dim=2).mean()


def _residuals(features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Unit differences of all pairs of attention maps on the grid `size`, ``(pairs, B, V)``."""
    maps = [unit_map(pool_to(attention(feature), size)) for feature in features]
    # 1e-6: equal maps have no direction, and must not send a gradient of 1e12 back
    return torch.stack(
        [F.normalize(later - earlier, dim=1, eps=1e-6) for earlier, later in combinations(maps, 2)]
    )


def csd_loss(student: Tensor, teacher: Tensor, tau: float, similarity: str = "cosine") -> Tensor:
    """Return the mean squared difference of both networks' matrices of category similarity.

    Args:
        student: logits ``(B, C, *S)``.
        teacher: logits ``(B, C, *S)``; gets no gradient.
        tau: temperature of the softmax over voxels, > 0.
        similarity: ``cosine`` or ``product`` of the distributions of two channels.
    """
    ours = _category_gram(student, tau, similarity)
    return F.mse_loss(ours, _category_gram(teacher.detach(), tau, similarity))


def _category_gram(logits: Tensor, tau: float, similarity: str) -> Tensor:
    pool = F.avg_pool3d if logits.ndim == 5 else F.avg_pool2d
    places = (pool(logits, 2, ceil_mode=True).flatten(2) / tau).softmax(dim=2)
    if similarity == "product":
        return places @ places.transpose(1, 2)
    return cosine_gram(places.transpose(1, 2))


class Method(Distiller):
    """Residual attention between stages, and correlation of categories."""

    is_reading: ClassVar[bool] = True

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        default = encoder_pairs(context)
        self.pairs = chosen_pairs("dsd", params.student_taps, params.teacher_taps, default)
        if len(self.pairs) < 2:
            raise ConfigError(
                f"dsd: a difference needs two stages, there is one pair: {self.pairs[0]}; name two "
                "or more in student_taps and teacher_taps"
            )

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``pixel`` and ``category``."""
        params = self.params

        def pixel() -> Tensor:
            ours = [student.features[tap] for tap in self.student_taps()]
            theirs = [teacher.features[tap] for tap in self.teacher_taps()]
            return psd_loss(ours, theirs, params.reduction)

        def category() -> Tensor:
            return csd_loss(student.logits, teacher.logits, params.tau, params.similarity)

        return weighted(
            pixel=(params.weight_pixel, pixel), category=(params.weight_category, category)
        )
