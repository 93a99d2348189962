"""Errors that a person and a scheduler can both act on.

Each message says what is wrong, where, and how to mend it; each class carries the exit code
that the command line returns.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KdpipeError(Exception):
    """Base of every error that kdpipe raises on purpose."""

    exit_code = 1


class ConfigError(KdpipeError):
    """The configuration, a card or a command line is wrong (exit code 2)."""

    exit_code = 2


class DataError(KdpipeError):
    """An image, a label map, a split or a stored file is wrong (exit code 3)."""

    exit_code = 3


class TrainingDiverged(KdpipeError):
    """The loss is no longer finite (exit code 4)."""

    exit_code = 4


class Busy(KdpipeError):
    """Another process works on the very same thing; nothing was touched (exit code 5)."""

    exit_code = 5


class Interrupted(KdpipeError):
    """Stopped by a signal, in good order; run again to go on (exit code 75)."""

    exit_code = 75


class WorkerLost(Interrupted):
    """A process that works for this one was killed; run again to go on (exit code 75)."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return ``"did you mean 'x'? Valid: a, b, c"`` for an unknown `name`."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}Valid: {', '.join(names) or '(none)'}"
