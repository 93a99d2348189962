"""The figure of `bench/scale.py`: cost over work, both as multiples of the smallest."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from kdpipe.colours import GREY
from kdpipe.figures.drawing import small_multiples
from kdpipe.figures.style import RC, save, series

if TYPE_CHECKING:
    from scale import Growth

#: a page of the documentation shows it: text stays text, which takes a third of the bytes
STYLE = RC | {"svg.fonttype": "none", "xtick.major.size": 0, "ytick.major.size": 0}


def draw(found: Sequence[Growth], stem: Path) -> None:
    """Write ``<stem>.svg`` and ``<stem>.png``: a panel a stage, a line for what it grows with."""
    stages = list(dict.fromkeys(growth.stage for growth in found))
    kinds = list(dict.fromkeys(growth.grows for growth in found))
    with matplotlib.rc_context(STYLE):
        figure, panels, lowest = small_multiples(len(stages), most_columns=4, panel=1.6)
        for stage, axes in zip(stages, panels, strict=True):
            _panel(axes, [growth for growth in found if growth.stage == stage], kinds)
            axes.set_title(stage)
        for axes in lowest:
            axes.set_xlabel("work, × the smallest")
        for axes in panels:
            if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
                axes.set_ylabel("CPU time, × the least")
        _name_the_line(panels[0])
        panels[0].set_ylim(0.75, panels[0].get_ylim()[1] * 1.6)  # room for the legends
        save(figure, stem)
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    stem.with_suffix(".svg").write_text(_smaller(text.getvalue()), encoding="utf-8")


def _smaller(svg: str) -> str:
    """Without what nobody sees, indentation, digits, turns by 0; with a font if this one lacks."""
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r"(\.\d\d)\d+", r"\1", re.sub(r"^ +", "", svg, flags=re.M))
    return svg.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")


def _panel(axes: Axes, lines: Sequence[Growth], kinds: Sequence[str]) -> None:
    axes.set(xscale="log", yscale="log")
    most = max(growth.amounts[-1] / growth.amounts[0] for growth in lines)
    axes.plot([1, most], [1, most], color=GREY, linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)
    for growth in lines:
        style = series(kinds.index(growth.grows))
        axes.plot(
            [amount / growth.amounts[0] for amount in growth.amounts],
            [seconds / growth.seconds[0] for seconds in growth.seconds],
            color=style.colour,
            marker=style.marker,
            linestyle=style.line,
            label=f"{growth.grows}: {growth.exponent:.2f}",
        )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator([1, 2, 4, 8, 16, 32]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    axes.legend(loc="upper left", handlelength=2.0, borderpad=0.1, labelspacing=0.25)


def _name_the_line(axes: Axes) -> None:
    x, y = np.asarray(axes.lines[0].get_xydata())[-1].tolist()
    axes.annotate(
        "linear", (x, y), (2, -1), textcoords="offset points", color=GREY, ha="left", va="center"
    )
