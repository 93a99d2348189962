"""The checkpoint: everything that a training needs to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdpipe.atomic import atomic_path, flush
from kdpipe.checksums import check_archive

log = logging.getLogger(__name__)
_WARN_EVERY = 60.0


class Checkpoint:
    """The newest state in `folder` and the one before it, replaced atomically.

    The folder is no output of any rule, because Snakemake deletes the outputs of a failed job.
    `digest` says what was trained (settings, code, data); a checkpoint of something else is
    passed over. The loop saves about every `every_seconds`. `check` is called before the folder is
    written to, and raises if it belongs to another process by now.
    """

    def __init__(
        self,
        folder: Path,
        digest: str,
        every_seconds: float = 60.0,
        check: Callable[[], None] = lambda: None,
    ):
        self.folder = folder
        self.every_seconds = every_seconds
        self.file = folder / "state.pt"
        self.previous = folder / "previous.pt"
        self.digest = digest
        self.check = check
        self.step: int | None = None  # of the newest state on the disk
        self._warned = float("-inf")

    def save(self, state: Mapping[str, Any]) -> None:
        """Write `state` and the random number generators.

        A full disk does not end a training: what was saved before is kept, and a line in the log
        says so.
        """
        self.check()
        generators = {"torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            generators["cuda"] = torch.cuda.get_rng_state()
        try:
            with atomic_path(self.file) as temporary:
                torch.save({"digest": self.digest, "generators": generators, **state}, temporary)
                flush(temporary)  # or there could be no whole state when the newest makes room
                if self.file.exists():
                    self.file.replace(self.previous)
            self.step = state["step"]
        except (OSError, RuntimeError) as error:
            if not is_of_disk(error):
                raise
            if time.monotonic() - self._warned >= _WARN_EVERY:
                self._warned = time.monotonic()
                log.warning(
                    "the state after step %d is not saved: %s; the training goes on, free "
                    "space meanwhile; %s",
                    state["step"],
                    disk_trouble(self.folder, error),
                    self.told(),
                )

    def told(self) -> str:
        """Return what is on the disk, for people."""
        if self.step is None:
            return f"no state is in {self.folder}"
        return f"the state after step {self.step} is in {self.folder}"

    def load(self) -> dict[str, Any] | None:
        """Return the saved state and set the generators; None where there is nothing to go on."""
        for left in self.folder.glob(".tmp-*"):  # by a process that was killed while it saved
            left.unlink(missing_ok=True)
        state = self._newest()
        if state is None:
            return None
        if state["digest"] != self.digest:
            log.warning("%s is of other settings, code or data: starting afresh", self.folder)
            return None
        torch.set_rng_state(state["generators"]["torch"])
        if torch.cuda.is_available() and "cuda" in state["generators"]:
            torch.cuda.set_rng_state(state["generators"]["cuda"])
        self.step = state["step"]
        return state

    def _newest(self) -> dict[str, Any] | None:
        """The newest state that is whole; damaged ones are set aside, so that none takes the
        place of a whole one when the next is saved.
        """
        damaged = False
        for file in (self.file, self.previous):
            if not file.exists():
                continue
            try:
                state = _read(file)
            except MemoryError:
                raise
            except Exception as error:  # a damaged archive or pickle raises nearly anything
                reason = str(error).partition(". ")[0]
                log.warning("%s is damaged (%s: %s)", file, type(error).__name__, reason)
                file.replace(self.folder / "damaged.pt")
                damaged = True
                continue
            if file == self.previous:
                log.warning("going on from the state before, after step %d", state["step"])
            return state
        if damaged:
            log.warning("no whole state in %s: starting afresh", self.folder)
        return None

    def remove(self) -> None:
        """Delete the folder; called once the results are safely written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(file: Path) -> dict[str, Any]:
    check_archive(file)
    state = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not {"digest", "step", "generators"} <= state.keys():
        raise ValueError("it holds something else")
    return state


def is_of_disk(error: OSError | RuntimeError) -> bool:
    """Say whether a file could not be written; torch reports that as a RuntimeError."""
    return isinstance(error, OSError) or "inline_container" in str(error)


def disk_trouble(folder: Path, error: OSError | RuntimeError) -> str:
    """Return why nothing can be written, for people."""
    free = shutil.disk_usage(folder).free / 1e6
    reason = error.strerror if isinstance(error, OSError) else "the file was cut off"
    return f"{reason}, {free:.0f} MB are free in {folder}"


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of names, shapes, types and values of all tensors."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        sha.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
