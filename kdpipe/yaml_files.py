"""YAML from strangers: plain values only, and no larger than it looks.

An alias lets a few lines stand for billions of values. PyYAML keeps them as one object, so reading
is cheap, and whoever walks over the values hangs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

#: values that a file may stand for, aliases written out; the largest card has some thousands
MOST_VALUES = 200_000
_LARGEST = 4 * 2**20  # characters


class TooLarge(yaml.YAMLError):
    """The text stands for more than any card or configuration needs."""


def load_yaml(text: str) -> Any:
    """Return the plain values of a YAML text.

    Raises:
        yaml.YAMLError: it is no YAML, asks for other objects, is too large or holds itself.
    """
    if len(text) > _LARGEST:
        raise TooLarge(f"more than {_LARGEST // 2**20} MiB of text")
    try:
        content = yaml.safe_load(text)
    except RecursionError:
        raise TooLarge("lists within lists without end") from None
    check_size(content)
    return content


def check_size(content: Any) -> None:
    """Raise TooLarge if values, each use of an alias counted, are too many or hold themselves."""
    try:
        count = _count(content, {}, set())
    except RecursionError:
        count = MOST_VALUES + 1
    if count > MOST_VALUES:
        raise TooLarge(f"it stands for more than {MOST_VALUES} values; write out what it needs")


def _count(value: Any, known: dict[int, int], open_: set[int]) -> int:
    """Number of values, each object counted once and multiplied by its uses."""
    if not isinstance(value, Mapping | list | tuple):
        return 1
    place = id(value)
    if place in open_:
        raise TooLarge("an alias stands within what it stands for")
    if place not in known:
        open_.add(place)
        inner = [*value, *value.values()] if isinstance(value, Mapping) else value
        known[place] = 1 + sum(_count(item, known, open_) for item in inner)
        open_.remove(place)
    return known[place]
