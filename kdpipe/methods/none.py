"""No distillation: the student learns from the labels alone.

The baseline of every table. A gain is stated against it, and it is trained on the same crops
with the same budget as all others.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdpipe.discover import Parameters
from kdpipe.methods.base import Distiller, Outputs, Progress


class Params(Parameters):
    """There is nothing to set."""


class Method(Distiller):
    """Adds no term to the segmentation loss."""

    needs_teacher: ClassVar[bool] = False

    def forward(
        self, student: Outputs, teacher: Outputs | None, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return no terms."""
        return {}
