"""Train, unless another study has trained the same already, see `kdpipe.sharing`.

No part of the digest of the training's code: what is taken is what would be trained.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

from kdpipe.atomic import atomic_path, write_json, write_text
from kdpipe.engine.device import compute_dtype, pick_device
from kdpipe.engine.jobs import Job, training_digest
from kdpipe.engine.parallel import from_main, is_main
from kdpipe.engine.state import weights_digest
from kdpipe.engine.train import train
from kdpipe.infer.model import read_tensors, save_model
from kdpipe.sharing import give, is_shared, shared_key, taken

log = logging.getLogger(__name__)
FILES = ("model.pt", "model.json", "train.csv")


def train_once(job: Job) -> None:
    """Write the three files of a cell, as another study has trained it if one has.

    Trials of a budget are not shared: no other study asks for their settings, and they may have
    no model. Nor is a training whose code was not digested, as nobody knows that it is the same.

    Raises:
        as `train`.
    """
    if not take_shared(job):
        train(job)
        give_shared(job)


def take_shared(job: Job) -> bool:
    """Write the three files as another study has trained them; say whether one has."""
    if not _is_for_all(job):
        return False
    digest = training_digest(job)
    key = _key(job, digest)
    return from_main(lambda: _take(job, key, digest))


def give_shared(job: Job) -> None:
    """Hand the three files of a cell that was trained here to other studies."""
    if _is_for_all(job) and is_main():
        key = _key(job, training_digest(job))
        give("trainings", key, [job.model.with_name(name) for name in FILES])


def _is_for_all(job: Job) -> bool:
    return is_shared() and bool(job.code) and not job.is_trial


def _key(job: Job, digest: str) -> str:
    """What decides a study's result, and what makes a difference to the bits alone."""
    device = pick_device()
    dtype = compute_dtype(job.run["training"]["precision"], device)
    return shared_key(digest, device.type, str(dtype), os.environ.get("WORLD_SIZE", "1"))


def _take(job: Job, key: str, digest: str) -> bool:
    with taken("trainings", key, FILES, job.state) as folder:
        if folder is None or not _write(job, folder, key, digest):
            return False
    shutil.rmtree(job.state, ignore_errors=True)  # a checkpoint is of no use any more
    log.info("another study has trained the same: taken from the cache")
    return True


def _write(job: Job, folder: Path, key: str, digest: str) -> bool:
    """Write a shared training as this cell's, if its weights are those that its facts name."""
    try:
        facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        content = read_tensors(folder / "model.pt")
        same = facts["training_sha256"] == digest
        if not same or weights_digest(content["weights"]) != facts["weights_sha256"]:
            raise ValueError("these are not the weights of this training")
        history = (folder / "train.csv").read_text(encoding="utf-8")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        log.warning("shared training %s is not used: %s", key, error)
        return False
    write_text(job.model.with_name("train.csv"), history)
    write_json(job.model.with_name("model.json"), facts | {"taken_from_cache": key})
    if (content["run"], content["preparation"]) == (job.run, job.preparation):
        with atomic_path(job.model) as temporary:  # to the byte, so that its students are shared
            shutil.copyfile(folder / "model.pt", temporary)
    else:  # the same under another label
        save_model(job.model, content["weights"], job.run, job.preparation)
    return True
