"""What a training reads and writes, whether the network is trained here or taken over."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from kdpipe.atomic import atomic_path, write_json
from kdpipe.data.store import StoredCase
from kdpipe.engine.energy import hardware, total
from kdpipe.engine.state import weights_digest
from kdpipe.errors import DataError
from kdpipe.infer.model import read_tensors, save_model
from kdpipe.provenance import digest, environment

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What a training job reads and writes.

    `store` holds the prepared cases, `state` the checkpoints; `model` is ``model.pt`` and two files
    are written beside it: ``model.json`` (cost, selection, provenance) and ``train.csv``. `on_stop`
    says what follows a signal, see `StopRequest`. `cohort` is how many are trained in turns.
    Another process that trains the same cell is waited for, up to `wait` seconds, and what it has
    written is taken; `before` is what `mark_of` said of the model when this process began.
    """

    run: dict[str, Any]
    preparation: dict[str, Any]
    split: dict[str, Any]
    store: Path
    state: Path
    model: Path
    teacher: Path | None = None
    code: str = ""
    checkpoint_seconds: float = 60.0
    loaders: int = 0
    on_stop: str = "exit"
    cohort: int = 1
    wait: float = 0.0
    before: tuple[int, int] | None = None

    @property
    def is_trial(self) -> bool:
        """Whether this is a trial of a budget: if it diverges, another one is chosen."""
        return "tuning" in self.run and "tuned" not in self.run


def training_digest(job: Job) -> str:
    """Digest of all that decides a training's result, whatever the cell is called.

    A checkpoint is continued, and a finished training taken for another cell, only where it is
    the same.
    """
    names = ("network", "targets", "patch", "method", "training", "adopt")
    decisive = {name: job.run[name] for name in names if name in job.run}
    teacher = _teacher_digest(job.teacher) if job.teacher else None
    used = (*job.split["train"], *job.split["val"])
    data = [StoredCase(job.store / case).geometry["digest"] for case in used]
    seed = job.run["cell"]["seed"]
    return digest(decisive, seed, job.preparation, job.split, job.code, teacher, data)


def _teacher_digest(path: Path) -> str:
    """Digest of all that a student has from its teacher, whatever the teacher is called."""
    try:
        content = read_tensors(path)
        run = {name: value for name, value in content["run"].items() if name != "cell"}
        weights = weights_digest(content.get("weights", {}))
        return digest(run, content["preparation"], content["sources"], weights)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not a usable kdpipe model ({error}); train it again") from error


def write_results(
    job: Job,
    weights: Mapping[str, Tensor],
    rows: Sequence[Mapping[str, float]],
    best_epoch: int,
    dice: float,
) -> None:
    """Write ``train.csv``, ``model.json`` and, last, ``model.pt``.

    Args:
        job: says where to.
        weights: of the best epoch.
        rows: one an epoch, with its ``seconds`` and, where known, ``energy_j``.
        best_epoch: the epoch that was selected.
        dice: its mean validation Dice in [0, 1].
    """
    facts = {
        **total(rows),
        "best_epoch": best_epoch,
        "validation_dice": dice,
        "weights_sha256": weights_digest(weights),
        "split_sha256": job.split["sha256"],
        "selects_on_test": job.split.get("selects_on_test", False),
        "training_sha256": training_digest(job),
        "code": job.code,
        "environment": environment(),
        "hardware": hardware(),
        **({"cohort": job.cohort} if job.cohort > 1 else {}),
        **_tuning(job),
    }
    _write_history(job, rows)
    write_json(job.model.with_name("model.json"), facts)
    save_model(job.model, weights, job.run, job.preparation)
    log.info("best validation Dice %.4f after epoch %d", dice, best_epoch)


def write_lost(job: Job, rows: Sequence[Mapping[str, float]], reason: str) -> None:
    """Write ``train.csv`` and ``model.json`` of a trial that diverged: it has no model.

    Args:
        job: says where to.
        rows: of the epochs before that.
        reason: why, for people.
    """
    job.model.unlink(missing_ok=True)  # of an earlier run
    _write_history(job, rows)
    facts = {
        **total(rows),
        "validation_dice": None,
        "diverged": reason,
        "code": job.code,
        "environment": environment(),
        "hardware": hardware(),
        **_tuning(job),
    }
    write_json(job.model.with_name("model.json"), facts)
    log.warning("a lost trial: %s", reason)


def _write_history(job: Job, rows: Sequence[Mapping[str, float]]) -> None:
    """Write ``train.csv``, a row an epoch."""
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["epoch"]
    with atomic_path(job.model.with_name("train.csv")) as temporary:
        pd.DataFrame(rows, columns=columns).to_csv(temporary, index=False)


def _tuning(job: Job) -> dict[str, Any]:
    """The settings of a trial, or those that were chosen; nothing for any other cell."""
    return {"tuning": job.run["tuning"]} if "tuning" in job.run else {}
