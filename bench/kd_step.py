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
import sys
import time

import torch
from kd_methods import FEATURES, LOGITS, method_table, worst
from kd_scene import CLASSES, SIDE, Scene
from side_by_side import Row, in_turns, main, ratio, shown

from kdpipe import discover
from kdpipe.engine.device import keep_freed_memory
from kdpipe.settings import Training


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
    cells = dict(zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True))
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
