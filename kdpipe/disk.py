"""What to say when a disk is full, or cannot be written to."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdpipe.errors import DataError

FULL = {errno.ENOSPC, errno.EDQUOT}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
_PROBE = 1 << 20


class DiskError(DataError, OSError):
    """A disk is full or cannot be written to (exit code 3).

    It is an OSError too, for those who can go on without the file.
    """

    def __init__(self, message: str, number: int | None, reason: str | None):
        super().__init__(message)
        self.message, self.errno, self.strerror = message, number, reason

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:  # it comes from worker processes
        return DiskError, (self.message, self.errno, self.strerror)


@contextmanager
def disk_told(path: Path) -> Iterator[None]:
    """Turn the failure to write `path` into a DiskError that says what to do.

    Libraries in C raise a RuntimeError that does not name the reason; then the disk is asked.
    """
    try:
        yield
    except DiskError:
        raise
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else _probe(path.parent)
        if cause is None or cause.errno not in FULL | _CLOSED:
            raise
        raise DiskError(_message(path, cause), cause.errno, cause.strerror) from error


def _message(path: Path, error: OSError) -> str:
    where = error.filename or path
    if error.errno in FULL:
        return (
            f"{path}: cannot be written, {_space(path.parent)}; make room and run the same "
            "command again, what is finished is kept"
        )
    return (
        f"{where}: cannot be written ({error.strerror}); make {path.parent} writable, or choose "
        "another folder, then run the same command again"
    )


def _space(folder: Path) -> str:
    """Say how full the disk of `folder` is, or of the folder above that exists."""
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), None)
    usage = shutil.disk_usage(there or "/")
    return (
        f"the disk is full or the quota is used up ({usage.free / 1e6:,.1f} of "
        f"{usage.total / 1e6:,.0f} MB are free)"
    )


def _probe(folder: Path) -> OSError | None:
    """Return why no mebibyte can be written to `folder`; None if it can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None
