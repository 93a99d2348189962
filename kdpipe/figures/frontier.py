"""Accuracy against cost: what a network costs and how good it is, with and without a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdpipe.colours import GREY
from kdpipe.figures.drawing import (
    Drawing,
    common_legend,
    leave_out,
    marker_of,
    plain_log_axis,
    slug,
)
from kdpipe.figures.keys import Arm, Group, Measure
from kdpipe.figures.study import StudyData, main_structure
from kdpipe.figures.style import DOUBLE, Series, new_figure, series
from kdpipe.stats.scores import NONE

#: column of the results -> label of the axis
_COSTS = {
    "parameters": "parameters",
    "macs": "MACs of one window",
    "cpu_ms": "latency of one window, CPU (ms)",
    "cpu_mb": "peak memory, CPU (MB)",
    "gpu_ms": "latency of one window, GPU (ms)",
    "gpu_mb": "peak memory, GPU (MB)",
}
#: those that are counted, in thousands, millions ...
_COUNTS = {"parameters", "macs"}
_KEY = Series(GREY, "o", "-")
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class _Network:
    """Scores of one network: a teacher has one arm, a student one a method."""

    name: str
    is_teacher: bool
    style: Series
    costs: dict[str, float]
    none: float
    best: float
    worst: float
    best_arm: str


def draw(study: StudyData) -> Iterator[Drawing]:
    """Yield a drawing a data set and split, with all its students and teachers."""
    places = dict.fromkeys((group.dataset, group.split) for group in study.groups)
    for dataset, split in places:
        groups = [g for g in study.groups if (g.dataset, g.split) == (dataset, split)]
        where = f"{dataset}, split {split}"
        measures = study.headline(groups[0])
        if not measures or measures[0].sign < 0:
            leave_out("accuracy and cost", where, "the protocol has no overlap")
            continue
        networks = _networks(study, groups, measures[0])
        costs = [
            name
            for name in _COSTS
            if sum(np.isfinite(network.costs[name]) for network in networks) >= 2
        ]
        if not costs:
            leave_out("accuracy and cost", where, "fewer than two networks have scores and costs")
            continue
        yield Drawing(
            slug("frontier", dataset, split),
            f"Accuracy and cost: {where}",
            _caption(study, groups, measures[0], networks),
            "Cost",
            _figure(networks, costs, measures[0]),
        )


def _networks(study: StudyData, groups: list[Group], measure: Measure) -> list[_Network]:
    found: list[_Network] = []
    teachers: dict[str, float] = {}
    for group in groups:
        means = _means(study, group, measure)
        teachers |= {arm.teacher: value for arm, value in means.items() if arm.is_teacher}
        arms = {arm: value for arm, value in means.items() if not arm.is_teacher}
        if arms:
            found.append(_student(study, group, arms, len(found)))
    for name, value in teachers.items():
        costs = _costs(study, groups[0], "teacher", name)
        style = series(len(found))
        found.append(_Network(name, True, style, costs, np.nan, value, value, ""))
    return found


def _means(study: StudyData, group: Group, measure: Measure) -> dict[Arm, float]:
    values = study.by_case(group, measure.metric)
    rows = values[values["structure"] == main_structure(values)]
    means = rows.groupby("arm")["value"].mean().dropna() * measure.factor
    of_arm: dict[Any, float] = means.to_dict()
    return of_arm


def _student(study: StudyData, group: Group, arms: dict[Arm, float], index: int) -> _Network:
    none = [value for arm, value in arms.items() if arm.method == NONE]
    best = max(arms, key=lambda arm: arms[arm])
    return _Network(
        group.student,
        False,
        series(index),
        _costs(study, group, "student", group.student),
        none[0] if none else np.nan,
        arms[best],
        min(arms.values()),
        study.label(best, group),
    )


def _costs(study: StudyData, group: Group, role: str, network: str) -> dict[str, float]:
    table = study.results
    rows = table[(table["dataset"] == group.dataset) & (table["role"] == role)]
    rows = rows[rows[role] == network]
    found = {}
    for name in _COSTS:
        values = rows[name].dropna().tolist() if name in rows else []
        found[name] = float(values[0]) if values and values[0] > 0 else np.nan
    return found


def _caption(
    study: StudyData, groups: list[Group], measure: Measure, networks: list[_Network]
) -> str:
    best = "; ".join(f"{n.name}: {n.best_arm}" for n in networks if n.best_arm)
    return (
        f"Mean {measure.name} ({measure.shown_unit}) over cases against what a network costs "
        "(logarithmic; each panel another cost, measured on one window of the sliding window). "
        "All arms of one student cost the same: its bar reaches from its worst to its best arm "
        "(a triangle at the lower edge: the worst lies below), "
        "the open marker is the undistilled student, the filled one the best arm (chosen on the "
        f"very cases shown, hence flattered; {best}). Diamonds are teachers. The dashed line "
        "joins the networks that no cheaper network equals: what is below it is not worth its "
        f"cost. {study.sample(groups[0])}"
    )


def _figure(networks: list[_Network], costs: list[str], measure: Measure) -> Figure:
    columns = min(2, len(costs))
    rows = -(-len(costs) // columns)
    figure = new_figure(DOUBLE if columns > 1 else DOUBLE / 2, 1.9 * rows + 0.7)
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for spare in panels[len(costs) :]:
        spare.remove()
    floor = _floor(networks)
    for axes, cost in zip(panels, costs, strict=False):
        _panel(axes, networks, cost, floor)
        axes.set_xlabel(_COSTS[cost])
    for axes in panels[: len(costs) : columns]:
        axes.set_ylabel(f"{measure.name} ({measure.shown_unit})")
    entries = [(_legend_name(network), _key(network)) for network in networks]
    if any(np.isfinite(network.none) for network in networks):
        entries += [("best arm", marker_of(_KEY)), ("undistilled", marker_of(_KEY, filled=False))]
    common_legend(figure, entries, columns=4)
    return figure


def _floor(networks: list[_Network]) -> float:
    """Lowest value that is drawn to scale: a method that failed must not flatten the others."""
    shown = [value for n in networks for value in (n.none, n.best) if np.isfinite(value)]
    room = max(max(shown) - min(shown), 2.0)
    floor = min(shown) - room
    return floor if min(n.worst for n in networks) < floor else -np.inf


def _legend_name(network: _Network) -> str:
    return f"{network.name} (teacher)" if network.is_teacher else network.name


def _marker(network: _Network) -> str:
    return "D" if network.is_teacher else network.style.marker


def _key(network: _Network) -> Line2D:
    return Line2D([], [], color=network.style.colour, marker=_marker(network), linestyle="none")


def _panel(axes: Axes, networks: list[_Network], cost: str, floor: float) -> None:
    there = [network for network in networks if np.isfinite(network.costs[cost])]
    axes.set_xscale("log")
    points = sorted((n.costs[cost], -n.best) for n in there)
    front = [
        point
        for index, point in enumerate(points)
        if all(point[1] < cheaper for _, cheaper in points[:index])
    ]
    axes.plot([x for x, _ in front], [-y for _, y in front], "--", color=GREY, lw=0.8, zorder=1)
    for network in there:
        x, colour = network.costs[cost], network.style.colour
        axes.vlines(x, max(network.worst, floor), network.best, color=colour, lw=1.0, zorder=2)
        if network.worst < floor:
            axes.plot(x, floor, "v", color=colour, ms=4, zorder=2, clip_on=False)
        axes.plot(x, network.best, _marker(network), color=colour, ms=5, zorder=4)
        axes.plot(x, network.none, _marker(network), color=colour, ms=8, zorder=3,
                  markerfacecolor="white")  # fmt: skip
    low, high = points[0][0], points[-1][0]
    room = max((high / low) ** 0.12, 1.25)
    axes.set_xlim(low / room, high * room)
    axes.margins(y=0.1)
    if np.isfinite(floor):
        axes.set_ylim(bottom=floor)
    plain_log_axis(axes.xaxis, _counted if cost in _COUNTS else "{:g}".format)


def _counted(value: float) -> str:
    for size, prefix in _PREFIXES:
        if value >= size:
            return f"{value / size:g} {prefix}"
    return f"{value:g}"
