"""The training loop: the same for a teacher, an undistilled student and every method."""

from __future__ import annotations

import copy
import itertools
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kdpipe.engine import parallel
from kdpipe.engine.device import autocast, compute_dtype, teacher_dtype, warn_of_slow
from kdpipe.engine.energy import Spent
from kdpipe.engine.learner import Learner
from kdpipe.engine.loss_log import check_finite, compared, described, diverged_file, norms_of
from kdpipe.engine.optim import (
    build_critic_optimizer,
    build_optimizer,
    clip_gradients,
    set_learning_rate,
)
from kdpipe.engine.signals import StopRequest
from kdpipe.engine.state import Checkpoint
from kdpipe.errors import Interrupted
from kdpipe.methods.base import Distiller, Outputs, Progress
from kdpipe.progress import ProgressReport
from kdpipe.settings import Training
from kdpipe.terms.segmentation import SEGMENTATION_LOSSES

logger = logging.getLogger(__name__)
_NORM = "gradient_norm_"
Batches = Callable[[int], Iterable[dict[str, Tensor]]]


@dataclass
class Best:
    """The weights with the highest validation Dice so far."""

    dice: float = float("-inf")
    epoch: int = -1
    weights: dict[str, Tensor] = field(default_factory=dict)


class Trainer:
    """Train one student (or teacher) and keep its best weights.

    Args:
        settings: the recipe.
        steps_per_epoch: optimiser steps that count as an epoch.
        student: the network that is trained.
        teacher: frozen; None where the method needs none. For a method that learns from the
            student's past it is a copy of the student, renewed at the start of each epoch.
        method: its terms are added to the segmentation loss.
        batches: global step -> batches from there on, ``image (B, C, *S)``, ``label (B, *S)``.
        validate: network -> mean validation Dice in [0, 1].
        checkpoint: where to save and go on.
        term_scale: factor on all terms of the method, beyond their own weights.
        stop: notes signals; by itself the training ends at the next step after one.
    """

    def __init__(
        self,
        settings: Training,
        steps_per_epoch: int,
        student: Learner,
        teacher: Learner | None,
        method: Distiller,
        batches: Batches,
        validate: Callable[[nn.Module], float],
        checkpoint: Checkpoint,
        term_scale: float = 1.0,
        stop: StopRequest | None = None,
    ):
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = settings.epochs * steps_per_epoch
        self.student, self.teacher, self.method = student, teacher, method
        self.batches, self.validate, self.checkpoint = batches, validate, checkpoint
        self.term_scale = term_scale
        self.stop = stop or StopRequest()
        self.segmentation_loss = SEGMENTATION_LOSSES[settings.segmentation_loss]
        self.device = next(student.network.parameters()).device
        self.dtype = compute_dtype(settings.precision, self.device)
        self.teacher_dtype = teacher_dtype(settings.teacher_precision, self.dtype)
        warn_of_slow(self.dtype, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        self.optimizer = build_optimizer(settings, student.network, method)
        self.critic_optimizer = build_critic_optimizer(method)
        self.ema = (
            AveragedModel(student.network, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))
            if settings.ema_decay
            else None
        )
        self.step = 0
        self.spent = Spent(self.device)  # in the current epoch, over all interruptions
        self.best = Best()
        self.rows: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}
        self.gradient_norms: dict[str, float] = {}

    def run(self) -> Best:
        """Train to the last epoch, from a checkpoint if there is one.

        Raises:
            Interrupted: after a signal; the state is saved, if the disk takes it.
            TrainingDiverged: when the loss is not finite.
        """
        self.begin()
        saved = time.monotonic()
        shown = parallel.is_main()
        report = ProgressReport("training, step", self.total_steps, self.step, shown)
        with self.stop, report:
            self.stop.defer()
            for batch in self.batches(self.step):
                values = self.advance(batch)
                report.advance(note=f"loss {values['loss']:.4f}")
                received = parallel.agreed_stop(self.stop.received)
                if received or time.monotonic() - saved >= self.checkpoint.every_seconds:
                    self.save()
                    saved = time.monotonic()
                if received and self.step < self.total_steps:
                    parallel.barrier()  # or the first to end would have the others ended
                    self.stop.wait()
                    raise Interrupted(
                        f"stopped by {received} after step {self.step} of {self.total_steps}; "
                        f"{self.checkpoint.told()}, run the same command to go on"
                    )
        return self.best

    # what `run` is made of; a cohort does the same with several trainings in turns

    def begin(self) -> None:
        """Go on from the checkpoint, or let the method train its own parts first."""
        if not self._resume():
            self._prefit()
        self.spent.begin()

    def advance(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Do one step and, after the last one of an epoch, what ends it; return loss and terms."""
        values = self._train_step(batch)
        self.step += 1
        if self.step % self.steps_per_epoch == 0:
            self._end_epoch()
        return values

    def save(self) -> None:
        """Save the state, where this process writes files."""
        self.spent.add()
        if parallel.is_main():
            self.checkpoint.save(self._state())

    def _prefit(self) -> None:
        """Let the method train its own parts on the teacher's outputs."""
        steps = min(self.method.prefit_steps(), self.total_steps)
        if steps:
            logger.info("pre-fitting the method on %d batches", steps)
            images = (batch["image"].to(self.device) for batch in self.batches(0))
            outputs = map(self.teach, itertools.islice(images, steps))
            self.method.prefit(output for output in outputs if output is not None)

    # one step

    def _train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        set_learning_rate(self.optimizer, self.settings, self.step / self.total_steps)
        self._renew_past_self()
        self.student.network.train()
        self.method.train()
        image, label = (batch[key].to(self.device, non_blocking=True) for key in ("image", "label"))
        with parallel.own_draws(self.step):
            with autocast(self.device, self.dtype):
                student = self.student(image)
            teacher = self.teach(image)
        label = parallel.gather(label)  # terms are outside autocast, in float32
        terms = {"segmentation": self.segmentation_loss(student.logits, label)}
        for name, term in self.method(student, teacher, label, self._progress()).items():
            terms[name] = self.term_scale * term
        loss = torch.stack(list(terms.values())).sum()
        check_finite(loss, terms, batch, self.step, diverged_file(self.checkpoint.folder))
        if self._measures_gradients():
            self.gradient_norms = norms_of(terms, self.student.network)
            logger.info("step %d: %s", self.step, compared(terms, self.gradient_norms))
        self._update(loss)
        self._update_critic(student, teacher)
        values = {"loss": loss.item(), **{name: term.item() for name, term in terms.items()}}
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        return values

    @torch.no_grad()
    def teach(self, image: Tensor) -> Outputs | None:
        """Return what the teacher gives for images ``(B, C, *S)``, if there is one."""
        with autocast(self.device, self.teacher_dtype):
            return self.teacher(image) if self.teacher else None

    def _renew_past_self(self) -> None:
        if self.method.past_self and self.teacher and self.step % self.steps_per_epoch == 0:
            self.teacher.network.load_state_dict(self.student.network.state_dict())

    def _measures_gradients(self) -> bool:
        """At the first step, and at the first step after each validation."""
        return self.step % (self.steps_per_epoch * self.settings.validate_every) == 0

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        parallel.join_gradients(self.student.network, self.method)
        if self.settings.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            clip_gradients(self.settings.gradient_clip, self.student.network, self.method)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.student.network)

    def _update_critic(self, student: Outputs, teacher: Outputs | None) -> None:
        if self.critic_optimizer is None:
            return
        loss = self.method.critic_loss(student, teacher)
        if loss is not None:
            self.critic_optimizer.zero_grad(set_to_none=True)
            loss.backward()
            parallel.average_gradients(self.method.critic_parameters())
            self.critic_optimizer.step()

    def _progress(self) -> Progress:
        epoch = self.step // self.steps_per_epoch
        return Progress(epoch, self.settings.epochs, self.step, self.total_steps)

    # one epoch

    def _end_epoch(self) -> None:
        epoch = self.step // self.steps_per_epoch
        row = {"epoch": epoch, "step": self.step, **self.spent.take()}  # without validation
        row["learning_rate"] = self.optimizer.param_groups[0]["lr"]  # its pace is 1
        means = {name: total / self.steps_per_epoch for name, total in self.sums.items()}
        row |= means
        row |= self.method.diagnostics()
        row |= {f"{_NORM}{name}": norm for name, norm in self.gradient_norms.items()}
        if epoch % self.settings.validate_every == 0 or epoch == self.settings.epochs:
            network = self.ema.module if self.ema is not None else self.student.network
            row["validation_dice"] = dice = self.validate(network)
            if dice > self.best.dice:
                self.best = Best(dice, epoch, copy.deepcopy(network.state_dict()))
            logger.info("epoch %d: validation Dice %.4f, %s", epoch, dice, described(means))
        self.rows.append(row)
        self.sums, self.gradient_norms = {}, {}
        self.spent.begin()

    # saving and going on

    def _stateful(self) -> dict[str, Any]:
        parts = {
            "student": self.student.network,
            "method": self.method,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
            "critic_optimizer": self.critic_optimizer,
            "ema": self.ema,
            "past_self": self.teacher.network if self.teacher and self.method.past_self else None,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _state(self) -> dict[str, Any]:
        return {
            "parts": {name: part.state_dict() for name, part in self._stateful().items()},
            "step": self.step,
            "best": vars(self.best),
            "rows": self.rows,
            "sums": self.sums,
            "spent": self.spent.state(),
            "gradient_norms": self.gradient_norms,
            "processes": parallel.world(),
        }

    def _resume(self) -> bool:
        """Go on from a checkpoint; False where there is none."""
        state = parallel.main_first(self.checkpoint.load)
        parallel.check_same(-1 if state is None else state["step"], "the checkpoint's step")
        if state is None:
            return False
        for name, part in self._stateful().items():
            part.load_state_dict(state["parts"][name])
        self.step, self.best = state["step"], Best(**state["best"])
        self.rows, self.sums = state["rows"], state["sums"]
        self.spent.load(state["spent"])
        self.gradient_norms = state["gradient_norms"]
        logger.info("going on after step %d of %d", self.step, self.total_steps)
        parallel.note_change(state.get("processes", 1))
        return True
