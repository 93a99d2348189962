"""How the page writes methods and differences; the rest is as in `kdpipe.stats.wording`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kdpipe.paths import NO_TEACHER
from kdpipe.stats.wording import arm_name, difference_unit, factor


@dataclass(frozen=True)
class Names:
    """Names of methods as the page writes them.

    Attributes:
        readings: labels of methods that are readings of papers.
        teacher: the one teacher of all methods, which then need not be said each time.
    """

    readings: frozenset[str]
    teacher: str = ""

    @classmethod
    def of(cls, run: dict[str, Any]) -> Names:
        """Take the names from the ``run.json`` of a study."""
        students = [cell for cell in run["cells"] if cell["role"] == "student"]
        teachers = {str(cell["teacher"]) for cell in students} - {NO_TEACHER, ""}
        only = teachers.pop() if len(teachers) == 1 else ""
        return cls(frozenset(run.get("readings", ())), only)

    def arm(self, teacher: str, method: str) -> str:
        """Return how a method is called, with its teacher where that can be another."""
        taught_by = "" if teacher == self.teacher else teacher
        return arm_name(taught_by, method, reading=method in self.readings)


def number(value: float, unit: str, *, signed: bool = False) -> str:
    """Return a difference without its unit, fractions in points of a hundred; "" for NaN."""
    if np.isnan(value):
        return ""
    return f"{value * factor(unit):{'+' if signed else ''}.2f}".replace("-", "\u2212")


def amount(value: float, unit: str, *, signed: bool = False) -> str:
    """Return a difference with its unit."""
    return f"{number(value, unit, signed=signed) or '?'} {difference_unit(unit)}".rstrip()
