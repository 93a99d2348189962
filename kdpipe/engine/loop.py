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

from kdpipe.engine.device import autocast, compute_dtype
from kdpipe.engine.energy import Spent
from kdpipe.engine.optim import (
    build_critic_optimizer,
    build_optimizer,
    clip_gradients,
    set_learning_rate,
)
from kdpipe.engine.signals import StopRequest
from kdpipe.engine.state import Checkpoint
from kdpipe.engine.taps import TapRecorder
from kdpipe.errors import Interrupted, TrainingDiverged
from kdpipe.methods.base import Distiller, Outputs, Progress
from kdpipe.progress import ProgressReport
from kdpipe.settings import Training
from kdpipe.terms.segmentation import SEGMENTATION_LOSSES

logger = logging.getLogger(__name__)
_NORM = "gradient_norm_"
Batches = Callable[[int], Iterable[dict[str, Tensor]]]


@dataclass
class Learner:
    """A network with the taps that a method wants recorded."""

    network: nn.Module
    recorder: TapRecorder

    def __call__(self, image: Tensor) -> Outputs:
        """Return logits and recorded features for images ``(B, C, *S)``."""
        logits = self.network(image)
        return Outputs(logits, self.recorder.take())


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
    ):
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = settings.epochs * steps_per_epoch
        self.student, self.teacher, self.method = student, teacher, method
        self.batches, self.validate, self.checkpoint = batches, validate, checkpoint
        self.term_scale = term_scale
        self.segmentation_loss = SEGMENTATION_LOSSES[settings.segmentation_loss]
        self.device = next(student.network.parameters()).device
        self.dtype = compute_dtype(settings.precision, self.device)
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
            Interrupted: after a signal; the state is saved.
            TrainingDiverged: when the loss is not finite.
        """
        if not self._resume():
            self._prefit()
        saved = time.monotonic()
        self.spent.begin()
        report = ProgressReport("training, step", self.total_steps, self.step)
        with StopRequest() as stop, report:
            for batch in self.batches(self.step):
                values = self._train_step(batch)
                self.step += 1
                report.advance(note=f"loss {values['loss']:.4f}")
                if self.step % self.steps_per_epoch == 0:
                    self._end_epoch()
                if stop.received or time.monotonic() - saved >= self.checkpoint.every_seconds:
                    self.spent.add()
                    self.checkpoint.save(self._state())
                    saved = time.monotonic()
                if stop.received and self.step < self.total_steps:
                    raise Interrupted(
                        f"stopped by {stop.received} after step {self.step} of {self.total_steps}; "
                        f"the state is in {self.checkpoint.folder}, run the same command to go on"
                    )
        return self.best

    def _prefit(self) -> None:
        """Let the method train its own parts on the teacher's outputs."""
        steps = min(self.method.prefit_steps(), self.total_steps)
        if steps:
            logger.info("pre-fitting the method on %d batches", steps)
            images = (batch["image"].to(self.device) for batch in self.batches(0))
            outputs = map(self._teach, itertools.islice(images, steps))
            self.method.prefit(output for output in outputs if output is not None)

    # one step

    def _train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        set_learning_rate(self.optimizer, self.settings, self.step / self.total_steps)
        self._renew_past_self()
        self.student.network.train()
        self.method.train()
        image, label = (batch[key].to(self.device, non_blocking=True) for key in ("image", "label"))
        with autocast(self.device, self.dtype):
            student, teacher = self.student(image), self._teach(image)
            terms = {"segmentation": self.segmentation_loss(student.logits, label)}
            for name, term in self.method(student, teacher, label, self._progress()).items():
                terms[name] = self.term_scale * term
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            found = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
            raise TrainingDiverged(
                f"the loss is not finite at step {self.step} ({found}); lower the learning rate "
                "or the method's weight, or train in fp32"
            )
        if self._measures_gradients():
            self.gradient_norms = self._norms_of(terms)
            logger.info("step %d: %s", self.step, _compared(terms, self.gradient_norms))
        self._update(loss)
        self._update_critic(student, teacher)
        values = {"loss": loss.item(), **{name: term.item() for name, term in terms.items()}}
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        return values

    @torch.no_grad()
    def _teach(self, image: Tensor) -> Outputs | None:
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
            self.critic_optimizer.step()

    def _norms_of(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """L2 norm of each term's gradient on the student's parameters."""
        weights = [p for p in self.student.network.parameters() if p.requires_grad]
        norms = {}
        for name, term in terms.items():
            gradients = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
            found = [gradient.norm() for gradient in gradients if gradient is not None]
            norms[name] = torch.stack(found).norm().item() if found else 0.0
        return norms

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
            logger.info("epoch %d: validation Dice %.4f, %s", epoch, dice, _described(means))
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
        }

    def _resume(self) -> bool:
        """Go on from a checkpoint; False where there is none."""
        state = self.checkpoint.load()
        if state is None:
            return False
        for name, part in self._stateful().items():
            part.load_state_dict(state["parts"][name])
        self.step, self.best = state["step"], Best(**state["best"])
        self.rows, self.sums = state["rows"], state["sums"]
        self.spent.load(state["spent"])
        self.gradient_norms = state["gradient_norms"]
        logger.info("going on after step %d of %d", self.step, self.total_steps)
        return True


def _compared(terms: dict[str, Tensor], norms: dict[str, float]) -> str:
    """Each term with the norm of its gradient, and how many times that of the segmentation loss."""
    against = norms["segmentation"]
    shown = []
    for name, term in terms.items():
        text = f"{name} {term.item():.4g} (gradient {norms[name]:.3g}"
        times = f", {norms[name] / against:.2g} times" if name != "segmentation" and against else ""
        shown.append(f"{text}{times})")
    return ", ".join(shown)


def _described(means: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in means.items())
