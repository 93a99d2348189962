"""A cohort: several trainings in one process that see the same batches of one teacher.

Each batch is read once, and the teacher looks at it once, at the taps that any member wants. Then
the members take their steps in turns. Each has all that a training has when it is alone: network,
method, optimiser, checkpoint, history, results. It also has its own random draws: the state of
the generators is put back before each of its turns. So what it learns is the same to the bit,
whoever else is there, on which step each goes on, and who drops out.

A member that fails, by a loss that is not finite for instance, drops out; the others go on.

No part of the digest of the training's code: what is trained is what would be trained alone.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdpipe.engine.cohort_fit import check_fit
from kdpipe.engine.device import pick_device
from kdpipe.engine.energy import Spent
from kdpipe.engine.jobs import Job
from kdpipe.engine.loop import Trainer
from kdpipe.engine.reuse import is_trained, take_over
from kdpipe.engine.shared import give_shared, take_shared
from kdpipe.engine.shared_teacher import SharedTeacher, View
from kdpipe.engine.signals import StopRequest
from kdpipe.engine.train import (
    LOADER_ERRORS,
    assemble,
    finish,
    finish_lost,
    is_of_loader,
    worker_lost,
)
from kdpipe.errors import Interrupted, KdpipeError, TrainingDiverged
from kdpipe.lock import FolderLock
from kdpipe.progress import ProgressReport

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Member:
    """One training of a cohort; `generators` are the states of its random draws."""

    job: Job
    trainer: Trainer
    generators: dict[str, Tensor]

    @property
    def has_steps(self) -> bool:
        """Whether there are steps left to do."""
        return self.trainer.step < self.trainer.total_steps

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Make the generators this member's, and count the time as its own."""
        torch.set_rng_state(self.generators["cpu"])
        if "cuda" in self.generators:
            torch.cuda.set_rng_state(self.generators["cuda"])
        self.trainer.spent.begin()
        try:
            yield
        finally:
            self.trainer.spent.add()
            self.generators = _generators()


