"""One cell of the grid: from prepared images and a split to ``model.pt``.

Teachers, undistilled students and distilled students are trained by the same code; they differ in
the network, the method and whether there is a teacher.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kdpipe import discover
from kdpipe.composition import needs_teacher
from kdpipe.data.sampler import CropDataset, CropRecipe, StepSampler
from kdpipe.data.targets import Targets
from kdpipe.engine.device import compute_dtype, pick_device
from kdpipe.engine.jobs import Job, training_digest, write_lost, write_results
from kdpipe.engine.loop import Learner, Trainer
from kdpipe.engine.state import Checkpoint
from kdpipe.engine.taps import TapRecorder, probe
from kdpipe.engine.validate import Validator
from kdpipe.errors import ConfigError, TrainingDiverged
from kdpipe.infer.model import TrainedModel, load_model
from kdpipe.methods.base import Context, Distiller, TapSpec
from kdpipe.nets.base import check_patch, network_of, network_stages
from kdpipe.settings import Training
from kdpipe.terms.segmentation import SEGMENTATION_LOSSES


def train(job: Job) -> None:
    """Train the cell's network and write its three files.

    Raises:
        ConfigError: the method needs a teacher and none is given, or the patch does not fit.
        DataError: a prepared case or the teacher's file cannot be used.
        Interrupted: stopped by a signal, with a checkpoint.
        TrainingDiverged: the loss is not finite. A trial of a budget is lost instead.
    """
    trainer = _assemble(job, pick_device())
    try:
        best = trainer.run()
    except TrainingDiverged as error:
        if not job.is_trial:
            raise
        write_lost(job, trainer.rows, str(error))
        trainer.checkpoint.remove()
        return
    write_results(job, best.weights, trainer.rows, best.epoch, best.dice)
    trainer.checkpoint.remove()


def _assemble(job: Job, device: torch.device) -> Trainer:
    run, spec, targets = job.run, job.run["network"], Targets.of(job.run)
    settings = Training.model_validate(run["training"])
    patch, seed = tuple(run["patch"]), run["cell"]["seed"]
    check_patch(spec["name"], spec["params"], patch)
    input_shape = (1, spec["in_channels"], *patch)

    torch.manual_seed(seed)  # the same initial student for every method
    network = network_of(run)
    stages = network_stages(spec["name"], spec["params"])
    teacher = _load_teacher(job)
    torch.manual_seed(seed)  # adapters start alike, however the teacher is built
    method = _build_method(run, probe(network, stages, input_shape), teacher, input_shape)
    student = Learner(network.to(device), TapRecorder(network, stages, method.student_taps()))
    frozen = _teacher_learner(teacher, student, stages, method, device)

    cases = job.split["train"]
    recipe = CropRecipe(patch, settings.foreground_crops, settings.augmentation, seed)
    dataset = CropDataset(job.store, cases, targets, recipe)
    steps = settings.steps_per_epoch or math.ceil(dataset.n_images / settings.batch_size)
    return Trainer(
        settings,
        steps,
        student,
        frozen,
        method.to(device),
        lambda start: _batches(dataset, settings, steps, start, device, job.loaders),
        Validator(
            job.store,
            job.split["val"],
            targets,
            patch,
            settings.validation_overlap,
            compute_dtype(settings.precision, device),
        ),
        Checkpoint(job.state, training_digest(job), job.checkpoint_seconds),
        run["method"].get("scale", 1.0),
    )


def _load_teacher(job: Job) -> TrainedModel | None:
    name, params = job.run["method"]["name"], job.run["method"]["params"]
    if not needs_teacher(name, params):
        return None
    if job.teacher is None:
        raise ConfigError(f"method {name!r} learns from a teacher: give its model.pt")
    teacher = load_model(job.teacher)
    ours, theirs = (
        {
            "image channels": run["network"]["in_channels"],
            "dimensions": len(run["patch"]),
            **run["targets"],
        }
        for run in (job.run, teacher.run)
    )
    for key in ours:
        if ours[key] != theirs[key]:
            raise ConfigError(
                f"teacher {job.teacher} has {key} {theirs[key]}, the student {ours[key]}: "
                "both must be of the same data set, targets and dimensions"
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
        Targets.of(run).kind,
        loss,
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
