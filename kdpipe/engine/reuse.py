"""Train a student with the settings that were chosen, unless that very training is done already.

No part of the digest of the training's code: what is taken over is what would be trained.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdpipe.atomic import write_json, write_text
from kdpipe.engine.jobs import Job, training_digest
from kdpipe.engine.state import weights_digest
from kdpipe.engine.train import train
from kdpipe.infer.model import read_tensors, save_model
from kdpipe.tuning import with_settings

log = logging.getLogger(__name__)


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
    wanted = training_digest(job)
    if not any(_take_over(job, folder, wanted) for folder in (job.model.parent, *trained)):
        train(job)


def _take_over(job: Job, folder: Path, wanted: str) -> bool:
    """Write another cell's training as this one's if it is the same; say whether it was."""
    try:
        facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if facts.get("training_sha256") != wanted:
            return False
        content = read_tensors(folder / "model.pt")
        history = (folder / "train.csv").read_text(encoding="utf-8")
    except (OSError, ValueError):  # not there, or damaged
        return False
    if weights_digest(content["weights"]) != facts["weights_sha256"]:
        log.warning("%s is not what its model.json says: training again", folder / "model.pt")
        return False
    log.info("the same training as %s", folder)
    record = facts | {"tuning": job.run["tuning"]}
    if folder != job.model.parent:
        record["same_training_as"] = content["run"]["cell"]["method"]
    write_text(job.model.with_name("train.csv"), history)
    write_json(job.model.with_name("model.json"), record)
    save_model(job.model, content["weights"], job.run, job.preparation)
    return True
