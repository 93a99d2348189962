"""No distillation: the student learns from the labels alone.

Paper: none; it is the baseline of every table.

Idea: A gain is stated against this student, which is trained on the same crops with the same budget
    as all others.

Equation:

.. math::

    L = 0

Taps: none.

Provenance:
- ours: that every study has it.

Deviations: None.
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

    def losses(
        self, student: Outputs, teacher: None, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return no terms."""
        return {}
