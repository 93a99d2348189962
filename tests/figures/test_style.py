"""Colours that neighbours in a legend have are told apart in grey print and by the colour-blind."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from kdpipe.figures.style import BASELINE, METHOD, SERIES, TEACHER

#: Machado, Oliveira, Fernandes 2009, severity 1, on linear RGB
_BLINDNESS = {
    "none": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def _lab(colour: str, blindness: str) -> np.ndarray:
    """CIE L*a*b* of a colour as it is seen."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(_BLINDNESS[blindness] @ linear, 0, 1)
    scaled = _TO_XYZ @ seen / (_TO_XYZ @ np.ones(3))
    f = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("blindness", _BLINDNESS)
def test_neighbours_differ_in_colour(blindness: str) -> None:
    pairs = [*itertools.pairwise(SERIES), (METHOD, BASELINE), (METHOD, TEACHER)]
    for one, other in pairs:
        gap = np.linalg.norm(_lab(one.colour, blindness) - _lab(other.colour, blindness))
        assert gap > 20, (one, other)  # 2.3 is just noticeable


def test_neighbours_differ_in_grey_print_by_lightness_marker_and_line() -> None:
    for one, other in itertools.pairwise(SERIES):
        lightness = [_lab(style.colour, "none")[0] for style in (one, other)]
        assert abs(lightness[0] - lightness[1]) > 9
        assert one.marker != other.marker and one.line != other.line
    assert len({style.marker for style in SERIES}) == len(SERIES)
    assert len({style.marker for style in (METHOD, BASELINE, TEACHER)}) == 3


def test_lines_are_seen_on_white() -> None:
    for style in (*SERIES, METHOD, BASELINE, TEACHER):
        assert _lab(style.colour, "none")[0] < 75
