"""One cell of the grid: from prepared images and a split to ``model.pt``.

Teachers, undistilled students and distilled students are trained by the same code; they differ in
the network, the method and whether there is a teacher.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kdpipe import discover
from kdpipe.atomic import atomic_path, write_json
from kdpipe.composition import needs_teacher
from kdpipe.config import Training
from kdpipe.data.sampler import CropDataset, CropRecipe, StepSampler
from kdpipe.data.store import StoredCase
from kdpipe.engine.device import compute_dtype, pick_device
from kdpipe.engine.loop import Best, Learner, Trainer
from kdpipe.engine.state import Checkpoint, weights_digest
from kdpipe.engine.taps import TapRecorder, probe
from kdpipe.engine.validate import Validator
from kdpipe.errors import ConfigError
from kdpipe.infer.model import TrainedModel, load_model, save_model
from kdpipe.methods.base import Context, Distiller, TapSpec
from kdpipe.nets.base import build_network, check_patch, network_stages
from kdpipe.nets.cost import macs, parameters
from kdpipe.provenance import digest, environment, file_digest
from kdpipe.terms.segmentation import SEGMENTATION_LOSSES

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What a training job reads and writes.

    `store` holds the prepared cases, `state` the checkpoint; `model` is ``model.pt`` and two files
    are written beside it: ``model.json`` (cost, selection, provenance) and ``train.csv``.
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


def train(job: Job) -> None:
    """Train the cell's network and write its three files.

    Raises:
        ConfigError: the method needs a teacher and none is given, or the patch does not fit.
        DataError: a prepared case or the teacher's file cannot be used.
        Interrupted: stopped by a signal, with a checkpoint.
        TrainingDiverged: the loss is not finite.
    """
    trainer, cost = _assemble(job, pick_device())
    best = trainer.run()
    _write(job, trainer, best, cost)
    trainer.checkpoint.remove()


def _assemble(job: Job, device: torch.device) -> tuple[Trainer, dict[str, Any]]:
    run, spec = job.run, job.run["network"]
    settings = Training.model_validate(run["training"])
    patch, seed = tuple(run["patch"]), run["cell"]["seed"]
    check_patch(spec["name"], spec["params"], patch)
    input_shape = (1, spec["in_channels"], *patch)

    torch.manual_seed(seed)  # the same initial student for every method
    network = build_network(spec["name"], spec["params"], spec["in_channels"], spec["out_channels"])
    stages = network_stages(spec["name"], spec["params"])
    teacher = _load_teacher(job)
    cost = {
        "parameters": parameters(network),
        "macs": macs(network, input_shape),
        "patch": list(patch),
    }
    method = _build_method(run, probe(network, stages, input_shape), teacher, input_shape)
    student = Learner(network.to(device), TapRecorder(network, stages, method.student_taps()))
    frozen = _teacher_learner(teacher, student, stages, method, device)

    cases = job.split["train"]
    steps = settings.steps_per_epoch or math.ceil(len(cases) / settings.batch_size)
    recipe = CropRecipe(patch, settings.foreground_crops, settings.augmentation, seed)
    dataset = CropDataset(job.store, cases, spec["out_channels"], recipe)
    trainer = Trainer(
        settings,
        steps,
        student,
        frozen,
        method.to(device),
        lambda start: _batches(dataset, settings, steps, start, device, job.loaders),
        Validator(
            job.store,
            job.split["val"],
            spec["out_channels"],
            patch,
            settings.validation_overlap,
            compute_dtype(settings.precision, device),
        ),
        Checkpoint(job.state, _state_digest(job), job.checkpoint_seconds),
    )
    return trainer, cost


def _load_teacher(job: Job) -> TrainedModel | None:
    name, params = job.run["method"]["name"], job.run["method"]["params"]
    if not needs_teacher(name, params):
        return None
    if job.teacher is None:
        raise ConfigError(f"method {name!r} learns from a teacher: give its model.pt")
    teacher = load_model(job.teacher)
    ours, theirs = job.run["network"], teacher.run["network"]
    for key in ("in_channels", "out_channels"):
        if ours[key] != theirs[key]:
            raise ConfigError(
                f"teacher {job.teacher} has {key} {theirs[key]}, the student {ours[key]}: "
                "both must be of the same data set and targets"
            )
    return teacher


def _build_method(
    run: dict[str, Any],
    student: dict[str, TapSpec],
    teacher: TrainedModel | None,
    input_shape: tuple[int, ...],
) -> Distiller:
    module = discover.load("methods", run["method"]["name"])
    taught = student  # its past self
    if teacher is not None:
        taught = probe(teacher.network, teacher.stages, input_shape)
    loss = SEGMENTATION_LOSSES[run["training"]["segmentation_loss"]]
    context = Context(
        run["network"]["out_channels"],
        len(run["patch"]),
        student,
        taught,
        segmentation_loss=loss,
    )
    method = module.Method(module.Params(**run["method"]["params"]), context)
    assert isinstance(method, Distiller)
    return method


def _teacher_learner(
    teacher: TrainedModel | None,
    student: Learner,
    stages: dict[str, str],
    method: Distiller,
    device: torch.device,
) -> Learner | None:
    """The trained teacher, or the student's past self, or None; without gradients."""
    if teacher is not None:
        network, stages = teacher.network.to(device), dict(teacher.stages)
    elif method.past_self:
        network = copy.deepcopy(student.network)
    else:
        return None
    network.eval().requires_grad_(False)
    return Learner(network, TapRecorder(network, stages, method.teacher_taps()))


def _batches(
    dataset: CropDataset,
    settings: Training,
    steps: int,
    start: int,
    device: torch.device,
    loaders: int,
) -> Iterable[dict[str, Tensor]]:
    return DataLoader(
        dataset,
        batch_sampler=StepSampler(start, settings.epochs, steps, settings.batch_size),
        num_workers=loaders,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the global one belongs to the networks
    )


def _state_digest(job: Job) -> str:
    """Whatever this names, a checkpoint may be continued only if it was the same."""
    teacher = file_digest(job.teacher) if job.teacher else None
    used = (*job.split["train"], *job.split["val"])
    data = [StoredCase(job.store / case).geometry["digest"] for case in used]
    return digest(job.run, job.preparation, job.split, job.code, teacher, data)


def _write(job: Job, trainer: Trainer, best: Best, cost: dict[str, Any]) -> None:
    facts = {
        **cost,
        "seconds": round(sum(row["seconds"] for row in trainer.rows), 1),
        "best_epoch": best.epoch,
        "validation_dice": best.dice,
        "weights_sha256": weights_digest(best.weights),
        "split_sha256": job.split["sha256"],
        "code": job.code,
        "environment": environment(),
    }
    columns = list(dict.fromkeys(name for row in trainer.rows for name in row))
    with atomic_path(job.model.with_name("train.csv")) as temporary:
        pd.DataFrame(trainer.rows, columns=columns).to_csv(temporary, index=False)
    write_json(job.model.with_name("model.json"), facts)
    save_model(job.model, best.weights, job.run, job.preparation)
    logger.info("best validation Dice %.4f after epoch %d", best.dice, best.epoch)
