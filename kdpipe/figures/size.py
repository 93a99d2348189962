"""Gain over the undistilled student by the size of a structure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdpipe.colours import BLACK, GREY
from kdpipe.figures.drawing import (
    Drawing,
    common_legend,
    leave_out,
    marker_of,
    mean_interval,
    pages,
    panel_title,
    plain_log_axis,
    slug,
    small_multiples,
)
from kdpipe.figures.keys import Arm, Group, Measure
from kdpipe.figures.study import StudyData, structures_of
from kdpipe.figures.style import SERIES, Series, series
from kdpipe.stats.scores import NONE, OVERALL
from kdpipe.stats.wording import plural

_VOLUME = "reference_ml"
_PANELS = 20
_BINS = 5
_FEWEST_IN_A_BIN = 6


def draw(study: StudyData) -> Iterator[Drawing]:
    """Yield a drawing a group and page of arms."""
    for group in study.groups:
        measures = [measure for measure in study.headline(group) if measure.sign > 0]
        points = _points(study, group, measures[0]) if measures else pd.DataFrame()
        if points.empty:
            why = f"no pair with none has an overlap and a volume above 0 ({_VOLUME})"
            leave_out("gain by size", str(group), why)
            continue
        there = set(points["arm"])
        arms = [arm for arm in study.arms(group) if arm in there]
        limit = _limit(points["gain"])
        for page in pages(arms, _PANELS, multiple=4):
            yield Drawing(
                slug("size", group.dataset, group.split, group.student, page.suffix),
                f"Gain by size of the structure: {group}{page.note}",
                _caption(study, group, measures[0], points, limit),
                "Where it helps",
                _figure(study, group, measures[0], points, page.items, limit),
            )


def _points(study: StudyData, group: Group, measure: Measure) -> pd.DataFrame:
    gains = study.gains(group, measure)
    volumes = study.by_case(group, _VOLUME)
    volume = volumes.groupby(["case", "structure"])["value"].median()  # the same in all arms
    gains = gains[gains["structure"] != OVERALL]
    index = pd.MultiIndex.from_frame(gains[["case", "structure"]])
    gains = gains.assign(volume=volume.reindex(index).to_numpy(dtype=float))
    points: pd.DataFrame = gains[np.isfinite(gains["gain"]) & (gains["volume"] > 0)]
    return points


def _limit(gain: pd.Series) -> float:
    """Half height of the panels: nearly all points, not the few where one side is missed."""
    usual, most = np.quantile(gain.abs(), [0.8, 0.98])
    return float(max(1.0, min(4 * usual, 1.15 * most)))


def _caption(
    study: StudyData, group: Group, measure: Measure, points: pd.DataFrame, limit: float
) -> str:
    beyond = int((points["gain"].abs() > limit).sum())
    edge = ""
    if beyond:
        verb = "is" if beyond == 1 else "are"
        edge = (
            f" {plural(beyond, 'point')} further out {verb} drawn at the edge, and intervals that "
            "reach so far are cut."
        )
    return (
        f"Difference in {measure.name} (points) to the undistilled student against the volume of "
        "the structure in the reference (ml, logarithmic). A dot is one structure of one case, "
        "averaged over seeds; above the zero line the arm is better. Black: mean in "
        f"{_n_bins(points)} bins of equal counts, with {study.confidence:.0%} t intervals over the "
        f"cases of the bin.{edge} {study.sample(group)}{study.notes(list(points['arm']))}"
    )


def _n_bins(points: pd.DataFrame) -> int:
    smallest = points.groupby("arm").size().min()
    return int(np.clip(smallest // _FEWEST_IN_A_BIN, 1, _BINS))


def _figure(
    study: StudyData,
    group: Group,
    measure: Measure,
    points: pd.DataFrame,
    arms: Sequence[Arm],
    limit: float,
) -> Figure:
    figure, panels, _ = small_multiples(len(arms))
    names = [name for name in structures_of(points) if name != OVERALL]
    told_apart = len(names) <= len(SERIES)
    styles = {
        name: series(index) if told_apart else Series(GREY, "o", "-")
        for index, name in enumerate(names)
    }
    edges = np.quantile(points["volume"], np.linspace(0, 1, _n_bins(points) + 1))
    for axes, arm in zip(panels, arms, strict=True):
        _panel(axes, points[points["arm"] == arm], styles, edges, limit, study.confidence)
        axes.set_title(panel_title(study.label(arm, group)), fontsize=7.5)
    low, high = points["volume"].min(), points["volume"].max()
    panels[0].set_xlim(low / 1.4, high * 1.4)
    panels[0].set_ylim(-1.05 * limit, 1.05 * limit)
    plain_log_axis(panels[0].xaxis)
    figure.supxlabel("volume in the reference (ml)", fontsize=7.5)
    figure.supylabel(measure.gain(NONE), fontsize=7.5)
    entries = [(name, marker_of(style)) for name, style in styles.items()]
    entries = entries if told_apart and len(names) > 1 else []
    mean = Line2D([], [], color=BLACK, marker="_", lw=1.2, ms=6)
    common_legend(figure, [*entries, ("mean of a bin", mean)])
    return figure


def _panel(
    axes: Axes,
    rows: pd.DataFrame,
    styles: dict[str, Series],
    edges: np.ndarray,
    limit: float,
    confidence: float,
) -> None:
    axes.set_xscale("log")
    axes.axhline(0, color=BLACK, lw=0.7, zorder=1)
    for structure, part in rows.groupby("structure", sort=False):
        style = styles[str(structure)]
        axes.plot(part["volume"], part["gain"].clip(-limit, limit), style.marker,
                  color=style.colour, ms=2.8, alpha=0.55, markeredgewidth=0, zorder=2)  # fmt: skip
    for left, right in zip(edges[:-1], edges[1:], strict=True):
        last = right == edges[-1]
        volume = rows["volume"]
        part = rows[(volume >= left) & ((volume <= right) if last else (volume < right))]
        if part["case"].nunique() < 2:
            continue
        mean, low, high = mean_interval(part.groupby("case")["gain"].mean().to_numpy(), confidence)
        axes.hlines(mean, left, right, color=BLACK, lw=1.3, zorder=4)
        middle = np.sqrt(left * right)
        axes.vlines(middle, low, high, color=BLACK, lw=0.9, zorder=4)
