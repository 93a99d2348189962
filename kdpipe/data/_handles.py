"""Open arrays of the store, a few of them kept for each thread.

To open one and to map its pages anew for every crop takes as long as half of its unpacking.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

import blosc2

N_KEPT = 64
"""Open files of a thread; a map of one holds no memory, but the disk space of a deleted file."""
_Identity = tuple[int, int, int, int]


class _Kept(threading.local):
    """An open array has buffers of its own, so threads do not share one."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.arrays: OrderedDict[str, tuple[_Identity, blosc2.NDArray]] = OrderedDict()


_KEPT = _Kept()


def opened(file: Path) -> blosc2.NDArray:
    """Return the array of a file as it is now: one that was replaced is opened anew.

    Raises:
        OSError, RuntimeError, ValueError: the file is missing or damaged.
    """
    kept, name = _KEPT, os.path.abspath(file)
    if kept.pid != os.getpid():  # a fork: its parent may be at work on the same buffers
        kept.__init__()  # type: ignore[misc]
    told = os.stat(name)
    identity = (told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns)
    before, array = kept.arrays.pop(name, (None, None))
    if before != identity:
        array = blosc2.open(name, mode="r", mmap_mode="r", dparams={"nthreads": 1})
    kept.arrays[name] = (identity, array)
    if len(kept.arrays) > N_KEPT:
        kept.arrays.popitem(last=False)
    return array