class Cohort:
    """The members that are trained in turns; `members` are those that are still at it.

    Args:
        stop: notes signals.
        locks: holds the members' folders.
        leave_failed: see `train_cohort`.
    """

    def __init__(self, stop: StopRequest, locks: contextlib.ExitStack, leave_failed: bool):
        self.stop, self.locks, self.leave_failed = stop, locks, leave_failed
        self.device = pick_device()
        self.members: list[Member] = []
        self.errors: list[Exception] = []
        self.teacher: SharedTeacher | None = None
        self.common = Spent(self.device)

    def add(self, job: Job) -> None:
        """Build a member and bring it to where its checkpoint is, or let its method pre-fit."""
        try:
            lock = self.locks.enter_context(FolderLock(job.state))
            trainer = assemble(job, self.device, self.stop, lock)
            if trainer.teacher is not None and not trainer.method.past_self:
                self.teacher = self.teacher or SharedTeacher(trainer.teacher)
                trainer.teacher = View(self.teacher, trainer.method.teacher_taps())
            member = Member(job, trainer, _generators())
            with member.turn():
                trainer.begin()
        except Exception as error:
            self._note(job, error)
        else:
            self.members.append(member)

    def run(self) -> None:
        """Train all members to their end."""
        for member in list(self.members):
            if not member.has_steps:  # it was killed between its last step and its results
                self._end(member)
        total = sum(member.trainer.total_steps for member in self.members)
        done = sum(member.trainer.step for member in self.members)
        with ProgressReport("training a cohort, steps of all", total, done) as report:
            while self.members:
                self._run_from(min(member.trainer.step for member in self.members), report)

    def _run_from(self, step: int, report: ProgressReport) -> None:
        """Go through the batches from `step` on; members that are ahead wait for theirs."""
        saved = time.monotonic()
        for batch in self.batches(step):
            due = [member for member in self.members if member.trainer.step == step]
            if not due:
                return  # those that were behind have dropped out
            self.take_steps(due, batch, report)
            step += 1
            every = min((m.job.checkpoint_seconds for m in self.members), default=float("inf"))
            if time.monotonic() - saved >= every:
                self._save()
                saved = time.monotonic()

    def batches(self, step: int) -> Iterator[dict[str, Tensor]]:
        """Yield the batches from `step` on, each read once and brought to the device once.

        Raises:
            WorkerLost: a process that loads data was killed.
        """
        trainer = self.members[0].trainer
        self.common.begin()
        try:
            for batch in trainer.batches(step):
                yield {name: x.to(self.device, non_blocking=True) for name, x in batch.items()}
                self.common.begin()
        except LOADER_ERRORS as error:
            if not is_of_loader(error):
                raise
            raise worker_lost(trainer, error) from error

    def take_steps(
        self, due: Sequence[Member], batch: dict[str, Tensor], report: ProgressReport
    ) -> None:
        """Let the teacher look at a batch and each member whose step it is take it.

        Raises:
            Interrupted: after a signal; all members are saved.
        """
        self._teach(due, batch["image"])
        for member in due:
            self._take_step(member, batch, report)
            if self.stop.received:
                self._stop()
        if self.teacher is not None:
            self.teacher.forget()

    def _teach(self, due: Sequence[Member], image: Tensor) -> None:
        """Let the teacher look at a batch; who is taught pays for it, all pay for the batch."""
        self._charge(due)
        taught = [member for member in due if isinstance(member.trainer.teacher, View)]
        if taught:
            self.common.begin()
            taught[0].trainer.teach(image)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self._charge(taught)

    def _charge(self, members: Sequence[Member]) -> None:
        self.common.add()
        for member in members:
            member.trainer.spent.take_share(self.common, len(members))
        self.common.take()

    def _take_step(self, member: Member, batch: dict[str, Tensor], report: ProgressReport) -> None:
        try:
            with member.turn():
                values = member.trainer.advance(batch)
        except Exception as error:
            self._drop(member, error)
            return
        report.advance(note=f"loss {values['loss']:.4f}")
        if not member.has_steps:
            self._end(member)

    def _end(self, member: Member) -> None:
        self.members.remove(member)
        try:
            finish(member.job, member.trainer)
            give_shared(member.job)
        except Exception as error:
            self._note(member.job, error)

    def _drop(self, member: Member, error: Exception) -> None:
        """Go on without a member; a trial that diverged is lost, which is no error."""
        self.members.remove(member)
        if isinstance(error, TrainingDiverged) and member.job.is_trial and not self.leave_failed:
            finish_lost(member.job, member.trainer, str(error))
        else:
            self._note(member.job, error)

    def _note(self, job: Job, error: Exception) -> None:
        """Tell what has happened; a traceback is for errors that nobody expected."""
        unknown = None if isinstance(error, KdpipeError) else error
        log.warning("%s drops out: %s", job.state.parent, error, exc_info=unknown)
        self.errors.append(error.with_traceback(None))  # or it would hold the step's tensors

    def _save(self) -> None:
        for member in list(self.members):
            try:
                with member.turn():
                    member.trainer.save()
            except Exception as error:  # its folder is another process's by now
                self._drop(member, error)

    def _stop(self) -> None:
        """Save all and raise Interrupted, unless all are done."""
        self._save()
        if self.members:
            self.stop.wait()
            steps = sorted({member.trainer.step for member in self.members})
            raise Interrupted(
                f"stopped by {self.stop.received} after step {' and '.join(map(str, steps))} of "
                f"{self.members[0].trainer.total_steps}; {len(self.members)} members go on from "
                "their checkpoints, run the same command"
            )


def train_cohort(jobs: Sequence[Job], on_stop: str = "exit", leave_failed: bool = False) -> None:
    """Train all members and write their files; one whose training is done already is left alone.

    Args:
        jobs: of the members. Seed, patch, split, store and all settings of the training but those
            in `cohort_fit.OWN_SETTINGS` must be the same, and so must the teacher, where there
            is one.
        on_stop: what follows a signal, see `StopRequest`.
        leave_failed: let members that fail be, with their checkpoints, for whoever trains them
            alone; else a trial that diverges is lost, and the first error is raised at the end.

    Raises:
        ConfigError: the members do not fit together, or there are several processes.
        Interrupted: stopped by a signal; each member has a checkpoint.
        WorkerLost: a process that loads data was killed.
        Exception: what the first member failed by, unless `leave_failed`; the others are done.
    """
    check_fit(jobs)
    with StopRequest(on_stop) as stop, contextlib.ExitStack() as locks:
        cohort = Cohort(stop, locks, leave_failed)
        todo = [job for job in jobs if not _is_done(job)]
        log.info("%d of %d members are to be trained", len(todo), len(jobs))
        for job in todo:
            cohort.add(replace(job, cohort=len(todo)))
        stop.defer()
        cohort.run()
    if cohort.errors and not leave_failed:
        raise cohort.errors[0]


def _is_done(job: Job) -> bool:
    """Whether the results are there; they may lie in the cell's folder, or be another study's."""
    return is_trained(job) or take_over(job, [job.state.parent]) or take_shared(job)


def _generators() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states
