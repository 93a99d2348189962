"""Where two JSON values differ."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

#: relative; a difference that the order of a sum makes is smaller by far
TOLERANCE = 1e-9


class Difference(NamedTuple):
    """A place in the claim that is not as it should be."""

    path: str
    claimed: Any
    found: Any


def differences(path: str, claimed: Any, again: Any) -> Iterator[Difference]:
    """Yield what differs within two JSON values, but for the last digits of numbers."""
    if isinstance(again, dict) and isinstance(claimed, dict):
        for key in [*again, *(key for key in claimed if key not in again)]:
            yield from differences(f"{path}: {key}", claimed.get(key), again.get(key))
    elif isinstance(again, list) and isinstance(claimed, list) and len(again) == len(claimed):
        for number, (first, second) in enumerate(zip(claimed, again, strict=True), start=1):
            yield from differences(f"{path} {number}", first, second)
    elif not _same(claimed, again):
        yield Difference(path, claimed, again)


def _same(claimed: Any, again: Any) -> bool:
    if is_number(claimed) and is_number(again):
        return math.isclose(claimed, again, rel_tol=TOLERANCE, abs_tol=1e-12)
    return type(claimed) is type(again) and bool(claimed == again)


def is_number(value: Any) -> bool:
    """Say whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
