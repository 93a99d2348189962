"""Compiled loops are taken where numba is there and not switched off."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from types import ModuleType


def compiled(loops: Callable[[], ModuleType]) -> ModuleType | None:
    """Return the module that `loops` imports; None without numba or with `KDPIPE_JIT=0`.

    `loops` is a function, as the import is slow, and names the module, for the digest of the code.

    Raises:
        ImportError: a module of kdpipe itself is missing. That is no reason for the slow way.
    """
    return _imported(loops) if os.environ.get("KDPIPE_JIT") != "0" else None


@cache
def _imported(loops: Callable[[], ModuleType]) -> ModuleType | None:
    try:
        return loops()
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "kdpipe":
            raise
        return None
