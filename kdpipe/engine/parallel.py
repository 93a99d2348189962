"""One training in several processes, one a GPU, as ``torchrun`` starts them.

Each process runs the networks on its share of a step's crops. What they give is gathered, so that
every process computes the loss of the whole batch, and with it the same method: batch relations,
memory banks, adapters, adversaries and random draws are those of one process. Gradients of the
student's parameters are summed over the shares. So all processes hold the same state at all
times, and one checkpoint is that of all.

`DistributedDataParallel` is not used: a method's loss reaches the student through its features as
well as its output, and some networks have parameters that a step does not use; both are cases
that it must be told of, and it would average losses that are no means over crops.

In one process everything here does nothing, at no cost and without `torch.distributed`.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdpipe.errors import ConfigError, DataError

logger = logging.getLogger(__name__)
_PATIENCE = datetime.timedelta(hours=1)  # of a process that waits: a case is validated meanwhile
LONGEST_WAIT = 3000.0  # seconds, of the main process for something; the others have patience
_DEATH_OF_PARENT = 1  # PR_SET_PDEATHSIG
Value = TypeVar("Value")


def world() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return dist.get_rank() if world() > 1 else 0


def is_main() -> bool:
    """Whether this process writes files and shows progress."""
    return rank() == 0


def started_together() -> bool:
    """Whether ``torchrun`` has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Join the processes that ``torchrun`` has started; nothing for one that is alone.

    Each takes the GPU of its local rank. On a machine without GPUs they work on the CPU.

    Raises:
        ConfigError: there are fewer GPUs than processes.
    """
    if not started_together():
        yield
        return
    _end_with_parent()
    backend = "gloo"
    if torch.cuda.is_available():
        place, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= there:
            raise ConfigError(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes were started and {there} GPUs are "
                "visible: start one process a GPU"
            )
        torch.cuda.set_device(place)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=_PATIENCE)
    if not is_main():
        logging.disable(logging.INFO)
    try:
        yield
    finally:
        dist.destroy_process_group()


def check_shares(batch_size: int) -> None:
    """Raise ConfigError unless the crops of a step can be shared out equally."""
    if batch_size % world():
        raise ConfigError(
            f"a batch_size of {batch_size} cannot be shared by {world()} processes: take a "
            "multiple, or as many GPUs as divide it (resources.train.gpu)"
        )


def devices(mine: torch.device) -> list[torch.device]:
    """Return the devices of all processes, as this one sees them."""
    if mine.type == "cuda" and world() > 1:
        return [torch.device("cuda", number) for number in range(world())]
    return [mine]


def note_change(before: int) -> None:
    """Say that a checkpoint comes from another number of processes: it is continued all the same.

    The batch is that of all, so only the order of additions, and dropout, is another.
    """
    if before != world():
        logger.info(
            "the checkpoint is of %d process(es), this training has %d: it goes on with the same "
            "batches, equal within rounding, not to the bit",
            before,
            world(),
        )


# what passes between processes


def gather(tensor: Tensor) -> Tensor:
    """Return the tensors ``(B, ...)`` of all processes one after the other, ``(world * B, ...)``.

    Gradients flow back to this process's own part: those of parameters are to be summed.
    """
    if world() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor)  # type: ignore[no-untyped-call]
    return gathered


def summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the sum over all processes of each tensor; they must be of one device."""
    if world() == 1 or not tensors:
        return list(tensors)
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def join_gradients(student: nn.Module, method: nn.Module) -> None:
    """Sum the student's gradients, each process has those of its crops, and average the method's.

    A method's are the same everywhere already, but for the order in which a GPU adds.
    """
    _replace_gradients(student.parameters(), 1.0)
    average_gradients(method.parameters())


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Make gradients of the whole batch the same to the bit in all processes."""
    _replace_gradients(parameters, 1.0 / world())


def in_turn(mine: Sequence[Value]) -> list[Value]:
    """Return the values of all processes: what ``cases[rank::world]`` gave, in order of cases."""
    if world() == 1:
        return list(mine)
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, list(mine))
    longest = max(map(len, parts))
    return [part[place] for place in range(longest) for part in parts if place < len(part)]


def from_main(function: Callable[[], Value]) -> Value:
    """Return what `function` gives in the main process, or raise what it raises there."""
    if world() == 1:
        return function()
    answer: list[Any] = [None, None]
    if is_main():
        try:
            answer = [function(), None]
        except Exception as error:
            answer = [None, error]
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    value: Value = answer[0]
    return value


@contextlib.contextmanager
def in_main(context: contextlib.AbstractContextManager[object]) -> Iterator[None]:
    """Hold `context` in the main process; if it cannot be entered there, nobody goes on."""
    with contextlib.ExitStack() as held:

        def enter() -> None:
            held.enter_context(context)

        from_main(enter)
        yield


def main_first(function: Callable[[], Value]) -> Value:
    """Return what `function` gives here; the others begin when the main process is done."""
    if is_main():
        value = function()
        barrier()
        return value
    barrier()
    return function()


def check_same(value: int, what: str) -> None:
    """Raise DataError unless all processes have the same number."""
    values = in_turn([value])
    if len(set(values)) > 1:
        raise DataError(
            f"the processes have read different values of {what}: {values}; all must see the "
            "same files"
        )


def agreed_stop(received: str | None) -> str | None:
    """Return the name of a signal that any process has received, so that all stop together."""
    if world() == 1:
        return received
    number = torch.tensor(signal.Signals[received].value if received else 0)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return signal.Signals(int(number)).name if number else None


def barrier() -> None:
    """Wait until all processes are here."""
    if world() > 1:
        dist.all_reduce(torch.zeros(1))  # on the CPU: works without a GPU, and beside NCCL


# networks


@contextlib.contextmanager
def own_draws(step: int) -> Iterator[None]:
    """Random draws of this process alone, as dropout needs them, without moving those of all.

    They are a function of the training's seed, `step` and the process.
    """
    if world() == 1:
        yield
        return
    seed = np.random.SeedSequence([torch.initial_seed(), step, rank()])
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
        yield


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        mine = tensor.contiguous()
        parts = [torch.empty_like(mine) for _ in range(world())]
        dist.all_gather(parts, mine)
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].chunk(world())[rank()]


def _replace_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """What is unused is so in all processes, as they compute the same loss."""
    if world() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for gradient, total in zip(gradients, summed(gradients), strict=True):
        gradient.copy_(total).mul_(factor)


def _end_with_parent() -> None:
    """Ask Linux for a SIGTERM when the launcher dies: with kill -9 it can tell nobody."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_DEATH_OF_PARENT, signal.SIGTERM)
