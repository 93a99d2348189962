r"""Sum of methods: the terms of several, so that combinations and ablations are configuration.

Paper: none; papers combine losses by hand, here any methods are added up by name.

Idea: ``{sum: [cwd, {hbd: {weight: 0.5}}]}`` is a method. Each part keeps its own parameters,
    adapters, memories and schedules, and is logged under its own label.

Equation:

.. math::

    L = \sum_i L_i

Taps: those of all parts.

Provenance:
- ours: the sum.

Deviations: One part at most may be pre-fitted. A part that learns from the student's past self
    cannot stand beside one that learns from a teacher.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from kdpipe import discover
from kdpipe.discover import Field, Parameters
from kdpipe.errors import ConfigError
from kdpipe.methods.base import Context, Distiller, Outputs, Progress


class Params(Parameters):
    """The methods that are added up; written as a list, see `kdpipe.composition`."""

    parts: list[dict[str, object]] = Field(
        min_length=2, description="name, label and params of each"
    )


class Method(Distiller):
    """Several methods as one."""

    floor: ClassVar[float | None] = None  # the sum of its parts' floors

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        self.labels = [part["label"] for part in params.parts]
        self.parts = nn.ModuleList(_build(part, context) for part in params.parts)
        each = self._each()
        # of the class in all other methods, of the object here
        self.needs_teacher = any(part.needs_teacher for part in each)  # type: ignore[misc]
        self.past_self = any(part.past_self for part in each)  # type: ignore[misc]
        prefitted = [name for name, part in self._named() if part.prefit_steps()]
        if len(prefitted) > 1:
            raise ConfigError(
                f"sum: {' and '.join(prefitted)} both want to be pre-fitted; a sum may hold one "
                "such method"
            )

    def student_taps(self) -> tuple[str, ...]:
        """The taps of all parts."""
        return tuple(dict.fromkeys(tap for part in self._each() for tap in part.student_taps()))

    def teacher_taps(self) -> tuple[str, ...]:
        """The taps of all parts."""
        return tuple(dict.fromkeys(tap for part in self._each() for tap in part.teacher_taps()))

    def losses(
        self, student: Outputs, teacher: Outputs | None, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return ``label.term`` for the terms of all parts; ``label`` if the two are the same."""
        return {
            label if term == label else f"{label}.{term}": loss
            for label, part in self._named()
            for term, loss in part.losses(student, teacher, target, progress).items()
        }

    def paced_parameters(self) -> Iterable[tuple[nn.Parameter, float]]:
        """Those of all parts."""
        return [pair for part in self._each() for pair in part.paced_parameters()]

    def diagnostics(self) -> dict[str, float]:
        """Those of all parts, under their labels."""
        return {
            f"{label}.{key}": value
            for label, part in self._named()
            for key, value in part.diagnostics().items()
        }

    def prefit_steps(self) -> int:
        """Those of the part that wants some."""
        return max(part.prefit_steps() for part in self._each())

    def prefit(self, teacher: Iterable[Outputs]) -> None:
        """Pre-fit the part that wants it."""
        for part in self._each():
            if part.prefit_steps():
                part.prefit(teacher)

    def critic_loss(self, student: Outputs, teacher: Outputs | None) -> Tensor | None:
        """The sum of the parts' adversaries, None if there is none."""
        found = [part.critic_loss(student, teacher) for part in self._each()]
        losses = [loss for loss in found if loss is not None]
        return torch.stack(losses).sum() if losses else None

    def critic_parameters(self) -> Iterable[nn.Parameter]:
        """Those of all parts."""
        return [parameter for part in self._each() for parameter in part.critic_parameters()]

    def _each(self) -> list[Distiller]:
        return [cast(Distiller, part) for part in self.parts]

    def _named(self) -> Iterator[tuple[str, Distiller]]:
        return zip(self.labels, self._each(), strict=True)


def _build(part: dict[str, Any], context: Context) -> Distiller:
    module = discover.load("methods", part["name"])
    method: Distiller = module.Method(module.Params(**part["params"]), context)
    return method
