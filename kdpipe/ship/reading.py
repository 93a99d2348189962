"""Read a trained network in whatever form it has: ``model.pt``, an exported file, or a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from kdpipe.errors import ConfigError, DataError, did_you_mean
from kdpipe.infer.description import Description
from kdpipe.infer.engine import openvino_network
from kdpipe.infer.model import load_model
from kdpipe.infer.window import Network
from kdpipe.ship.forms import load_form

Backend = Literal["auto", "torch", "onnxruntime", "openvino"]
BACKENDS = ("auto", "torch", "onnxruntime", "openvino")
MODEL = "model.pt"
DESCRIPTION = "description.json"
"""Of an export folder: its ``model.pt`` is that of the study, which knows no names of labels."""

_SUFFIXES = {  # the longest first
    ".int8.onnx": "int8",
    ".onnx": "onnx",
    ".ts": "torchscript",
    ".pt2": "program",
    ".pt": "torch",
}
_BACKENDS_OF = {
    "torch": ("torch", "openvino"),
    "onnx": ("onnxruntime",),
    "int8": ("onnxruntime",),
    "torchscript": ("torch",),
    "program": ("torch",),
    "bundle": ("torch",),
}
_ONE_BY_ONE, _TOGETHER = 1, 4


@dataclass(frozen=True)
class Loaded:
    """A network that is ready to segment.

    Attributes:
        network: maps windows ``(B, C, *patch)`` to logits ``(B, K, *patch)``, on their device.
        description: what it expects and gives.
        form: one of `kdpipe.ship.forms.FORMS`, or ``torch`` for a ``model.pt``.
        window_batch: windows a forward pass that suit it.
    """

    network: Network
    description: Description
    form: str
    window_batch: int


def read_network(path: Path, backend: str, device: torch.device) -> Loaded:
    """Return the network at `path`. No code of the file is run, not even that of a bundle.

    Args:
        path: a ``model.pt``, a file or bundle that ``kdpipe export`` wrote, or its folder.
        backend: one of `BACKENDS`. ``auto`` is what the file is for, and torch for a folder. From a
            folder, torch and OpenVINO take ``model.pt`` and onnxruntime ``model.onnx``.
        device: where the windows will be; OpenVINO, and an onnxruntime that is not for GPUs, work
            on the CPU all the same.

    Raises:
        ConfigError: there is no such file, its kind is unknown or is not for the backend, or a
            package is missing.
        DataError: the file is damaged, has no description, or is another program's.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"unknown backend {backend!r}: {did_you_mean(backend, BACKENDS)}")
    if not path.exists():
        raise ConfigError(
            f"{path} is not there; give a model.pt, or a file or folder that 'kdpipe export' wrote"
        )
    file, form = _chosen(path, cast(Backend, backend))
    if backend != "auto" and backend not in _BACKENDS_OF[form]:
        raise ConfigError(
            f"{file} is for the backend {' or '.join(_BACKENDS_OF[form])}, not for {backend}: "
            "leave --backend out, or give the folder that 'kdpipe export' wrote"
        )
    if form == "torch":
        return _read_model(file, path, cast(Backend, backend), device)
    network, description = load_form(form).read(file, device)
    on_cpu = device.type == "cpu" and _BACKENDS_OF[form] == ("onnxruntime",)
    return Loaded(network, description, form, _ONE_BY_ONE if on_cpu else _TOGETHER)


def _chosen(path: Path, backend: Backend) -> tuple[Path, str]:
    """Return the file, or bundle, that is meant, and its form."""
    if path.is_file():
        form = next((form for suffix, form in _SUFFIXES.items() if path.name.endswith(suffix)), "")
        if not form:
            raise ConfigError(
                f"{path}: by its name it is no network; files of networks end with "
                f"{', '.join(_SUFFIXES)}"
            )
        return path, form
    if (path / DESCRIPTION).is_file():
        if backend != "onnxruntime":
            return path / MODEL, "torch"
        file = path / load_form("onnx").FILE
        if not file.is_file():
            raise ConfigError(
                f"{file} is not there: the network was exported without the form 'onnx'; add it "
                "to the forms, or leave --backend out"
            )
        return file, "onnx"
    if (path / "configs").is_dir():
        return path, "bundle"
    hint = f"; give {path / MODEL}" if (path / MODEL).is_file() else ""
    raise ConfigError(
        f"{path} is neither a folder that 'kdpipe export' wrote ({DESCRIPTION} is not in it) nor "
        f"a MONAI bundle (configs is not){hint}"
    )


def _read_model(file: Path, given: Path, backend: Backend, device: torch.device) -> Loaded:
    trained = load_model(file)
    try:
        own = Description.of_run(trained.run, trained.preparation)
    except (LookupError, ValueError) as error:
        raise DataError(
            f"{file}: does not say how images are prepared for it ({error!r}); train it again"
        ) from None
    description = own if given == file else _named(given / DESCRIPTION, own)
    if backend == "openvino":
        shape = (_ONE_BY_ONE, *description.window[1:])
        network = _on_cpu(openvino_network(trained.network, shape, "fp32"))
        return Loaded(network, description, "torch", _ONE_BY_ONE)
    return Loaded(trained.network.to(device), description, "torch", _TOGETHER)


def _named(file: Path, own: Description) -> Description:
    """Return the description of an export folder, if it is of the network that lies there."""
    try:
        found = Description.from_json(file.read_text(encoding="utf-8"), file)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not readable ({error}); export the network again") from None
    if _essence(found) != _essence(own):
        raise DataError(
            f"{file} describes another network than {MODEL} beside it; export the network again"
        )
    return found


def _essence(description: Description) -> dict[str, Any]:
    """What decides the logits of a scan, as plain values."""
    content: dict[str, Any] = json.loads(description.to_json())
    return {key: content[key] for key in ("network", "patch", "targets", "channels", "preset")}


def _on_cpu(network: Network) -> Network:
    def run(windows: Tensor) -> Tensor:
        return network(windows.cpu()).to(windows.device)

    return run
