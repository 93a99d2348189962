"""A trained network as a torch.export program (.pt2), of any architecture and project.

The program keeps the module paths of the network that it was exported from, so ``taps`` names
modules as in the original. Export it in evaluation mode, with sizes that may vary::

    sizes = {axis: torch.export.Dim.AUTO for axis in (0, 2, 3, 4)}
    program = torch.export.export(network.eval(), (image,), dynamic_shapes=(sizes,))
    torch.export.save(program, "teacher.pt2")

A program with a fixed batch is run in parts of it, for its logits only.

Source: PyTorch, torch.export. Stages: ``logits``, and those of ``taps``.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx.node import map_aggregate

from kdpipe.checksums import check_archive
from kdpipe.discover import Parameters
from kdpipe.errors import ConfigError, DataError
from kdpipe.nets._foreign import Foreign, check_channels, check_taps, model_path, places

TRAINED = True
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_PICKLED = "opaque_obj_"  # how members are called that PyTorch unpickles with all they can do


class Params(Parameters):
    """Parameters of the network."""

    path: str = Field(description="the file that torch.export.save wrote")
    taps: dict[str, str] = Field({}, description="stage -> module path, for feature methods")
    divisor: int | tuple[int, ...] = Field(1, description="patch sides are multiples of it")


class ExportedNetwork(Foreign):
    """A program whose graph follows its weights to another device."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExportedNetwork:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        tensor = next(chain(self.parameters(), self.buffers()), None)
        if tensor is not None:
            for module in self.modules():
                graph = getattr(module, "graph", None)
                if isinstance(graph, fx.Graph):
                    _move(graph, tensor.device)
        return self


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    file = model_path("exported", params.path)
    try:
        program = load_program(file)
    except ValueError as error:
        raise DataError(
            f"{file} is no torch.export program that this PyTorch reads ({error}); write it with "
            "torch.export.save, or take the network 'torchscript' for a TorchScript file"
        ) from None
    who = f"network 'exported' ({file})"
    _check_mode(who, program)
    shape = _fixed_shape(who, program)
    if len(shape) != spatial_dims + 2:
        raise ConfigError(
            f"{who} is for {len(shape) - 2}D, the patch has {spatial_dims} sides: take another "
            "network, or a preset whose patch suits it"
        )
    if shape[1] is not None:
        check_channels(who, "image channels", shape[1], in_channels)
    if params.taps and shape[0] is not None:
        raise ConfigError(
            f"{who} was exported for batches of {shape[0]}, which taps cannot follow: export it "
            "with dynamic_shapes for axis 0"
        )
    network = torch.export.unflatten(program)
    check_taps(who, network, params.taps)
    return ExportedNetwork(network, out_channels, shape=shape, needs_values=True)


def load_program(file: Path, extra_files: dict[str, Any] | None = None) -> ExportedProgram:
    """Read what torch.export.save wrote; no code of a pickle in it is run.

    Args:
        file: to read.
        extra_files: names in it, which get their content, if they are there.

    Raises:
        ValueError: the file is damaged, of another kind, or holds a pickled object of Python.
    """
    try:
        check_archive(file)
        with _no_code(file):
            return torch.export.load(file, extra_files=extra_files)
    except Exception as error:  # zip, JSON and unpickling errors alike
        raise ValueError(str(error).partition("\n")[0]) from None


@contextmanager
def _no_code(file: Path) -> Iterator[None]:
    """Let PyTorch read tensors and plain values only; else it runs the code of a pickle in `file`.

    Raises:
        ValueError: the file holds a pickled object of Python.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(_PICKLED in name for name in archive.namelist()):
                raise ValueError("it holds a pickled object, whose code would run")
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        del os.environ[_FORCE]
        if before is not None:
            os.environ[_FORCE] = before


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    return places(params.taps)


def divisor(params: Params) -> int | tuple[int, ...]:
    """Return the number that patch sides are multiples of."""
    return params.divisor


def _fixed_shape(who: str, program: ExportedProgram) -> list[int | None]:
    """Return the program's input ``(B, C, *S)``, None for a size that may vary."""
    names = program.graph_signature.user_inputs
    nodes = [node for node in program.graph.nodes if node.name in names]
    values = [node.meta.get("val") for node in nodes]
    if len(values) != 1 or not isinstance(values[0], Tensor):
        raise ConfigError(f"{who} takes {len(values)} inputs: export a network that takes an image")
    return [side if isinstance(side, int) else None for side in values[0].shape]


def _check_mode(who: str, program: ExportedProgram) -> None:
    """Raise ConfigError where batch norm or dropout was exported as it acts in training."""
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None:
            continue
        names = (argument.name for argument in schema.arguments)
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
        if given.get("training") is True or given.get("train") is True:
            raise ConfigError(
                f"{who}: {schema.name} was exported in training mode; call network.eval() before "
                "torch.export.export"
            )


def _move(graph: fx.Graph, device: torch.device) -> None:
    """Let tensors that the graph creates or moves be on `device`."""

    def moved(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    for node in graph.nodes:
        if node.op == "call_function":
            node.args = map_aggregate(node.args, moved)
            node.kwargs = map_aggregate(node.kwargs, moved)
