"""The reference labels on the prepared grid, for metric protocols that score there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from kdpipe.data.geometry import Grid
from kdpipe.data.store import StoredCase
from kdpipe.metrics.labelmaps import LabelMap


def stored_references(store: Path, cases: Sequence[str]) -> dict[str, Callable[[], LabelMap]]:
    """Return case -> function that reads its label map; the functions can be pickled.

    Args:
        store: folder of prepared cases.
        cases: their ids.
    """
    return {case: partial(stored_labels, store / case) for case in cases}


def stored_labels(folder: Path) -> LabelMap:
    """Return the label map of a prepared case.

    Raises:
        DataError: the case is not there or damaged.
    """
    case = StoredCase(folder)
    grid = Grid.from_dict(case.geometry["prepared"])
    return LabelMap(case.label().transpose(2, 1, 0), grid.spacing[::-1], grid.origin, grid.axes)
