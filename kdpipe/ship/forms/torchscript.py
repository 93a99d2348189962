"""TorchScript (.ts), for programs in C++ or without kdpipe: the network traced on one window.

The description is one of its `_extra_files`. PyTorch calls TorchScript deprecated and goes on
reading it; `program` is its successor.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdpipe.checksums import check_archive
from kdpipe.errors import DataError
from kdpipe.infer.description import KEY, Description
from kdpipe.infer.model import TrainedModel
from kdpipe.infer.window import Network
from kdpipe.ship.forms._common import (
    conversion,
    copy_without_sources,
    description_in,
    example,
)

FILE = "model.ts"


def write(
    trained: TrainedModel, description: Description, path: Path, windows: Sequence[np.ndarray]
) -> None:
    """Write the network as TorchScript; see `kdpipe.ship.forms`.

    Raises:
        ConfigError: the network cannot be converted.
    """
    with conversion("torchscript", description):
        program = torch.jit.trace(trained.network, example(description), check_trace=False)
        stream = io.BytesIO()
        torch.jit.save(program, stream, _extra_files={KEY: description.to_json()})
        copy_without_sources(stream, path)


def read(path: Path, device: torch.device) -> tuple[Network, Description]:
    """Return the network, run by torch, and its description; see `kdpipe.ship.forms`."""
    extra: dict[str, Any] = {KEY: ""}
    try:
        check_archive(path)
        with path.open("rb") as stream:
            program = torch.jit.load(stream, map_location=device, _extra_files=extra)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{path}: no TorchScript file that this PyTorch reads ({reason}); write it with "
            "'kdpipe export'"
        ) from None
    found = extra[KEY]
    text = found.decode("utf-8", "replace") if isinstance(found, bytes) else found
    return program.eval(), description_in(text, path)
