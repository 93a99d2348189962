"""A torch.export program (.pt2): the network's graph and weights, for PyTorch without kdpipe.

The description is one of its `extra_files`. A program knows the device that it was made on;
`read` moves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from kdpipe.errors import DataError
from kdpipe.infer.description import KEY, Description
from kdpipe.infer.model import TrainedModel
from kdpipe.infer.window import Network
from kdpipe.nets.exported import load_program
from kdpipe.ship.forms._common import conversion, description_in, example

FILE = "model.pt2"


def write(
    trained: TrainedModel, description: Description, path: Path, windows: Sequence[np.ndarray]
) -> None:
    """Write the network as a torch.export program; see `kdpipe.ship.forms`.

    Raises:
        ConfigError: the network cannot be converted.
    """
    with conversion("program", description):
        program = torch.export.export(
            trained.network,
            (example(description),),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
        _forget_sources(program)
        program.example_inputs = None  # noise, as large as two windows
        torch.export.save(program, path, extra_files={KEY: description.to_json()})


def read(path: Path, device: torch.device) -> tuple[Network, Description]:
    """Return the network, run by torch, and its description; see `kdpipe.ship.forms`."""
    extra: dict[str, Any] = {KEY: ""}
    try:
        program = load_program(path, extra)
    except ValueError as error:
        raise DataError(
            f"{path}: no torch.export program that this PyTorch reads ({error}); write it with "
            "'kdpipe export'"
        ) from None
    description = description_in(extra[KEY], path)
    if device.type != "cpu":
        program = move_to_device_pass(program, device)
    return program.module(), description


def _forget_sources(program: ExportedProgram) -> None:
    """Remove the places in source files that each operation came from, which name folders here."""
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            node.meta.pop("stack_trace", None)
