"""A step of knowledge distillation against a plain loop, and every method against its floor.

Usage: python bench/kd_step.py [--rounds 5] [--json FILE] [--device cpu] [--cpu-time]
           [--methods all|a,b] [--fast] [--terms]

The networks are a residual U-Net of 12.9 M parameters that teaches one of 0.16 M, one crop of 96³,
14 classes. The *plain loop* is what a careful person writes: float32, no gradients for the
teacher, MONAI's Dice and cross-entropy, KL divergence, AdamW; it has the same malloc setting as
kdpipe. The *floor* of a step is the teacher's forward pass and the student's forward and backward
pass, in the same precision and layout, measured in the same turns.

The last two rows are the worst of a few methods, LOGITS and FEATURES in kd_methods.py. With
--methods, a table of the real steps of these methods and of how often their floor fits in; with
--fast in bfloat16. --terms adds the operations that a method's terms spend most time in.
--cpu-time counts the seconds of the processor, for a machine that others use too.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from kd_methods import FEATURES, LOGITS, method_table, worst
from side_by_side import Row, in_turns, main, ratio, shown
from torch import Tensor, nn

from kdpipe import discover
from kdpipe.engine.device import autocast, channels_innermost, keep_freed_memory
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
        built = module.Method(module.Params(), Context(CLASSES, 3, *taps)).to(self.device)
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
            built.prefit(trainer.teach(self.batch["image"]) for _ in range(2))  # type: ignore
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


def recipes() -> dict[str, Training]:
    """The settings that are compared, all with the same optimiser."""
    return {"fp32": Training(precision="fp32"), "fast": Training(fast=True)}


def rows(rounds: int = 5, device: str = "cpu", cpu_time: bool = False) -> list[Row]:
    """The step, in float32 and `fast`, against the plain loop; methods against their floor."""
    keep_freed_memory()
    clock = time.process_time if cpu_time else time.perf_counter
    scene, settings = Scene(device), recipes()
    ways = {"plain": scene.plain()}
    for name in ("fast", "fp32"):
        ways[name] = scene.distilled(settings[name])
        ways[f"floor {name}"] = scene.floor(settings[name])
    times = in_turns(ways, rounds, clock)
    del ways
    equal, note = agreement(scene), "CPU time" if cpu_time else ""
    work = f"KD step, teacher 12.9 M, student 0.16 M, one crop of {SIDE}³, {CLASSES} classes"
    found = [
        Row(
            "training",
            f"{work}, {name}",
            shown(times[name]),
            f"plain loop, torch {torch.__version__}, float32, same malloc setting",
            shown(times["plain"]),
            ratio(times, name, "plain"),
            target,
            f"floor {shown(times[floor])}, {ratio(times, floor, name):.2f} of it",
            equal if name == "fp32" else "",
            note,
        )
        for name, floor, target in (("fast", "floor fast", 2.0), ("fp32", "floor fp32", None))
    ]
    for what, names, limit in (("logit", LOGITS, 1.1), ("feature", FEATURES, 1.25)):
        found.append(worst(scene, settings["fp32"], what, names, limit, rounds, clock, note))
    return found


def agreement(scene: Scene) -> str:
    """How far the gradients of both loops are apart in float32."""
    trainer = scene.trainer(recipes()["fp32"], "kd")
    trainer.step = 1
    plain = scene.plain()
    trainer.advance(scene.batch)
    plain()
    cells = dict(zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True))  # type: ignore
    theirs = cells["student"].cell_contents
    pairs = zip(trainer.student.network.parameters(), theirs.parameters(), strict=True)
    slopes = [(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None]
    apart = sum(float((a - b).square().sum()) for a, b in slopes)
    apart = (apart / sum(float(b.square().sum()) for _, b in slopes)) ** 0.5
    return f"gradients differ by {apart:.0e} of their norm"


def _main() -> None:
    parser = argparse.ArgumentParser(add_help="--help" in sys.argv, description=__doc__)
    parser.add_argument("--methods", help="names, separated by commas, or all")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--terms", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-time", action="store_true")
    options, rest = parser.parse_known_args()
    if not options.methods:
        sys.argv[1:] = rest
        main(lambda rounds: rows(rounds, options.device, options.cpu_time))
        return
    count = argparse.ArgumentParser()
    count.add_argument("--rounds", type=int, default=5)
    known = [name for name in discover.names("methods") if name != "sum"]
    names = known if options.methods == "all" else options.methods.split(",")
    keep_freed_memory()
    method_table(
        Scene(options.device),
        recipes()["fast" if options.fast else "fp32"],
        names,
        count.parse_args(rest).rounds,
        time.process_time if options.cpu_time else time.perf_counter,
        options.terms,
    )


if __name__ == "__main__":
    _main()
