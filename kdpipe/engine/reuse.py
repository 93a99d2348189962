"""Take over a training that is done already, under another name or in a cohort.

No part of the digest of the training's code: what is taken over is what would be trained.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from kdpipe.atomic import write_json, write_text
from kdpipe.engine import parallel
from kdpipe.engine.jobs import Job, training_digest
from kdpipe.engine.state import weights_digest
from kdpipe.engine.train import train
from kdpipe.infer.model import read_tensors, save_model
from kdpipe.tuning import with_settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Trained:
    """A finished training: what its three files hold."""

    facts: dict[str, Any]
    cell: dict[str, Any]
    weights: dict[str, Tensor]
    history: str


def train_tuned(job: Job, choice: Mapping[str, Any], trained: Iterable[Path]) -> None:
    """Write the three files of a tuned student.

    Args:
        job: of the cell; its ``run.json`` has the method as configured.
        choice: the content of ``choice.json``.
        trained: folders of finished trainings. The cell's own former files are looked at too.

    Raises:
        as `train`.
    """
    chosen = choice["chosen"]
    settings = {key: chosen[key] for key in ("trial", "learning_rate", "weight") if key in chosen}
    job = replace(job, run=with_settings(job.run, settings))
    if not take_over(job, (job.model.parent, *trained)):
        train(job)


def take_over(job: Job, trained: Iterable[Path]) -> bool:
    """Write the three files of a cell as one of the folders holds them; say whether one does.

    Args:
        job: of the cell.
        trained: folders of trainings, finished or not.
    """
    wanted = training_digest(job)
    return parallel.from_main(lambda: any(_take_over(job, folder, wanted) for folder in trained))


def is_trained(job: Job) -> bool:
    """Say whether the job's own files are there, whole, and of this very training."""
    return _read(job.model.parent, training_digest(job)) is not None


def _take_over(job: Job, folder: Path, wanted: str) -> bool:
    """Write another cell's training as this one's if it is the same; say whether it was."""
    found = _read(folder, wanted)
    if found is None:
        return False
    log.info("the same training as %s", folder)
    tuning = {"tuning": job.run["tuning"]} if "tuning" in job.run else {}
    record = found.facts | tuning
    if found.cell.get("method") != job.run["cell"].get("method"):
        record["same_training_as"] = found.cell.get("method")
    write_text(job.model.with_name("train.csv"), found.history)
    write_json(job.model.with_name("model.json"), record)
    save_model(job.model, found.weights, job.run, job.preparation)
    return True


def _read(folder: Path, wanted: str) -> _Trained | None:
    """What a folder holds, if it is the training with the digest `wanted`, undamaged."""
    try:
        facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if facts.get("training_sha256") != wanted:
            return None
        content = read_tensors(folder / "model.pt")
        history = (folder / "train.csv").read_text(encoding="utf-8")
    except (OSError, ValueError):  # not there, or damaged
        return None
    if weights_digest(content["weights"]) != facts["weights_sha256"]:
        log.warning("%s is not what its model.json says: training again", folder / "model.pt")
        return None
    return _Trained(facts, content["run"]["cell"], content["weights"], history)
