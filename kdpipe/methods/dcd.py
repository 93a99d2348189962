r"""Reading of DCD: encoder features agree in their wavelet details, not in their coarse content.

Paper: Fan et al.: Detail Consistent Stage-Wise Distillation for Efficient 3D MRI Segmentation,
    MICCAI 2026 (arXiv:2605.26382). Of the paper only the abstract and the opening were read.

Idea: A narrow encoder loses small lesions and sharp borders with every downsampling. At each stage
    the directional details of teacher and student are matched, while the coarse approximation is
    left to the student.

Equation:

.. math::

    L = w\,r(t)\,\frac{1}{|L|}\sum_{l \in L}\frac{1}{J_l}\sum_{j=1}^{J_l}\frac{1}{|A_{j-1}|}
        \sum_{b \in D}\|W_b A_{j-1}\|_2^2,\quad
        A_0 = P F^s_l - \frac{F^t_l}{rms(F^t_l)},\ A_j = W_0 A_{j-1}

Taps: all encoder stages that both networks have, with the bottleneck (or ``student_taps`` and
    ``teacher_taps``). The finer of two grids is averaged down to the other.

Provenance:
- stated: at each encoder stage the detail sub-bands are distilled and the approximation is hardly
  constrained; for training only.
- code: db4 with 3 levels, sub-bands 1 to 6 of 8 (without the approximation and without what is
  high-pass along all axes), mean over levels and stages, a 1×1 projection where the channels
  differ; for ISLES weight 0.05, 0 for 100 of 1000 epochs and half a cosine over 300 (for BraTS
  0.01, 150 and 800) (DCD-3D-MedSeg).
- ours: the epochs as shares of the training; in 2D the same rule leaves two of four sub-bands;
  fewer levels on small grids; the difference is centred; unequal grids; the teacher's feature
  divided by each sample's root mean square.

Deviations: The transform is linear, so only the difference of the features is transformed, and it
    is orthonormal, so the energy of its coefficients stands for the mean squared error of the
    mapped-back sub-bands. The code maps them back with filters that do not invert its analysis,
    which changes the number a little and the idea not at all. Zero padding, as in the code, turns
    an offset into detail at the border of the patch: ``centred: false`` keeps that, and
    ``fit_levels: false`` takes 3 levels on any grid. The code never hands its projections to the
    optimiser; here they are trained. It takes the teacher's feature as it is, ``scale: raw``;
    where that is a raw sum of residual blocks, the term grows with the square of its scale. Its
    moving average of the weights (0.999) belongs to the training recipe.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdpipe.discover import Field, Parameters
from kdpipe.methods._stages import chosen_pairs, encoder_pairs
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.adapters import matching
from kdpipe.terms.features import common_size, pool_to, unit_scale
from kdpipe.terms.wavelets import filter_bank, fitting_levels, sub_bands
from kdpipe.terms.weights import half_cosine, weighted


class Params(Parameters):
    """Taps, wavelet, weight and its schedule."""

    student_taps: tuple[str, ...] = Field((), description="empty: encoder stages and bottleneck")
    teacher_taps: tuple[str, ...] = Field((), description="as many as student_taps")
    wavelet: Literal["db4", "haar"] = Field("db4", description="Daubechies' with 8 taps, or 2")
    levels: int = Field(3, ge=1, description="levels of the transform at most")
    fit_levels: bool = Field(True, description="fewer levels on small grids; published: no")
    bands: Literal["directional", "detail"] = Field(
        "directional", description="without or with what is high-pass along all axes"
    )
    centred: bool = Field(
        True, description="take each channel's mean off the difference; published: no"
    )
    scale: Literal["unit", "raw"] = Field(
        "unit",
        description="root mean square of the teacher's feature in a sample: 1; published: as it is",
    )
    weight: float = Field(0.05, ge=0, description="after the rise")
    start: float = Field(0.1, ge=0, le=1, description="share of training without the term")
    rise: float = Field(0.3, ge=0, le=1, description="share of training that the weight rises")


def dcd_loss(
    student: Tensor,
    teacher: Tensor,
    filters: Tensor,
    levels: int,
    bands: str = "directional",
    centred: bool = True,
) -> Tensor:
    """Return the energy of the difference's details, a voxel and channel, mean over levels.

    Args:
        student: ``(B, c, *S)``, projected to the teacher's channels.
        teacher: ``(B, c, *S)``; gets no gradient.
        filters: ``(2, K)``, see `kdpipe.terms.wavelets.filter_bank`.
        levels: how often the approximation is split again, >= 1.
        bands: ``directional``: low-pass along some axis and high-pass along another;
            ``detail``: all but the approximation.
        centred: whether a constant difference of a channel is taken off first.
    """
    approximation = student - teacher.detach()
    if centred:
        axes = tuple(range(2, approximation.ndim))
        approximation = approximation - approximation.mean(axes, keepdim=True)
    energies = []
    for _ in range(levels):
        parts = sub_bands(approximation, filters)
        kept = parts[1:-1] if bands == "directional" else parts[1:]
        energy = torch.stack([part.pow(2).sum() for part in kept]).sum()
        energies.append(energy / approximation.numel())
        approximation = parts[0]
    return torch.stack(energies).mean()


class Method(Distiller):
    """Wavelet details of the encoder's features."""

    is_reading: ClassVar[bool] = True
    floor: ClassVar[float | None] = None  # the teacher's feature is scaled, the student's is not

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        default = encoder_pairs(context)
        self.pairs = chosen_pairs("dcd", params.student_taps, params.teacher_taps, default)
        self.project = nn.ModuleList(
            matching(
                context.spatial_dims,
                context.tap("student", ours).channels,
                context.tap("teacher", theirs).channels,
            )
            for ours, theirs in self.pairs
        )
        self.filters: Tensor
        self.register_buffer("filters", filter_bank(params.wavelet), persistent=False)

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the term ``dcd``, mean over the stages."""
        params = self.params

        def loss() -> Tensor:
            terms = [
                self._stage(project, student.features[ours], teacher.features[theirs])
                for project, (ours, theirs) in zip(self.project, self.pairs, strict=True)
            ]
            return torch.stack(terms).mean()

        done = progress.step / progress.steps
        return weighted(dcd=(params.weight * half_cosine(done, params.start, params.rise), loss))

    def _stage(self, project: nn.Module, ours: Tensor, theirs: Tensor) -> Tensor:
        params = self.params
        size = common_size(ours, theirs)
        levels = params.levels
        if params.fit_levels:
            levels = fitting_levels(size, self.filters.shape[1], levels)
        ours, theirs = project(pool_to(ours, size)), pool_to(theirs, size)
        theirs = unit_scale(theirs) if params.scale == "unit" else theirs
        return dcd_loss(ours, theirs, self.filters, levels, params.bands, params.centred)
