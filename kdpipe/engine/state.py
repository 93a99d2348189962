"""The checkpoint: everything that a training needs to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import logging
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdpipe.atomic import atomic_path

log = logging.getLogger(__name__)


class Checkpoint:
    """One file in `folder`, replaced atomically.

    The folder is no output of any rule, because Snakemake deletes the outputs of a failed job.
    `digest` says what was trained (settings, code, data); a checkpoint of something else is
    passed over. The loop saves about every `every_seconds`.
    """

    def __init__(self, folder: Path, digest: str, every_seconds: float = 60.0):
        self.folder = folder
        self.every_seconds = every_seconds
        self.file = folder / "state.pt"
        self.digest = digest

    def save(self, state: Mapping[str, Any]) -> None:
        """Write `state` and the random number generators."""
        generators = {"torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            generators["cuda"] = torch.cuda.get_rng_state()
        with atomic_path(self.file) as temporary:
            torch.save({"digest": self.digest, "generators": generators, **state}, temporary)

    def load(self) -> dict[str, Any] | None:
        """Return the saved state and set the generators; None where there is nothing to go on."""
        if not self.file.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.file, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            log.warning("%s is damaged (%s): starting afresh", self.file, error)
            return None
        if state["digest"] != self.digest:
            log.warning("%s is of other settings, code or data: starting afresh", self.file)
            return None
        torch.set_rng_state(state["generators"]["torch"])
        if torch.cuda.is_available() and "cuda" in state["generators"]:
            torch.cuda.set_rng_state(state["generators"]["cuda"])
        return state

    def remove(self) -> None:
        """Delete the folder; called once the results are safely written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of names, shapes, types and values of all tensors."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        sha.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
