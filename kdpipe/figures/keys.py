"""What figures show: an arm, what it is compared within, and the measure on an axis."""

from __future__ import annotations

from dataclasses import dataclass

from kdpipe.stats.scores import UNDISTILLED
from kdpipe.stats.wording import difference_unit, factor, level_unit, metric_name


@dataclass(frozen=True, order=True)
class Arm:
    """A row of a figure: a method with its teacher, or (`method` empty) a teacher itself."""

    teacher: str
    method: str

    @property
    def is_teacher(self) -> bool:
        """Whether it is a teacher, not a student."""
        return not self.method

    @property
    def is_baseline(self) -> bool:
        """Whether it is the undistilled student, tuned or not."""
        return self.method in UNDISTILLED


@dataclass(frozen=True)
class Group:
    """What is compared with one another: one student on one split of one data set."""

    dataset: str
    split: str
    student: str

    def __str__(self) -> str:
        return f"{self.dataset}, split {self.split}, student {self.student}"


@dataclass(frozen=True)
class Measure:
    """A metric of a protocol as a figure shows it.

    Attributes:
        metric: name in the tables.
        protocol: name in the tables.
        unit: in the tables: ``fraction``, ``mm`` or ``voxel``.
        sign: +1 where higher is better, -1 where lower is.
    """

    metric: str
    protocol: str
    unit: str
    sign: int

    @property
    def name(self) -> str:
        """What people call it."""
        return metric_name(self.metric)

    @property
    def shown_unit(self) -> str:
        """Unit of the axis."""
        return level_unit(self.unit)

    @property
    def difference_unit(self) -> str:
        """Unit of a difference: per cent differ by points."""
        return difference_unit(self.unit)

    @property
    def factor(self) -> float:
        """From the tables' unit to that of the axis."""
        return factor(self.unit)

    def gain(self, against: str) -> str:
        """Label of an axis of differences to the arm `against`, positive for better."""
        word = "gain over" if self.sign > 0 else "reduction against"
        return f"{self.name} {word} {against} ({self.difference_unit})"
