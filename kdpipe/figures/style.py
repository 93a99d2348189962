"""How all figures look: sizes, colours, markers, and how they are saved.

Sizes are those of print: a figure is one column (3.5 in) or two (7.2 in) wide, no text is below
7 pt. Colours are ordered so that neighbours also differ in lightness; a marker or a line style
always says the same as the colour.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from kdpipe.colours import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.typing import LineStyleType, RcKeyType

SINGLE = 3.5  # inches, one column
DOUBLE = 7.2  # inches, two columns
ROW = 0.17  # inches that a named row takes
MAX_ROWS = 46  # rows on a page
PNG_DPI = 150
#: above so many points they are stored as pixels in the SVG
MANY_POINTS = 1500

RC: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.0,
    "lines.markersize": 4,
    "axes.unicode_minus": True,
    "text.parse_math": False,  # a name with dollars is a name
    "figure.dpi": PNG_DPI,
    "savefig.dpi": PNG_DPI,
    "svg.fonttype": "path",  # a report must not need the reader's fonts
    "svg.hashsalt": "kdpipe",  # else ids are random
    "path.simplify": True,
}


@dataclass(frozen=True)
class Series:
    """One of several things in a panel."""

    colour: str
    marker: str
    line: LineStyleType


#: neighbours differ in hue (to the colour-blind too), lightness, marker and line
SERIES = (
    Series(BLUE, "o", "-"),
    Series(PURPLE, "s", "--"),
    Series(ORANGE, "^", "-."),
    Series(GREEN, "D", ":"),
    Series(SKY, "v", "-"),
    Series(VERMILLION, "P", "--"),
    Series(BLACK, "X", "-."),
)
METHOD = Series(BLUE, "o", "-")
BASELINE = Series(VERMILLION, "s", "--")
TEACHER = Series(GREY, "D", ":")


def series(index: int) -> Series:
    """The style of the `index`-th thing; they repeat after ``len(SERIES)``."""
    return SERIES[index % len(SERIES)]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches that makes room for its texts by itself."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, stem: Path) -> None:
    """Write ``<stem>.svg`` and ``<stem>.png``; the same figure gives the same bytes.

    Raises:
        OSError: the folder cannot be written.
    """
    with matplotlib.rc_context(RC):
        # by its canvases: `Figure.savefig` draws all twice, to lay out what is laid out already
        png, svg = (stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "svg"))
        FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
        figure.set_layout_engine("none")  # it is laid out now
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
