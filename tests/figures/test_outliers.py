"""A method that failed is shown, but does not squeeze the others."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kdpipe.figures.differences import _panel, _reach
from kdpipe.figures.drawing import new_figure
from kdpipe.figures.frontier import _floor, _Network
from kdpipe.figures.keys import Arm
from kdpipe.figures.style import series


class Confidence:
    """All of a study that a panel asks for."""

    confidence = 0.95


def table(*differences: float) -> pd.DataFrame:
    rows = [
        {
            "arm": Arm("big", f"m{index}"),
            **{"difference": value, "low": value - 0.5, "high": value + 0.5},
            **{"margin": 0.5, "p_holm": 0.5, "verdict": "cannot tell"},
        }
        for index, value in enumerate(differences)
    ]
    return pd.DataFrame(rows)


def test_the_axis_ends_where_most_methods_end() -> None:
    assert np.isinf(_reach(table(1, 2, -3, 4)))
    failed = table(1, 2, -2, 1, -50)
    assert _reach(failed) == 4
    axes = new_figure(4, 3).subplots()
    _panel(axes, Confidence(), failed, list(failed["arm"]))
    low, high = axes.get_xlim()
    assert -6 < low < -4 and high < 6
    (arrow,) = [line for line in axes.lines if line.get_marker() == "<"]
    assert arrow.get_xdata() == [-4]


def network(none: float, best: float, worst: float) -> _Network:
    return _Network("small", False, series(0), {}, none, best, worst, "kd")


def test_the_frontier_ends_below_the_undistilled_student() -> None:
    assert np.isinf(_floor([network(80, 84, 78)]))
    assert _floor([network(80, 84, 30), network(82, 83, 82)]) == 76
