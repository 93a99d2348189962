"""Scores by structure: a box and the cases for each arm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdpipe.colours import GREY
from kdpipe.figures.drawing import (
    Drawing,
    common_legend,
    distance_scale,
    leave_out,
    marker_of,
    name_rows,
    pages,
    shorten,
    slug,
    style_of,
)
from kdpipe.figures.keys import Arm, Group, Measure
from kdpipe.figures.study import StudyData, structures_of
from kdpipe.figures.style import (
    BASELINE,
    DOUBLE,
    MANY_POINTS,
    MAX_ROWS,
    METHOD,
    ROW,
    TEACHER,
    new_figure,
)
from kdpipe.stats.scores import NONE, OVERALL
from kdpipe.stats.wording import plural

_PANELS = 4
_FEWEST_FOR_A_BOX = 5


def draw(study: StudyData) -> Iterator[Drawing]:
    """Yield a drawing a group, metric and page of structures or arms."""
    for group in study.groups:
        for measure in study.headline(group):
            values = study.by_case(group, measure.metric)
            if values["value"].notna().any():
                yield from _of_measure(study, group, measure, values)
            else:
                leave_out(f"scores, {measure.name}", str(group), "no value is a number")


def _of_measure(
    study: StudyData, group: Group, measure: Measure, values: pd.DataFrame
) -> Iterator[Drawing]:
    order = study.ranking(values, measure)
    order = sorted(order, key=lambda arm: not arm.is_teacher)
    for rows in pages(order, MAX_ROWS):
        for page in pages(structures_of(values), _PANELS):
            parts = ("scores", measure.metric, group.dataset, group.split, group.student)
            yield Drawing(
                slug(*parts, rows.suffix and f"rows-{rows.suffix}", page.suffix),
                f"{measure.name} by structure: {group}{rows.note}{page.note}",
                _caption(study, group, measure, rows.items),
                "Scores",
                _figure(study, group, measure, values, rows.items, page.items),
            )


def _caption(study: StudyData, group: Group, measure: Measure, arms: list[Arm]) -> str:
    better = "Higher" if measure.sign > 0 else "Lower"
    scale = " Cases far below the boxes are triangles at the left edge."
    if measure.unit != "fraction":
        scale = (
            " The axis is linear up to 1 and logarithmic beyond, as a missed structure may count "
            "the whole diagonal of the image."
        )
    infinite = int(np.isinf(study.by_case(group, measure.metric)["value"]).sum())
    if infinite:
        scale += f" {plural(infinite, 'infinite value')} (a structure is missed) cannot be drawn."
    return (
        f"{measure.name} ({measure.shown_unit}) of each arm by structure; '{OVERALL}' is the mean "
        "over the structures of a case. A dot is a case, averaged over seeds; the box holds the "
        "middle half of the cases with their median, whiskers reach the furthest case within 1.5 "
        "box lengths; the large marker is the mean. Teachers are at the top, the other arms are "
        "sorted by their mean; the dashed line is the mean of the undistilled student. "
        f"{better} is better.{scale} {study.sample(group)}{study.notes(arms)}"
    )


def _figure(
    study: StudyData,
    group: Group,
    measure: Measure,
    values: pd.DataFrame,
    arms: list[Arm],
    structures: list[str],
) -> Figure:
    figure = new_figure(DOUBLE, len(arms) * ROW + 1.0)
    panels = figure.subplots(1, len(structures), sharey=True, squeeze=False)[0]
    by_panel = dict(tuple(values.groupby("structure", sort=False)))
    for axes, structure in zip(panels, structures, strict=True):
        table = by_panel[structure].assign(value=lambda t: t["value"] * measure.factor)
        groups: Iterable[tuple[Any, pd.DataFrame]] = table.groupby("arm", sort=False)
        by_arm = {arm: rows["value"].to_numpy() for arm, rows in groups}
        _panel(axes, measure, [(arm, by_arm.get(arm, np.array([]))) for arm in arms])
        _none_line(axes, by_arm)
        axes.set_title(shorten(structure))
    name_rows(panels, [study.label(arm, group) for arm in arms], [a.is_baseline for a in arms])
    figure.supxlabel(f"{measure.name} ({measure.shown_unit})", fontsize=7.5)
    shown = [("teacher", TEACHER, any(arm.is_teacher for arm in arms))]
    shown += [("undistilled student", BASELINE, any(arm.is_baseline for arm in values["arm"]))]
    shown += [("method", METHOD, any(style_of(arm) is METHOD for arm in arms))]
    common_legend(figure, [(name, marker_of(style)) for name, style, there in shown if there])
    return figure


def _none_line(axes: Axes, by_arm: dict[Arm, np.ndarray]) -> None:
    for arm, values in by_arm.items():
        if arm.method == NONE and np.isfinite(values).any():
            axes.axvline(np.nanmean(values), color=BASELINE.colour, ls="--", lw=0.8, zorder=1)


def _panel(axes: Axes, measure: Measure, rows: list[tuple[Arm, np.ndarray]]) -> None:
    finite = [(arm, values[np.isfinite(values)]) for arm, values in rows]
    many = sum(values.size for _, values in finite) > MANY_POINTS
    for row, (arm, values) in enumerate(finite):
        if not values.size:
            axes.annotate("no value", (0.5, row), xycoords=("axes fraction", "data"), va="center",
                          ha="center", fontsize=7, color=GREY)  # fmt: skip
            continue
        style = style_of(arm)
        if values.size >= _FEWEST_FOR_A_BOX:
            _box(axes, row, values, style.colour)
        axes.scatter(values, row + _jitter(values.size), s=3, color=style.colour, alpha=0.45,
                     linewidths=0, zorder=3, rasterized=many)  # fmt: skip
        axes.plot(values.mean(), row, style.marker, color=style.colour, ms=4.5,
                  markeredgecolor="white", markeredgewidth=0.6, zorder=4)  # fmt: skip
    every = np.concatenate([values for _, values in finite])
    if every.size and measure.unit != "fraction":
        distance_scale(axes, every.min(), every.max())
    elif every.size:
        _percent_scale(axes, [values for _, values in finite])


def _percent_scale(axes: Axes, rows: list[np.ndarray]) -> None:
    """Show boxes and means; cases far below them (a missed structure counts 0) are at the edge."""
    rows = [values for values in rows if values.size]
    every = np.concatenate(rows)
    core = [min(values.mean(), _whiskers(values)[0]) for values in rows]
    span = max(every.max() - min(core), 2.0)
    low = max(every.min() - 0.05 * span, min(core) - 0.35 * span)
    axes.set_xlim(low, min(every.max() + 0.06 * span, 101.5))
    for row, values in enumerate(rows):
        if below := int((values < low).sum()):
            axes.plot([low + 0.02 * span] * below, row + _jitter(below), "<", color=GREY, ms=2.5,
                      markeredgewidth=0, zorder=5)  # fmt: skip
    axes.locator_params(axis="x", nbins=4)


def _whiskers(values: np.ndarray) -> tuple[float, float]:
    """The furthest cases within 1.5 box lengths of the box."""
    low, high = np.percentile(values, [25, 75])
    reach = 1.5 * (high - low)
    return values[values >= low - reach].min(), values[values <= high + reach].max()


def _box(axes: Axes, row: int, values: np.ndarray, colour: str) -> None:
    low, middle, high = np.percentile(values, [25, 50, 75])
    left, right = _whiskers(values)
    axes.hlines([row, row], [left, high], [low, right], color=colour, lw=0.7, zorder=2)
    axes.barh(row, high - low, left=low, height=0.62, facecolor=colour, alpha=0.18, zorder=2)
    axes.barh(row, high - low, left=low, height=0.62, fill=False, edgecolor=colour, lw=0.7)
    axes.vlines(middle, row - 0.31, row + 0.31, color=colour, lw=1.3, zorder=2)


def _jitter(count: int) -> np.ndarray:
    """Offsets that look scattered and are the same in every row and every run."""
    golden = 0.6180339887498949
    return ((np.arange(count) * golden) % 1.0 - 0.5) * 0.5
