"""Write files so that a reader sees the old content or the new, never half of it.

That holds after a power cut too: content reaches the disk before its name does. It costs a few
milliseconds a file.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kdpipe.disk import disk_told
from kdpipe.errors import Busy, ConfigError

_OF_SNAKEMAKE = ".snakemake_timestamp"


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it on success, remove it on error.

    The temporary name keeps all suffixes of `path`, because writers choose a format by them.

    Raises:
        DiskError: the disk does not take it.
    """
    path = Path(path)
    with disk_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=f"-{path.name}", dir=path.parent)
    temporary = Path(name)
    try:
        with disk_told(path):
            _lock(handle)
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            flush(temporary)
            temporary.replace(path)
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)
    with suppress(OSError):  # some file systems cannot; the old content would come back, not none
        flush(path.parent)


def _remove_abandoned(path: Path) -> None:
    """Remove what writers of `path` that were killed have left."""
    for name in path.parent.glob(f".tmp-????????-{glob.escape(path.name)}"):
        with suppress(OSError), name.open("r+b") as abandoned:
            if _lock(abandoned.fileno()):  # the kernel frees a dead writer's lock
                name.unlink()


def _lock(handle: int) -> bool:
    """Lock a temporary file; False if another process writes it, or the file system cannot."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def flush(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk.

    Raises:
        OSError: they cannot be; a full disk may show here first.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; put it in its place on success, else remove it.

    Who comes last has it: what another process has begun is taken for abandoned, and is removed.

    Raises:
        Busy: another process has taken over meanwhile; this one's work is lost.
        DiskError: the disk does not take it.
    """
    with disk_told(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in folder.parent.glob(f".tmp-{glob.escape(folder.name)}-*"):
            _remove(abandoned)
        temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{folder.name}-", dir=folder.parent))
    handle = os.open(temporary, os.O_RDONLY)
    try:
        with disk_told(folder):
            temporary.chmod(0o777 & ~_umask())
            yield temporary
            _flush_all(temporary)
            _check_same(handle, temporary, folder)
            if folder.exists():
                _remove(folder, beside=temporary)
            temporary.replace(folder)
    except FileNotFoundError:
        _check_same(handle, temporary, folder)
        raise
    finally:
        os.close(handle)
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(folder: Path, ours: Callable[[set[str]], bool]) -> None:
    """Refuse to replace a folder that somebody else has filled: all in it would be lost.

    Args:
        folder: to be written by `atomic_folder`.
        ours: whether a folder with files of these names is what an earlier run has written.

    Raises:
        ConfigError: it is not, or there is a file in the folder's place.
    """
    if not folder.is_dir():
        if folder.exists():
            raise ConfigError(f"{folder} is a file, a folder is expected; name another one")
        return
    names = {file.name for file in folder.iterdir()} - {_OF_SNAKEMAKE}
    if names and not ours(names):
        raise ConfigError(
            f"{folder} would be replaced, but holds other files ({min(names)}); name a new folder"
        )


def _check_same(handle: int, temporary: Path, folder: Path) -> None:
    """Raise Busy unless `temporary` is still the folder that was made.

    A writer that makes the folders above its file would bring back one that was removed, and what
    it holds then is not all.
    """
    with suppress(OSError):
        if os.path.samestat(os.fstat(handle), temporary.stat()):
            return
    raise Busy(
        f"{folder}: another process has begun to write it anew; this one stops and leaves it to "
        "that one"
    )


def _remove(folder: Path, beside: Path | None = None) -> None:
    """Delete a folder; it loses its name at once, so that nobody sees half of it."""
    near = beside or folder
    gone = near.with_name(f"{near.name}-{uuid.uuid4().hex[:8]}")
    with suppress(FileNotFoundError):  # another process was faster
        try:
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        finally:  # a signal came in between
            shutil.rmtree(gone, ignore_errors=True)


def _flush_all(folder: Path) -> None:
    for file in folder.rglob("*"):
        flush(file)
    flush(folder)


def mark_of(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from the one that takes its place; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def _umask() -> int:
    """The process's umask; mkstemp ignores it and would make every result private."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
