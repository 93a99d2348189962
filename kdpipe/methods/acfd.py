r"""ACFD: attention on the student's feature stands for the teacher's residual correction.

Paper: Yu, Teng, Zhang, Zheng, Chen: Attention correction feature and boundary constraint knowledge
    distillation for efficient 3D medical image segmentation, Expert Systems with Applications 262,
    2025 (125670), its feature losses AFD and CFD.

Idea: A teacher's residual block corrects a feature, X + f(X). A light student has no such block, so
    a small attention module, which exists only in this loss, learns its correction factor. The
    corrected features are matched (AFD), and the corrections are (CFD), as attention maps.

Equation:

.. math::

    L = \sum_{i} w_i\,\frac{1}{B}\sum_b \|Q(U_i)_b - Q(V_i)_b\|_2^2,\quad
        (U, V)_{AFD} = (A(X_s) \odot X_s,\; X_t),\quad
        (U, V)_{CFD} = (Conv(A(X_s)),\; f(\tilde X_t))

with AT's maps of unit length, :math:`Q(F) = vec(mean_c F^2) / \|vec(mean_c F^2)\|_2`, and
:math:`A = a_{channel} \otimes a_{spatial}` in [0, 1].

Taps: ``pre_act`` of the student (``student_tap``), ``corrected`` (``corrected_tap``) and
    ``correction`` (``correction_tap``) of the teacher. The student's maps are resized to the
    teacher's grid, nearest; as the channels are averaged first, no adapter is needed.

Provenance:
- stated: residual and attention both as corrections of a feature; the teacher's correction guides
  the student's attention, its corrected feature the student's attention-corrected one; the teacher
  gets no module of its own (abstract; the body of the paper was not at hand).
- code: the attention module and its start, the loss on maps and its weight 25000 on the *mean* over
  voxels, which at the 48³ voxels of the main teacher is 0.226 on the sum; taps; nearest.
- ours: the sum over voxels as default, which does not depend on the patch; grids of any shape.

Deviations: ``{acfd: {reduction: mean, weight_afd: 25000, weight_cfd: 25000}}`` is the published
    form. In 2D the kernels are 7×7. The code's other attention modules (SE, GC, CBAM) are not here.
    MONAI's SegResNet adds its shortcut in place, onto what its second convolution gave, so what the
    official code hooked as that teacher's correction was most likely the corrected feature itself
    (read in the sources, not run); here the tap is the true branch. For parity with that teacher
    set ``correction_tap: corrected``. Labels are not used, so regions change nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.adapters import convolution, pointwise
from kdpipe.terms.features import attention, attention_distance, resize
from kdpipe.terms.weights import weighted


class Params(Parameters):
    """Taps, weights and the way of averaging."""

    student_tap: str = Field("pre_act", description="logical name of the student's feature")
    corrected_tap: str = Field("corrected", description="the teacher's X + f(X)")
    correction_tap: str = Field("correction", description="the teacher's f(X)")
    weight_afd: float = Field(0.226, ge=0, description="of corrected features; mean: 25000")
    weight_cfd: float = Field(0.226, ge=0, description="of corrections; mean: 25000")
    reduction: Literal["sum", "mean"] = Field("sum", description="over voxels; published: mean")


def map_loss(student: Tensor, teacher: Tensor, reduction: str = "sum") -> Tensor:
    """Return the squared distance of two features' attention maps, mean over the batch.

    Args:
        student: ``(B, c, *s)``; its map is resized to the teacher's grid, nearest.
        teacher: ``(B, C, *S)``; gets no gradient.
        reduction: ``sum`` over voxels, in [0, 2], or ``mean``.
    """
    ours = resize(attention(student), teacher.shape[2:], "nearest")
    loss = attention_distance(ours, attention(teacher.detach()))
    return loss / teacher[0, 0].numel() if reduction == "mean" else loss


class PixelAttention(nn.Module):
    """Attention over channels times attention over voxels, ``(B, c, *S)`` in [0, 1].

    Args:
        spatial_dims: 2 or 3.
        channels: of the feature.
    """

    def __init__(self, spatial_dims: int, channels: int):
        super().__init__()
        hidden = _multiple_of_8(channels // 16)
        self.squeeze = pointwise(spatial_dims, channels, hidden, bias=True)
        self.excite = pointwise(spatial_dims, hidden, channels, bias=True)
        self.spatial = convolution(spatial_dims, 1, 1, kernel=7)

    def forward(self, feature: Tensor) -> Tensor:
        """Return the attention of a feature ``(B, c, *S)``."""
        mean = feature.mean(dim=tuple(range(2, feature.ndim)), keepdim=True)
        by_channel = F.hardsigmoid(self.excite(F.relu(self.squeeze(mean))))
        by_voxel = F.hardsigmoid(self.spatial(feature.mean(dim=1, keepdim=True)))
        return by_channel * by_voxel


class Correction(nn.Module):
    """The student's corrected feature and its correction factor.

    Args:
        spatial_dims: 2 or 3.
        channels: of the student's feature.
        factor: whether the correction factor is wanted (CFD).
    """

    def __init__(self, spatial_dims: int, channels: int, factor: bool = True):
        super().__init__()
        self.attention = PixelAttention(spatial_dims, channels)
        self.convert = pointwise(spatial_dims, channels, channels, bias=True) if factor else None
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return attention times feature, and the converted attention, both ``(B, c, *S)``."""
        weights = self.attention(feature)
        return weights * feature, self.convert(weights) if self.convert is not None else None


class Method(Distiller):
    """Both feature losses of ACF-BCKD, each with a weight of its own."""

    floor: ClassVar[float | None] = None  # the attention stands between the two

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        if params.weight_afd or params.weight_cfd:
            channels = context.tap("student", params.student_tap).channels
            factor = params.weight_cfd > 0
            self.correct = Correction(context.spatial_dims, channels, factor)
        for name in self.teacher_taps():
            context.tap("teacher", name)

    def student_taps(self) -> tuple[str, ...]:
        """The feature that the attention corrects."""
        wanted = self.params.weight_afd or self.params.weight_cfd
        return (self.params.student_tap,) if wanted else ()

    def teacher_taps(self) -> tuple[str, ...]:
        """The corrected feature and the correction, each where its term has a weight."""
        corrected = (self.params.corrected_tap,) if self.params.weight_afd else ()
        return corrected + ((self.params.correction_tap,) if self.params.weight_cfd else ())

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``afd`` and ``cfd``."""
        params = self.params
        if not self.student_taps():
            return {}
        corrected, factor = self.correct(student.features[params.student_tap])

        def loss(ours: Tensor, tap: str) -> Tensor:
            return map_loss(ours, teacher.features[tap], params.reduction)

        return weighted(
            afd=(params.weight_afd, lambda: loss(corrected, params.corrected_tap)),
            cfd=(params.weight_cfd, lambda: loss(factor, params.correction_tap)),
        )


def _multiple_of_8(number: int) -> int:
    """The nearest multiple of 8, at least 8 and no less than nine tenths of `number`."""
    rounded = max(8, (number + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * number else rounded
