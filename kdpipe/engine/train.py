"""One cell of the grid: from prepared images and a split to ``model.pt``.

Teachers, undistilled students and distilled students are trained by the same code; they differ in
the network, the method and whether there is a teacher.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kdpipe import discover
from kdpipe.composition import needs_teacher
from kdpipe.data.crops.sampler import CropDataset, CropRecipe, StepSampler
from kdpipe.data.targets import Targets
from kdpipe.engine import parallel
from kdpipe.engine.device import compute_dtype, pick_device
from kdpipe.engine.jobs import Job, training_digest, write_lost, write_results
from kdpipe.engine.learner import Learner
from kdpipe.engine.loop import Trainer
from kdpipe.engine.loss_log import diverged_file
from kdpipe.engine.meanwhile import trained_meanwhile
from kdpipe.engine.shared_norm import share_batch_norm
from kdpipe.engine.signals import StopRequest, outlive_signals, told_when_asked
from kdpipe.engine.state import Checkpoint, disk_trouble, is_of_disk
from kdpipe.engine.taps import TapRecorder, probe
from kdpipe.engine.validate import Validator
from kdpipe.errors import ConfigError, DataError, TrainingDiverged, WorkerLost
from kdpipe.infer.model import TrainedModel, load_model
from kdpipe.lock import FolderLock
from kdpipe.methods.base import Context, Distiller, TapSpec
from kdpipe.nets.base import check_patch, network_of, network_stages
from kdpipe.settings import Training
from kdpipe.terms.segmentation import SEGMENTATION_LOSSES

LOADER_ERRORS = (RuntimeError, ConnectionError, EOFError)


def train(job: Job) -> None:
    """Train the cell's network and write its three files.

    Raises:
        ConfigError: the method needs a teacher and none is given, or the patch does not fit.
        DataError: a prepared case or the teacher's file cannot be used.
        Busy: another process trains it.
        Interrupted: stopped by a signal, with a checkpoint.
        WorkerLost: a process that loads data was killed.
        TrainingDiverged: the loss is not finite. A trial of a budget is lost instead.
    """
    wait = job.wait if parallel.world() == 1 else min(job.wait, parallel.LONGEST_WAIT)
    lock = FolderLock(job.state, wait=wait)
    with StopRequest(job.on_stop) as stop, parallel.in_main(lock):
        if parallel.from_main(lambda: trained_meanwhile(job)):
            return
        trainer = assemble(job, pick_device(), stop, lock)
        try:
            trainer.run()
        except TrainingDiverged as error:
            if not job.is_trial:
                raise
            finish_lost(job, trainer, str(error))
            return
        except LOADER_ERRORS as error:
            if not is_of_loader(error):
                raise
            raise worker_lost(trainer, error) from error
        finish(job, trainer)


def finish(job: Job, trainer: Trainer) -> None:
    """Write the results; only then are the checkpoints not needed any more.

    Raises:
        DataError: the disk does not take them.
    """
    best = trainer.best
    _keep(
        job,
        trainer,
        lambda: write_results(job, best.weights, trainer.rows, best.epoch, best.dice),
    )
    diverged_file(job.state).unlink(missing_ok=True)  # of earlier settings


def finish_lost(job: Job, trainer: Trainer, reason: str) -> None:
    """Write what is left of a trial that diverged.

    Raises:
        DataError: the disk does not take it.
    """
    _keep(job, trainer, lambda: write_lost(job, trainer.rows, reason))


def _keep(job: Job, trainer: Trainer, write: Callable[[], None]) -> None:
    parallel.from_main(lambda: _write(job, trainer, write))


def _write(job: Job, trainer: Trainer, write: Callable[[], None]) -> None:
    trainer.checkpoint.check()
    try:
        write()
    except (OSError, RuntimeError) as error:
        if not is_of_disk(error):
            raise
        raise DataError(
            f"{job.model}: the results cannot be written ({disk_trouble(job.model.parent, error)});"
            f" free space and run the same command; {trainer.checkpoint.told()}"
        ) from error
    trainer.checkpoint.remove()


def is_of_loader(error: Exception) -> bool:
    """Say whether an error means that a process that loads data has died."""
    # a batch that it was handing over when it died breaks the connection
    return not isinstance(error, RuntimeError) or str(error).startswith("DataLoader worker")


def worker_lost(trainer: Trainer, error: Exception) -> WorkerLost:
    """What to say of a dead loader; it may have died of the signal that stops the training."""
    if trainer.stop.received:
        trainer.stop.wait()
    reason = str(error).partition(". ")[0].rstrip(".")
    return WorkerLost(
        f"a process that loads data was lost ({reason}). Most likely the machine or the job ran "
        "out of memory, or of /dev/shm: ask for more (resources.train.mem_mb) or take fewer "
        f"(resources.train.loaders). {trainer.checkpoint.told()}; run the same command to go on"
    )


def assemble(job: Job, device: torch.device, stop: StopRequest, lock: FolderLock) -> Trainer:
    """Build all that a training consists of; nothing is trained, and the lock is only looked at.

    Raises:
        ConfigError, DataError: as `train`.
    """
    run, spec, targets = job.run, job.run["network"], Targets.of(job.run)
    settings = Training.model_validate(run["training"])
    patch, seed = tuple(run["patch"]), run["cell"]["seed"]
    check_patch(spec["name"], spec["params"], patch)
    parallel.check_shares(settings.batch_size)
    input_shape = (1, spec["in_channels"], *patch)

    torch.manual_seed(seed)  # the same initial student for every method
    network = network_of(run)
    stages = network_stages(spec["name"], spec["params"])
    teacher = _load_teacher(job)
    torch.manual_seed(seed)  # adapters start alike, however the teacher is built
    method = _build_method(run, probe(network, stages, input_shape), teacher, input_shape)
    share_batch_norm(network.to(device))
    student = Learner(network, TapRecorder(network, stages, method.student_taps()))
    frozen = _teacher_learner(teacher, student, stages, method, device)
    for learner in (student, frozen):
        if learner is not None:
            learner.speed_up(settings)

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
        Checkpoint(job.state, training_digest(job), job.checkpoint_seconds, lock.check),
        run["method"].get("scale", 1.0),
        stop,
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
) -> Iterator[dict[str, Tensor]]:
    loader = DataLoader(
        dataset,
        batch_sampler=StepSampler(
            start,
            settings.epochs,
            steps,
            settings.batch_size,
            parallel.rank(),
            parallel.world(),
        ),
        num_workers=loaders,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the global one belongs to the networks
        worker_init_fn=outlive_signals,
    )
    return told_when_asked(loader)
