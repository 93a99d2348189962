"""Networks, a batch and ways to make a step, for the benches of the distillation step."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe import discover
from kdpipe.engine.device import autocast, channels_innermost
from kdpipe.engine.learner import Learner
from kdpipe.engine.loop import Trainer
from kdpipe.engine.state import Checkpoint
from kdpipe.engine.taps import TapRecorder, probe
from kdpipe.methods.base import Context
from kdpipe.nets.base import build_network, network_stages
from kdpipe.settings import Training

CLASSES, SIDE = 14, 96
Side = tuple[str, dict[str, Any]]
TEACHER: Side = ("res_unet", {"channels": (32, 64, 128, 256, 320), "strides": (2, 2, 2, 2)})
STUDENT: Side = ("res_unet", {"channels": (8, 16, 32, 64), "residual_units": 1})
WARM = 100  # the step that is timed is one in the middle of an epoch


class Scene:
    """The two networks, a batch, and the ways to make a step."""

    def __init__(self, device: str = "cpu", batch: int = 1, side: int = SIDE):
        self.device = torch.device(device)
        torch.manual_seed(0)
        self.teacher, self.student = (
            build_network(name, params, 1, CLASSES, 3).to(self.device)
            for name, params in (TEACHER, STUDENT)
        )
        self.teacher.eval().requires_grad_(False)
        image = torch.randn(batch, 1, side, side, side)
        blocks = torch.randint(CLASSES, (batch, 1, 4, 4, 4)).float()
        label = F.interpolate(blocks, size=(side,) * 3).long().squeeze(1)
        self.batch = {"image": image.to(self.device), "label": label.to(self.device)}

    def done(self) -> None:
        """Wait for what was started."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def plain(self) -> Callable[[], object]:
        """The loop of a careful person, with the optimiser and the clipping that kdpipe has."""
        from monai.losses.dice import DiceCELoss

        student, teacher = copy.deepcopy(self.student), self.teacher
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=1e-4)
        segmentation = DiceCELoss(to_onehot_y=True, softmax=True)

        def step() -> None:
            image, label = self.batch["image"], self.batch["label"]
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                taught = teacher(image)
            logits = student(image)
            loss = segmentation(logits, label[:, None]) + plain_kl(logits, taught)
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 12.0)
            optimizer.step()
            loss.item()
            self.done()

        return step

    def floor(self, settings: Training, teacher: nn.Module | None = None) -> Callable[[], object]:
        """The forward pass of a teacher, by default ours, and a student's forward and backward.

        With a student that has no teacher, ``nn.Identity()`` stands for it.
        """
        student, teacher = copy.deepcopy(self.student), copy.deepcopy(teacher or self.teacher)
        slope: Tensor | None = None
        dtype = torch.bfloat16 if settings.precision == "bf16" else None
        image = self.batch["image"]
        learners = [
            Learner(network, TapRecorder(network, {}, ())) for network in (student, teacher)
        ]
        for learner in learners:
            learner.speed_up(settings)
        if settings.channels_last:
            image = channels_innermost(image)
        forward = [learner.compiled or learner.network for learner in learners]

        def step() -> None:
            nonlocal slope
            with autocast(self.device, dtype):
                with torch.no_grad():
                    forward[1](image)
                logits = forward[0](image)
            slope = torch.randn_like(logits) if slope is None else slope
            logits.backward(slope)
            student.zero_grad(set_to_none=True)
            self.done()

        return step

    def trainer(self, settings: Training, method: str) -> Trainer:
        """kdpipe's own, as a training has it; the validation is never reached."""
        student, frozen = copy.deepcopy(self.student), copy.deepcopy(self.teacher)
        shape = tuple(self.batch["image"].shape)
        stages = [network_stages(*side) for side in (STUDENT, TEACHER)]
        module = discover.load("methods", method)
        taps = [probe(net, s, shape) for net, s in zip((student, frozen), stages, strict=True)]
        if module.Method.past_self:
            frozen, stages[1], taps[1] = copy.deepcopy(student), stages[0], taps[0]
            frozen.eval().requires_grad_(False)
        context = Context(CLASSES, 3, taps[0], taps[1])
        built = module.Method(module.Params(), context).to(self.device)
        ours = Learner(student, TapRecorder(student, stages[0], built.student_taps()))
        theirs = None
        if built.needs_teacher or built.past_self:
            theirs = Learner(frozen, TapRecorder(frozen, stages[1], built.teacher_taps()))
        for learner in (ours, theirs):
            if learner is not None:
                learner.speed_up(settings)
        folder = Path(tempfile.gettempdir())
        trainer = Trainer(
            settings, 10 * WARM, ours, theirs, built, lambda start: (), lambda network: 0.0,
            Checkpoint(folder, ""),
        )  # fmt: skip
        trainer.step = WARM
        if built.prefit_steps():
            built.prefit(trainer.teach(self.batch["image"]) for _ in range(2))
        return trainer

    def distilled(self, settings: Training, method: str = "kd") -> Callable[[], object]:
        """A step of kdpipe's trainer."""
        trainer = self.trainer(settings, method)

        def step() -> None:
            trainer.advance(self.batch)
            self.done()

        return step


def plain_kl(student: Tensor, teacher: Tensor, tau: float = 4.0) -> Tensor:
    """What the tutorials have: mean over voxels, times tau²."""
    log_p, q = F.log_softmax(student / tau, 1), F.softmax(teacher / tau, 1)
    return F.kl_div(log_p, q, reduction="none").sum(1).mean() * tau**2
