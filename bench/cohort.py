"""Twelve students of one teacher in a cohort, against one training after the other.

Usage: python bench/cohort.py [--rounds 5] [--json FILE]

Both sides run in this process, with the same memory allocator, threads, files and steps. What is
timed are the steps, with the reading of their crops. Networks and methods are those of a published
comparison; the crops are smaller than its 96³, so that the bench is short.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import Row, in_turns, main, ratio, shown

from kdpipe import discover
from kdpipe.data.store import sample_foreground, write_case
from kdpipe.engine.cohort import Cohort
from kdpipe.engine.device import keep_freed_memory, pick_device
from kdpipe.engine.jobs import Job
from kdpipe.engine.loop import Trainer
from kdpipe.engine.signals import StopRequest
from kdpipe.engine.state import weights_digest
from kdpipe.engine.train import train
from kdpipe.progress import ProgressReport
from kdpipe.settings import Training

TEACHER, STUDENT = "res_unet", "unet_tiny"  # 19.0 and 2.0 million parameters
METHODS: tuple[str, ...] = (
    "none", "kd", "kd_mse_sigmoid", "nkd", "at", "fitnet", "cwd", "dist", "ifvd", "skd", "dkd",
    "acf_bckd",
)  # fmt: skip
SIDE, CLASSES, STEPS = 48, 14, 1
CASES = [f"case_{number}" for number in range(4)]


def _store(folder: Path) -> Path:
    """Prepared cases of the size of a crop: noise, and blocks of each structure."""
    rng = np.random.default_rng(0)
    for name in CASES:
        label = np.kron(rng.integers(0, CLASSES, (4,) * 3), np.ones((SIDE // 4,) * 3))
        label = label.astype(np.uint8)
        image = rng.normal(0, 0.3, (1, *label.shape)) + label / CLASSES
        facts = {"pad_value": 0.0, "digest": name}
        foreground = sample_foreground(label, CLASSES)
        write_case(folder / name, image.astype(np.float32), label, facts, foreground)
    return folder


def _run(network: str, method: str) -> dict[str, Any]:
    recipe = Training(epochs=1, steps_per_epoch=1000, batch_size=1, precision="fp32")
    return {
        "cell": {"dataset": "blocks", "split": "default", "fold": 0, "seed": 0, "method": method},
        "network": {
            "name": network,
            "params": discover.check_params("nets", network, {}),
            "in_channels": 1,
            "out_channels": CLASSES,
        },
        "targets": {"n_labels": CLASSES, "regions": None},
        "method": {"name": method, "params": discover.check_params("methods", method, {})},
        "patch": [SIDE] * 3,
        "training": recipe.model_dump(mode="json"),
    }


class Trainings:
    """The members, twice: with all that each is alone, and in a cohort. Both go on step by step."""

    def __init__(self, folder: Path, teacher: str):
        self.folder, self.store = folder, _store(folder / "store")
        self.teacher: Path | None = None
        taught = self._job("teacher", "none", teacher)
        taught.run["training"]["steps_per_epoch"] = 1
        train(taught)
        self.teacher = taught.model
        self.alone = self._cohort("alone", shared=False).members
        self.cohort = self._cohort("cohort", shared=True)
        self.report = ProgressReport("", 0, shown=False)

    def _job(self, place: str, method: str, network: str = STUDENT) -> Job:
        where = self.folder / place / method
        return Job(
            run=_run(network, method),
            preparation={},
            split={"train": CASES[:3], "val": CASES[3:], "test": [], "sha256": ""},
            store=self.store,
            state=where / "checkpoint",
            model=where / "model.pt",
            teacher=None if method == "none" else self.teacher,
        )

    def _cohort(self, place: str, shared: bool) -> Cohort:
        """All members, built as for a training; each with a teacher of its own if not shared."""
        cohort = Cohort(StopRequest(), ExitStack(), leave_failed=False)
        for method in METHODS:
            cohort.add(self._job(place, method))
            if not shared:
                cohort.teacher = None
        return cohort

    def together(self) -> None:
        """`STEPS` steps of all members, as `kdpipe.engine.cohort` takes them."""
        members = self.cohort.members
        step = members[0].trainer.step
        for batch in itertools.islice(self.cohort.batches(step), STEPS):
            self.cohort.take_steps(members, batch, self.report)

    def one_after_the_other(self) -> None:
        """The same steps as `Trainer.run` takes them, with its own batches."""
        for member in self.alone:
            with member.turn():  # sets the random draws, as a process of its own would have them
                trainer = member.trainer
                for batch in itertools.islice(trainer.batches(trainer.step), STEPS):
                    trainer.advance(batch)

    def equal(self) -> int:
        """How many members have the same weights on both sides."""
        pairs = zip(self.alone, self.cohort.members, strict=True)
        digests = [
            [weights_digest(m.trainer.student.network.state_dict()) for m in pair] for pair in pairs
        ]
        return sum(ours == theirs for ours, theirs in digests)


@contextmanager
def _steps_only() -> Iterator[None]:
    """No measurement of the terms' gradients, which is done once in hundreds of steps."""
    measures = Trainer._measures_gradients
    Trainer._measures_gradients = lambda trainer: False  # type: ignore[assignment, method-assign]
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        Trainer._measures_gradients = measures  # type: ignore[method-assign]
        logging.disable(logging.NOTSET)


def row(teacher: str, rounds: int, clock: Callable[[], float]) -> Row:
    """Twelve students of one teacher."""
    with _steps_only(), tempfile.TemporaryDirectory() as folder:
        trainings = Trainings(Path(folder), teacher)
        ways = {"cohort": trainings.together, "separate": trainings.one_after_the_other}
        seconds = in_turns(ways, rounds, clock)
        equal = trainings.equal()
    return Row(
        "the zoo",
        f"a step of {len(METHODS)} methods, {teacher} teaches {STUDENT}, batch 1, {SIDE}³, "
        f"{CLASSES} classes, {pick_device().type}",
        shown(seconds["cohort"]),
        "kdpipe, one training after the other",
        shown(seconds["separate"]),
        ratio(seconds, "cohort", "separate"),
        target=1 / 0.6,
        limit="(11 t + 12 s) / (t + 12 s): t the teacher, s the rest of a step",
        equal=f"weights of {equal} of {len(METHODS)} equal to the bit",
        note="start, validation and checkpoints, which are the same on both sides, on neither",
    )


def rows(rounds: int = 5, clock: Callable[[], float] = time.perf_counter) -> list[Row]:
    """Twelve students of the comparison's larger teacher."""
    keep_freed_memory()
    return [row(TEACHER, rounds, clock)]


if __name__ == "__main__":
    main(rows)
