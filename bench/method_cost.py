"""What each method of the catalogue costs at the real size: memory of one tensor, and time.

Usage: python bench/method_cost.py [--side 96] [--batch 4] [--classes 14] [--methods a,b]
    [--student unet_tiny] [--teacher segresnet] [--rounds 3] [--device cpu]

Prints a markdown table. *Largest tensor* is the largest single allocation of a training step's
terms, forward and backward, next to the operation that made it; scratch memory inside an operation
is not seen. *Times kd* is the time of forward and backward against the method `kd`: the two take
turns, so that a busy machine slows both, and the medians are compared. Student and teacher are
random tensors with the shapes that the two networks give.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdpipe import discover
from kdpipe.engine.taps import probe
from kdpipe.errors import ConfigError
from kdpipe.methods.base import Context, Distiller, Outputs, Progress, TapSpec
from kdpipe.nets.base import build_network, network_stages

HALFWAY = Progress(epoch=50, epochs=100, step=500, steps=1000)  # all schedules are under way
LEFT_OUT = {"none", "sum"}


class Allocations(TorchDispatchMode):
    """Remember the largest storage that an operation made.

    Args:
        known: tensors that were there before.
    """

    def __init__(self, known: Sequence[Tensor]):
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.largest, self.maker = 0, ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and look at what it returns."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage.nbytes() > self.largest and storage.data_ptr() not in self.known:
                shape = "×".join(map(str, tensor.shape))
                self.largest, self.maker = storage.nbytes(), f"{func.overloadpacket} {shape}"
        return result


@dataclass
class Scene:
    """Everything that the methods share: the networks' facts, the logits and the label."""

    context: Context
    size: tuple[int, ...]
    student: Tensor
    teacher: Tensor
    target: Tensor

    def outputs(self, taps: Sequence[str], specs: dict[str, TapSpec], logits: Tensor) -> Outputs:
        """Random features for the named taps; their gradient is wanted as the logits' is."""
        features = {}
        for name in taps:
            sides = [
                round(side / step) for side, step in zip(self.size, specs[name].stride, strict=True)
            ]
            shape = (len(logits), specs[name].channels, *sides)
            drawn = torch.randn(shape, device=logits.device, requires_grad=logits.requires_grad)
            features[name] = logits if name == "logits" else drawn
        return Outputs(logits, features)


def taps_of(network: str, classes: int, size: Sequence[int]) -> dict[str, TapSpec]:
    """The taps of a network with its default parameters, for an image of one channel."""
    built = build_network(network, {}, 1, classes, len(size))
    return probe(built, network_stages(network, {}), (1, 1, *size))


def scene(options: argparse.Namespace) -> Scene:
    """Logits and labels in blocks of a quarter of the side, and what the networks would record."""
    size = (options.side,) * options.dims
    context = Context(
        options.classes,
        options.dims,
        taps_of(options.student, options.classes, size),
        taps_of(options.teacher, options.classes, size),
    )
    shape = (options.batch, options.classes, *size)
    blocks = torch.randint(options.classes, (options.batch, 1, *(4,) * options.dims))
    target = torch.nn.functional.interpolate(blocks.float(), size=size).long().squeeze(1)
    return Scene(
        context,
        size,
        torch.randn(shape, device=options.device, requires_grad=True),
        torch.randn(shape, device=options.device),
        target.to(options.device),
    )


class Step:
    """One method with its inputs; a call is the terms' part of a training step."""

    def __init__(self, name: str, where: Scene):
        module = discover.load("methods", name)
        context = where.context
        if discover.attribute("methods", name, "past_self", False):
            context = dataclasses.replace(context, teacher=context.student)
        self.method: Distiller = module.Method(module.Params(), context)
        self.method.to(where.student.device)
        self.student = where.outputs(
            self.method.student_taps(), dict(context.student), where.student
        )
        self.teacher: Outputs | None = None
        if self.method.needs_teacher or self.method.past_self:
            self.teacher = where.outputs(
                self.method.teacher_taps(), dict(context.teacher), where.teacher
            )
        self.target = where.target
        if self.method.prefit_steps():
            self.method.prefit(self.teacher for _ in range(2) if self.teacher)
        for _ in range(2):
            self()  # fills memory banks, and torch's caches

    def tensors(self) -> list[Tensor]:
        """All that is there before a step."""
        sides = [side for side in (self.student, self.teacher) if side is not None]
        found = [tensor for side in sides for tensor in (side.logits, *side.features.values())]
        return [*found, self.target, *self.method.parameters(), *self.method.buffers()]

    def __call__(self) -> float:
        """Forward and backward of the terms and of the adversary; return the seconds."""
        started = _now(self.target.device)
        terms = self.method(self.student, self.teacher, self.target, HALFWAY)
        torch.stack(list(terms.values())).sum().backward()
        critic = self.method.critic_loss(self.student, self.teacher)
        if critic is not None:
            critic.backward()
        seconds = _now(self.target.device) - started
        for tensor in self.tensors():
            tensor.grad = None
        return seconds


def measure(name: str, where: Scene, kd: Step, rounds: int) -> list[str]:
    """One row of the table."""
    step = Step(name, where)
    with Allocations(step.tensors()) as allocations:
        step()
    times = [(step(), kd()) for _ in range(rounds)]
    ours, base = (statistics.median(column) for column in zip(*times, strict=True))
    return [
        name,
        f"{allocations.largest / 2**20:.1f}",
        f"{1e3 * ours:.0f}",
        f"{ours / base:.2f}",
        allocations.maker,
    ]


def main() -> None:
    """Print the table, a row as soon as it is measured."""
    options = _options()
    torch.manual_seed(0)
    where = scene(options)
    logits = where.student.numel() * where.student.element_size() / 2**20
    print(
        f"{options.student} taught by {options.teacher}, {options.device}, torch "
        f"{torch.__version__}, {torch.get_num_threads()} of {os.cpu_count()} cores, logits "
        f"{'×'.join(map(str, where.student.shape))} ({logits:.0f} MiB), median of "
        f"{options.rounds} rounds\n"
    )
    print("| method | largest tensor, MiB | ms | times kd | largest tensor is made by |")
    print("|---|---:|---:|---:|---|", flush=True)
    kd = Step("kd", where)
    for name in options.methods:
        try:
            row = measure(name, where, kd, options.rounds)
        except ConfigError as error:
            row = [name, "", "", "", str(error)]
        print("| " + " | ".join(row) + " |", flush=True)
        gc.collect()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--side", type=int, default=96, help="voxels a side of the patch")
    parser.add_argument("--dims", type=int, default=3, choices=(2, 3))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--classes", type=int, default=14, help="with the background")
    parser.add_argument("--methods", help="names, separated by commas; all if not given")
    parser.add_argument("--student", default="unet_tiny")
    parser.add_argument("--teacher", default="segresnet")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    known = [name for name in discover.names("methods") if name not in LEFT_OUT]
    options.methods = options.methods.split(",") if options.methods else known
    if unknown := set(options.methods) - set(known):
        parser.error(f"unknown methods {sorted(unknown)}; there are {', '.join(known)}")
    return options


if __name__ == "__main__":
    main()
