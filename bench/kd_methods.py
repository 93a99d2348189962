"""The steps of methods against their floors, for kd_step.py."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from kd_scene import Scene
from side_by_side import Clock, Row, in_turns, ratio, shown

from kdpipe.engine.device import autocast
from kdpipe.engine.loop import Trainer
from kdpipe.errors import ConfigError
from kdpipe.methods.base import Outputs
from kdpipe.settings import Training

#: The methods of the rows: the dearest of those whose terms fit into the limit or nearly so, and
#: the plainest. Others are above it by what they are, and would hide all else: sbd (distance
#: fields), ft (convolutions of its own), and acw_skd, byot, dual_sd, frskd and uskd (heads of
#: their own). `--methods all` has them.
LOGITS = ("kd", "ctkd", "dkd", "nkd", "dist", "cpkd")
FEATURES = ("fitnet", "at", "cirkd", "ifvd", "cakd", "hlfd", "acf_bckd")


def worst(
    scene: Scene,
    settings: Training,
    what: str,
    names: Sequence[str],
    limit: float,
    rounds: int,
    clock: Clock,
    note: str,
) -> Row:
    """The row of the method whose step is longest, with its floor as the peer."""
    ways = {name: scene.distilled(settings, name) for name in names}
    times = in_turns(ways | {"floor": scene.floor(settings)}, rounds, clock)
    over = {name: ratio(times, "floor", name) for name in names}
    name = max(over, key=over.__getitem__)
    return Row(
        "training",
        f"worst {what} method / floor: {name}",
        shown(times[name]),
        "teacher forward, student forward and backward, float32",
        shown(times["floor"]),
        ratio(times, name, "floor"),
        1 / limit,
        f"at most {limit} of the floor",
        "",
        "; ".join(
            [", ".join(f"{n} {value:.2f}" for n, value in over.items()), *([note] if note else [])]
        ),
    )


def method_table(
    scene: Scene,
    settings: Training,
    names: Sequence[str],
    rounds: int,
    clock: Clock,
    terms: bool,
) -> None:
    """Print a row a method, as soon as it is measured: its step, its floor, and their ratio.

    The floor has the method's own teacher: none, or a past self of the student.
    """
    print("| method | kind | step | floor | step / floor | most time in |")
    print("|---|---|---:|---:|---:|---|", flush=True)
    for name in names:
        try:
            step, trainer = scene.distilled(settings, name), scene.trainer(settings, name)
        except ConfigError as error:
            print(f"| {name} | | | | | {error} |", flush=True)
            continue
        teacher = trainer.teacher.network if trainer.teacher else torch.nn.Identity()
        floor = scene.floor(settings, teacher)
        times = in_turns({"step": step, "floor": floor}, rounds, clock)
        over = statistics.median(a / b for a, b in zip(times["step"], times["floor"], strict=True))
        told = costly(scene, trainer) if terms else ""
        print(
            f"| {name} | {kind(trainer)} | {shown(times['step'])} "
            f"| {shown(times['floor'])} | {over:.2f} | {told} |",
            flush=True,
        )


def kind(trainer: Trainer) -> str:
    """What a method compares: logits alone, or features."""
    recorded = (
        *trainer.student.recorder.names,
        *getattr(trainer.teacher, "recorder", trainer.student.recorder).names,
    )
    own = "" if trainer.teacher else ", no teacher"
    return ("features" if set(recorded) - {"logits"} else "logits") + own


def costly(scene: Scene, trainer: Trainer) -> str:
    """The three operations in which the terms of a method spend most time, forward and backward."""
    image, label = scene.batch["image"], scene.batch["label"]
    with autocast(scene.device, trainer.dtype):
        student = trainer.student(image).map(lambda tensor: tensor.detach().requires_grad_())
    teacher: Outputs | None = trainer.teach(image)

    def terms() -> None:
        found = trainer.method(student, teacher, label, trainer._progress())
        torch.stack(
            [trainer.segmentation_loss(student.logits, label), *found.values()]
        ).sum().backward()

    terms()
    with torch.profiler.profile() as profile:
        terms()
    averages = sorted(profile.key_averages(), key=lambda e: -e.self_cpu_time_total)[:3]
    return ", ".join(
        f"{e.key.removeprefix('aten::')} {e.self_cpu_time_total / 1e3:.0f} ms" for e in averages
    )
