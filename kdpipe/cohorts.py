"""Which students of a study are trained in one job: those that see the same batches.

A job of a cohort writes the results of its members into a folder of each cell, and a ticket for
each; the rule ``distill`` waits for its cell's ticket and takes the result. The ticket's name is a
digest of all that Snakemake would see of a change of this one member, so that an edit asks for the
tickets of the members that it touches and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from kdpipe.errors import ConfigError
from kdpipe.plan import Cell, Plan
from kdpipe.provenance import digest

#: folder of a cell that its results as a member lie in
FOLDER = "cohort"
#: members of a job, where the study does not say how many
SIZE = 12


@dataclass(frozen=True)
class Cohort:
    """Cells that one job trains, by folder; the first stands for what they share."""

    name: str
    cells: dict[str, Cell]

    @property
    def first(self) -> Cell:
        """Any member: data set, split, fold, teacher, student and seed are those of all."""
        return next(iter(self.cells.values()))


def cohorts_of(plan: Plan) -> list[Cohort]:
    """Return all cohorts of a study.

    Trials of a budget are members; tuned students are not, as nobody knows their settings before
    the trials are done. Students without a teacher have cohorts of their own. A cohort may have one
    member: if it had no ticket then, its rule would run again as soon as it has companions.

    Raises:
        ConfigError: a training has several GPUs.
    """
    wanted = plan.study.cohort
    if not wanted:
        return []
    if plan.study.resources.train.gpu > 1:
        raise ConfigError(
            "cohort: its members are trained in one process, on one GPU; set resources.train.gpu "
            "to 1, or cohort to false"
        )
    size = SIZE if wanted is True else wanted
    alike: dict[str, dict[str, Cell]] = {}
    for folder, cell in (plan.cells | plan.trials).items():
        if cell.student is not None and not cell.tuned:
            alike.setdefault(_place(plan, cell), {})[folder] = cell
    return [
        Cohort(f"{place}/{number}", part)
        for place, cells in alike.items()
        for number, part in enumerate(_parts(cells, size))
    ]


def _place(plan: Plan, cell: Cell) -> str:
    """What members share, as a path."""
    keys = cell.keys
    fold = plan.paths.fold(**{key: keys[key] for key in ("dataset", "split", "fold")})
    return f"{fold}/cohorts/{keys['teacher']}/{keys['student']}/seed{keys['seed']}"


def _parts(cells: dict[str, Cell], size: int) -> Iterator[dict[str, Cell]]:
    """As few parts as can be, about equally large."""
    items = list(cells.items())
    count = -(-len(items) // size)
    for number in range(count):
        yield dict(items[number * len(items) // count : (number + 1) * len(items) // count])


def members_of(
    cohort: Cohort, runs: Mapping[str, Mapping[str, Any]], code: Callable[[Cell], str]
) -> dict[str, dict[str, Any]]:
    """Return path of each member's ticket -> what the job must know of it: ``run``, ``code``.

    Args:
        cohort: of the study.
        runs: path -> content of each ``run.json``.
        code: cell -> digest of the code that trains it.
    """
    members = {}
    for folder, cell in cohort.cells.items():
        member = {"run": runs[f"{folder}/run.json"], "code": code(cell)}
        members[f"{folder}/{FOLDER}/{digest(member)[:16]}.json"] = member
    return members


def folder_of(ticket: str) -> str:
    """Return the folder of a ticket's cell."""
    return str(PurePosixPath(ticket).parents[1])
