"""Which GPU a job uses, on a machine with several: a free one, and none that another job has.

Snakemake counts GPUs and gives out no numbers, so that local jobs would all use the first. Each job
locks a small file for its GPU instead, in a folder of the user's. The kernel releases such a lock
when its process ends, however that happens, so no GPU is lost to a job that was killed.

A job that shares its GPU locks one byte of the file, one that does not locks all of it: whoever
asks for a GPU of its own never gets company, whatever other studies say.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdpipe.errors import ConfigError

logger = logging.getLogger(__name__)
FOLDER, JOBS_PER_GPU = "KDPIPE_SLOTS", "KDPIPE_JOBS_PER_GPU"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_LOOK_EVERY = 0.5
_TELL_EVERY = 60.0


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a part of one (MIG): its name for CUDA, and one that is the same for all jobs."""

    name: str
    identity: str


def visible_gpus() -> list[Gpu]:
    """Return the GPUs that this process may use, none on a machine without; CUDA is not started.

    CUDA_VISIBLE_DEVICES counts, with numbers, UUIDs (also shortened) or MIG names.
    """
    there = _listed()
    given = os.environ.get(_VISIBLE)
    if given is None:
        return [Gpu(uuid, uuid) for uuid in there.values()]
    found = []
    for name in (part.strip() for part in given.split(",")):
        if not re.fullmatch(r"\d+|(GPU|MIG)-.+", name):
            break  # as CUDA does: what follows a wrong one, -1 for instance, is not visible
        whole = [uuid for uuid in there.values() if uuid.startswith(name)]
        found.append(Gpu(name, there.get(name, whole[0] if len(whole) == 1 else name)))
    return found


@contextlib.contextmanager
def gpu_slot(
    count: int = 1,
    alone: bool = False,
    jobs_per_gpu: int | None = None,
    gpus: Callable[[], Sequence[Gpu]] = visible_gpus,
    folder: Path | None = None,
) -> Iterator[tuple[str, ...]]:
    """Hold `count` GPUs and make them the visible ones; wait while others hold them.

    Does nothing where there are no GPUs, for a process that ``torchrun`` has started (the launcher
    holds its GPU), and for a job that SLURM has given no more GPUs than it needs.

    Args:
        count: how many GPUs.
        alone: share with no other job, for measurements.
        jobs_per_gpu: jobs that may share a GPU; default: $KDPIPE_JOBS_PER_GPU or 1.
        gpus: lists what is there.
        folder: of the lock files; default: $KDPIPE_SLOTS, or one of the user's among the temporary
            files.

    Raises:
        ConfigError: there are not as many GPUs, or the folder cannot be used.
    """
    there = [] if "LOCAL_RANK" in os.environ else list(gpus())
    if not there or ("SLURM_JOB_ID" in os.environ and len(there) <= count):
        yield ()
        return
    if count > len(there):
        raise ConfigError(
            f"{count} GPUs are asked for and {len(there)} are visible: lower resources.train.gpu, "
            f"or mend {_VISIBLE}"
        )
    sharing = jobs_per_gpu or int(os.environ.get(JOBS_PER_GPU, "1"))
    place = _folder(folder)
    with contextlib.ExitStack() as held:
        names = _wait_for(count, 1 if alone else sharing, there, place, held)
        before = os.environ.get(_VISIBLE)
        os.environ[_VISIBLE] = ",".join(names)
        logger.info("using GPU %s", ", ".join(names))
        try:
            yield names
        finally:
            os.environ.pop(_VISIBLE)
            if before is not None:
                os.environ[_VISIBLE] = before


def _wait_for(
    count: int, sharing: int, gpus: Sequence[Gpu], folder: Path, held: contextlib.ExitStack
) -> tuple[str, ...]:
    """Take all that are needed or none, so that two jobs never wait for each other."""
    told = None
    while True:
        with contextlib.ExitStack() as attempt:
            names: list[str] = []
            for part in range(sharing):  # spread over the GPUs before sharing one
                for gpu in gpus:
                    free = len(names) < count and gpu.name not in names
                    if free and _lock(folder, gpu, part, sharing, attempt):
                        names.append(gpu.name)
            if len(names) == count:
                held.push(attempt.pop_all())
                return tuple(names)
        now = time.monotonic()
        if told is None or now - told >= _TELL_EVERY:
            told = now
            logger.info(
                "waiting for %d of %d GPUs; other jobs hold them (locks in %s)",
                count,
                len(gpus),
                folder,
            )
        time.sleep(_LOOK_EVERY * (1 + os.getpid() % 7 / 7))  # not all at the same time


def _lock(folder: Path, gpu: Gpu, part: int, sharing: int, attempt: contextlib.ExitStack) -> bool:
    """Lock a byte of the GPU's file, or all of it; False where another process has it.

    `lockf`, not `flock`: processes that load data would inherit the latter, and keep it.
    """
    file = folder / f"{hashlib.sha256(gpu.identity.encode()).hexdigest()[:16]}.lock"
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    length, start = (1, part) if sharing > 1 else (0, 0)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except OSError:
        os.close(handle)
        return False
    attempt.callback(os.close, handle)
    return True


def _folder(given: Path | None) -> Path:
    named = given or os.environ.get(FOLDER)
    folder = Path(named or Path(tempfile.gettempdir()) / f"kdpipe-slots-{os.getuid()}")
    if "SLURM_JOB_ID" in os.environ:  # its GPUs may be counted from 0 in each allocation
        folder /= f"slurm-{os.environ['SLURM_JOB_ID']}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not named and folder.stat().st_uid != os.getuid():
            raise PermissionError(0, "it belongs to another user")
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot hold the locks of GPUs ({error.strerror}); name another folder in "
            f"{FOLDER}"
        ) from None
    return folder


def _listed() -> dict[str, str]:
    """Number -> UUID of the machine's GPUs; a GPU that is divided (MIG) gives its parts."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return parse_listing(answer)


def parse_listing(text: str) -> dict[str, str]:
    """Read what ``nvidia-smi -L`` prints; parts have keys like ``0:1``."""
    found: dict[str, str] = {}
    number = ""
    for line in text.splitlines():
        if whole := re.match(r"GPU (\d+):.*UUID: ([\w-]+)\)", line):
            number = whole[1]
            found[number] = whole[2]
        elif part := re.match(r"\s+MIG .*Device\s+(\d+):.*UUID: ([^)]+)\)", line):
            found.pop(number, None)
            found[f"{number}:{part[1]}"] = part[2]
    return found
