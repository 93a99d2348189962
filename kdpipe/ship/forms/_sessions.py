"""Shared by the forms that onnxruntime runs: a session as a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdpipe.errors import DataError
from kdpipe.infer.description import KEY, Description
from kdpipe.infer.window import Network
from kdpipe.ship.forms._common import description_in, no_packages

_ERRORS_ONLY = 3


def read_session(path: Path, device: torch.device, form: str) -> tuple[Network, Description]:
    """Return the network in an ONNX file and its description.

    It has as many threads as torch has now. It runs on the GPU where `device` is one and the
    installed onnxruntime is made for it, else on the CPU; its logits are on the windows' device.

    Raises:
        ConfigError: onnxruntime is not installed.
        DataError: the file is damaged, has no description, or does not do what that says.
    """
    try:
        import onnxruntime
    except ImportError:
        raise no_packages(form) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    try:
        session = onnxruntime.InferenceSession(
            path, options, providers=_providers(onnxruntime.get_available_providers(), device)
        )
    except Exception as error:  # its errors have no class in common but this
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{path}: onnxruntime cannot read it ({reason}); write it with 'kdpipe export'"
        ) from None
    description = description_in(session.get_modelmeta().custom_metadata_map.get(KEY), path)
    _check_sizes(session, description, path)
    name = session.get_inputs()[0].name

    def run(windows: Tensor) -> Tensor:
        found = session.run(None, {name: windows.float().cpu().numpy()})[0]
        return torch.from_numpy(found).to(windows.device)

    return run, description


def _providers(available: list[str], device: torch.device) -> list[Any]:
    on_gpu = device.type == "cuda" and "CUDAExecutionProvider" in available
    number = {"device_id": device.index or 0}
    return [*([("CUDAExecutionProvider", number)] if on_gpu else []), "CPUExecutionProvider"]


def _check_sizes(session: Any, description: Description, path: Path) -> None:
    takes = [list(value.shape) for value in session.get_inputs()]
    gives = [list(value.shape) for value in session.get_outputs()]
    sides = list(description.patch)
    wanted = [*description.window[1:]]
    made = [description.network["out_channels"], *sides]
    if [shape[1:] for shape in takes] != [wanted] or [shape[1:] for shape in gives] != [made]:
        raise DataError(
            f"{path}: it maps {takes} to {gives}, by its description windows (batch, "
            f"{', '.join(map(str, wanted))}) to (batch, {', '.join(map(str, made))}); "
            "write it with 'kdpipe export'"
        )
