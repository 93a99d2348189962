"""What ``kdpipe train-cohort`` runs: by hand, or for a job of the graph."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpipe.atomic import write_json
from kdpipe.cohorts import FOLDER, folder_of
from kdpipe.errors import ConfigError
from kdpipe.json_files import read_object


@dataclass(frozen=True)
class _Member:
    """A cell, where its results go, and the ticket that its rule ``distill`` waits for."""

    cell: Path
    results: Path
    run: dict[str, Any]
    code: str = ""
    ticket: Path | None = None


def run_train_cohort(given: argparse.Namespace) -> None:
    """Train the cells of some ``run.json``, or those that a job of the graph is told of.

    The job of the graph succeeds whoever fails in it: that member's own rule says why.
    """
    from kdpipe.engine.signals import StopRequest
    from kdpipe.engine.slots import gpu_slot

    members = _of_the_graph(given.members) if given.members else _by_hand(given.run)
    with StopRequest(given.on_stop), gpu_slot():  # from before the imports: they take seconds
        _train(given, members)
    for member in members:
        if member.ticket is not None:
            _hand_out(member.ticket, (member.results / "model.pt").exists())


def _train(given: argparse.Namespace, members: Sequence[_Member]) -> None:
    from kdpipe.composition import needs_teacher
    from kdpipe.data.splits.split import read_split
    from kdpipe.engine.cohort import train_cohort
    from kdpipe.engine.device import keep_freed_memory
    from kdpipe.engine.jobs import Job

    keep_freed_memory()
    split, preparation = read_split(given.split), read_object(given.prepared / "run.json")
    jobs = []
    for member in members:
        taught = needs_teacher(member.run["method"]["name"], member.run["method"]["params"])
        jobs.append(
            Job(
                run=member.run,
                preparation=preparation,
                split=split,
                store=given.prepared / "cases",
                state=member.cell / "checkpoint",
                model=member.results / "model.pt",
                teacher=given.teacher if taught else None,
                code=member.code,
                checkpoint_seconds=given.checkpoint_seconds,
                loaders=given.loaders,
                on_stop=given.on_stop,
            )
        )
    train_cohort(jobs, given.on_stop, leave_failed=bool(given.members))


def _by_hand(runs: list[Path]) -> list[_Member]:
    if not runs:
        raise ConfigError("name the members: --run A/run.json --run B/run.json")
    return [_Member(file.parent, file.parent, _member(file, read_object(file))) for file in runs]


def _of_the_graph(file: Path) -> list[_Member]:
    members = []
    for ticket, told in read_object(file).items():
        cell = Path(folder_of(ticket))
        run = _member(file, told["run"])
        members.append(_Member(cell, cell / FOLDER, run, told["code"], Path(ticket)))
    return members


def _hand_out(ticket: Path, trained: bool) -> None:
    """Write a ticket and remove those of other settings or code, whose results are gone."""
    write_json(ticket, {"trained": trained})
    for other in ticket.parent.glob("*.json"):
        if other.name not in (ticket.name, "model.json"):
            other.unlink()


def _member(file: Path, run: dict[str, Any]) -> dict[str, Any]:
    if not run.keys() >= {"cell", "network", "method", "training"}:
        raise ConfigError(f"{file}: not the settings of a student")
    if "tuned" in run:
        raise ConfigError(f"{file}: a tuned student waits for its choice; use 'kdpipe distill'")
    return run
