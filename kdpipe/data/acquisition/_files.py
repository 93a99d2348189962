"""Locks between processes, and what to say when a file cannot be written."""

from __future__ import annotations

import errno
import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdpipe.errors import DataError

log = logging.getLogger(__name__)
MB = 10**6
_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock `<path>.lock`, after waiting for it; the kernel frees a dead holder's lock.

    The lock's file stays: removing it would let two processes lock two files of one name.
    """
    lock = path.with_name(path.name + ".lock")
    with writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = lock.open("a")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: another process works on it; waiting", path)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise DataError(
                f"{lock}: this file system has no locks ({error.strerror}); "
                "keep the data in another folder"
            ) from None
        yield


@contextmanager
def writing(path: Path, kept: str = "") -> Iterator[None]:
    """Turn an OSError into a DataError about `path`; `kept` says what is left there."""
    try:
        yield
    except OSError as error:
        after = f"; {kept}" if kept else ""
        if error.errno not in _FULL:
            raise DataError(f"{path}: cannot be written: {error.strerror}{after}") from None
        free = shutil.disk_usage(path.parent).free // MB
        raise DataError(
            f"{path}: the disk is full or the quota is used up ({free:,} MB free){after}; "
            "make room and run again"
        ) from None
