"""``model.pt``: weights together with all that is needed to build and to feed the network.

A network that brings its own weights (TorchScript, a bundle, nnU-Net) is not copied: its
``model.pt`` names its files with their digests.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdpipe.atomic import atomic_path
from kdpipe.checksums import check_archive
from kdpipe.discover import trained_files
from kdpipe.errors import DataError
from kdpipe.nets.base import network_of, network_stages
from kdpipe.provenance import file_digest

_FORMAT = 2


@dataclass(frozen=True)
class TrainedModel:
    """A network in evaluation mode, with the settings that it was trained with.

    Attributes:
        network: maps images ``(B, C, *S)`` to logits ``(B, K, *S)``.
        run: the cell's ``run.json``: network, patch, method, training.
        preparation: the ``run.json`` of the images that it was trained on.
    """

    network: nn.Module
    run: dict[str, Any]
    preparation: dict[str, Any]

    @property
    def stages(self) -> dict[str, str]:
        """Logical tap name -> place in the network."""
        spec = self.run["network"]
        return network_stages(spec["name"], spec["params"])

    @property
    def patch(self) -> tuple[int, ...]:
        """Sliding-window size in voxels of the prepared grid."""
        return tuple(self.run["patch"])


def save_model(
    path: Path, weights: Mapping[str, Tensor], run: dict[str, Any], preparation: dict[str, Any]
) -> None:
    """Write a model file atomically; tensors and plain values only, no pickled code.

    Equal models are equal files, so that a teacher that was trained twice is the same teacher.
    """
    content = {
        "format": _FORMAT,
        "run": _canonical(run),
        "preparation": _canonical(preparation),
        "sources": _canonical(_sources(run["network"])),
    }
    if not content["sources"]:
        content["weights"] = {sys.intern(n): t.detach().cpu().clone() for n, t in weights.items()}
    # given a path, torch would store its name, which is temporary
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        torch.save(content, stream)


def _canonical(value: Any) -> Any:
    """Return equal values for which pickle writes equal bytes, in whatever way they were made.

    It writes an object that comes twice as a reference, and two equal strings as two.
    """
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, Mapping):
        return {_canonical(key): _canonical(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return type(value)(map(_canonical, value))
    return value


def _sources(spec: Mapping[str, Any]) -> dict[str, str]:
    """File -> SHA-256 of what a network with weights of its own consists of; else nothing."""
    files = trained_files(spec["name"], spec["params"])
    return {str(file): file_digest(file) if file.is_file() else "" for file in files}


def read_tensors(path: Path) -> Any:
    """Return what torch.save wrote, if it is tensors and plain values; no code of it is run.

    Raises:
        ValueError: the file is not there, damaged, or holds other objects.
    """
    try:
        check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive or pickle raises nearly anything
        reason = str(error).partition(". ")[0]  # torch goes on with advice to run the file's code
        raise ValueError(f"{type(error).__name__}: {reason}") from None


def load_model(path: Path) -> TrainedModel:
    """Load a model file without running code from it.

    Raises:
        DataError: if the file is damaged, of another format, or does not fit its network.
    """
    try:
        content = read_tensors(path)
        if content["format"] != _FORMAT:
            raise DataError(f"{path}: model format {content['format']}, this is for {_FORMAT}")
        spec = content["run"]["network"]
        if _sources(spec) != content["sources"]:
            raise DataError(
                f"{path}: files of the teacher in {spec['params']['path']} have changed or moved "
                "since it was taken over; restore them, or run the study again"
            )
        network = network_of(content["run"])
        if not content["sources"]:
            network.load_state_dict(content["weights"])
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a usable kdpipe model ({error}); train it again") from error
    network.eval().requires_grad_(False)
    return TrainedModel(network, content["run"], content["preparation"])
