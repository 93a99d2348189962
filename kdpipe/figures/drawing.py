"""What every figure of the catalogue is: the contract, and the pieces that several share.

A module of a figure has ``draw(study: StudyData) -> Iterator[Drawing]``. It yields a drawing for
each data set, split and student (and page, where there are too many rows for one), and calls
`leave_out` with the reason where a study cannot fill it.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from kdpipe.figures.keys import Arm
from kdpipe.figures.study import StudyData
from kdpipe.figures.style import BASELINE, DOUBLE, METHOD, SINGLE, TEACHER, Series, new_figure
from kdpipe.stats.intervals import t_quantile

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
#: ticks of distances, from few to many
_TICKS = tuple(
    (0.0, *(first * 10.0**power for power in range(5) for first in firsts))
    for firsts in ((1, 10), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8))
)


@dataclass(frozen=True)
class Drawing:
    """One figure of a report.

    Attributes:
        name: of its files, without suffix.
        title: what it shows, for a heading.
        caption: full sentences: what, unit, how many cases and seeds, how to read it.
        group: heading under which a report puts it.
        figure: to be saved.
    """

    name: str
    title: str
    caption: str
    group: str
    figure: Figure


Draw = Callable[[StudyData], Iterator[Drawing]]


def leave_out(figure: str, where: str, why: str) -> None:
    """Say in the log that a figure is not drawn, and why."""
    logger.info("no figure '%s' of %s: %s", figure, where, why)


def slug(*parts: str) -> str:
    """A file name of `parts`, of letters, digits, ``_``, ``+`` and ``-``."""
    return "_".join(re.sub(r"[^A-Za-z0-9_+-]", "-", part) for part in parts if part)


@dataclass(frozen=True)
class Page(Generic[Item]):
    """A part of what is shown: `items`, the `suffix` of its files, `note` behind the title."""

    items: list[Item]
    suffix: str = ""
    note: str = ""


def pages(items: Sequence[Item], size: int, multiple: int = 1) -> list[Page[Item]]:
    """Divide into pages of about equal length.

    Args:
        items: what is shown, in order.
        size: most on a page.
        multiple: all pages but the last hold a multiple of it (full rows of panels).
    """
    count = max(1, math.ceil(len(items) / size))
    if count == 1:
        return [Page(list(items))]
    length = math.ceil(len(items) / count / multiple) * multiple
    return [
        Page(list(items[start : start + length]), f"p{number}", f" ({number} of {count})")
        for number, start in enumerate(range(0, len(items), length), 1)
    ]


def small_multiples(
    count: int, most_columns: int = 4, panel: float = 1.4
) -> tuple[Figure, list[Axes], list[Axes]]:
    """A figure of `count` equal panels with common axes.

    Args:
        count: panels.
        most_columns: of the grid; one less is taken where that leaves fewer places empty.
        panel: height of one in inches.

    Returns:
        The figure, all panels row by row, and those of them that are the lowest of their column.
    """
    columns = min(count, most_columns)
    if columns > 3 and count > columns:
        columns = min((columns, columns - 1), key=lambda n: -count % n)
    rows = math.ceil(count / columns)
    figure = new_figure(max(SINGLE, DOUBLE * min(1, columns / 3)), rows * panel + 0.6)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for spare in axes[count:]:
        spare.remove()
    lowest = axes[:count][-columns:]
    for axis in lowest:  # above a removed panel too
        axis.tick_params(labelbottom=True)
    return figure, axes[:count], lowest


def panel_title(label: str) -> str:
    """A name that fits over a small panel, in two lines where one is too short."""
    return label if len(label) <= 24 else label.replace(" from ", "\nfrom ")


def shorten(name: str) -> str:
    """Cut a name that would not fit over a panel or into its legend."""
    return name if len(name) <= 22 else f"{name[:21]}…"


def style_of(arm: Arm) -> Series:
    """Teachers, the undistilled student and methods differ by colour and marker."""
    if arm.is_teacher:
        return TEACHER
    return BASELINE if arm.is_baseline else METHOD


def name_rows(panels: Sequence[Axes], labels: Sequence[str], bold: Sequence[bool]) -> None:
    """Name the rows of panels side by side from top to bottom; row ``i`` is at ``y = i``."""
    for axes in panels:
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
    for text, is_bold in zip(panels[0].get_yticklabels(), bold, strict=True):
        text.set_fontweight("bold" if is_bold else "normal")


def plain_log_axis(axis: Axis, text: Callable[[float], str] = "{:g}".format) -> None:
    """Write plain numbers at a logarithmic axis; call it when all is drawn."""
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    subs = (1.0,) if decades > 2.5 else (1.0, 3.0) if decades > 1.3 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs, numticks=6 if decades > 2.5 else 12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_formatter(NullFormatter())


def distance_scale(axes: Axes, low: float, high: float) -> None:
    """Make the x axis linear up to 1 and logarithmic beyond, with plain numbers.

    A missed structure counts the diagonal of the image, which would press all others together.

    Args:
        axes: the panel.
        low: smallest value, >= 0.
        high: largest value.
    """
    axes.set_xscale("symlog", linthresh=1.0, linscale=0.5)
    low, high = max(0.0, low * 0.85), max(high * 1.2, 2.0)
    low = 0.0 if low < 1 else low
    axes.set_xlim(low, high)
    choices = [sorted({tick for tick in ticks if low <= tick <= high}) for ticks in _TICKS]
    ticks = min(choices, key=lambda found: abs(len(found) - 5))
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def common_legend(figure: Figure, entries: Sequence[tuple[str, Line2D]], columns: int = 4) -> None:
    """One legend for all panels, above them."""
    if entries:
        labels, handles = zip(*entries, strict=True)
        figure.legend(
            handles,
            labels,
            loc="outside upper center",
            ncols=min(columns, len(entries)),
            handlelength=2.2,
            columnspacing=1.4,
        )


def marker_of(style: Series, filled: bool = True, line: bool = False) -> Line2D:
    """A key for the legend."""
    return Line2D(
        [],
        [],
        color=style.colour,
        marker=style.marker,
        linestyle=style.line if line else "none",
        markerfacecolor=style.colour if filled else "white",
    )


def mean_interval(values: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Mean and Student's t interval of finite values; NaN bounds for fewer than two.

    Args:
        values: shape ``(n,)``; NaN are left out.
        confidence: in (0, 1).
    """
    values = values[np.isfinite(values)]
    if values.size == 0:
        return math.nan, math.nan, math.nan
    mean = float(values.mean())
    if values.size < 2:
        return mean, math.nan, math.nan
    half = t_quantile(confidence, values.size - 1) * float(values.std(ddof=1))
    half /= math.sqrt(values.size)
    return mean, mean - half, mean + half
