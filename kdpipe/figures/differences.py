"""Paired differences to the undistilled student with their intervals: a forest plot."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdpipe.colours import BLACK, BLUE, GREY, LIGHT, VERMILLION
from kdpipe.figures.drawing import (
    Drawing,
    common_legend,
    leave_out,
    marker_of,
    name_rows,
    pages,
    shorten,
    slug,
)
from kdpipe.figures.keys import Arm, Group, Measure
from kdpipe.figures.study import StudyData
from kdpipe.figures.style import DOUBLE, MAX_ROWS, ROW, Series, new_figure
from kdpipe.stats.scores import NONE, OVERALL
from kdpipe.stats.wording import plural
from kdpipe.tuning import TUNED

Row = dict[Hashable, Any]

_PANELS = 4
#: verdict -> style, whether the marker is filled
_VERDICTS = {
    "better": (Series(BLUE, "o", "-"), True),
    "worse": (Series(VERMILLION, "v", "-"), True),
    "equivalent": (Series(GREY, "s", "-"), True),
    "cannot tell": (Series(BLACK, "o", "-"), False),
}
_AGAINST = {"none": NONE, "none_tuned": NONE + TUNED}


def draw(study: StudyData) -> Iterator[Drawing]:
    """Yield a drawing a group, metric and baseline: the mean, and pages of the structures."""
    for group in study.groups:
        for measure in study.headline(group):
            for kind, name in _AGAINST.items():
                table = _rows(study, group, measure, kind)
                if not table.empty:
                    yield from _of_table(study, group, measure, table, name)
                elif kind == "none":
                    why = "no arm is compared with none"
                    leave_out(f"differences, {measure.name}", str(group), why)


def _rows(study: StudyData, group: Group, measure: Measure, kind: str) -> pd.DataFrame:
    table = study.of_measure(study.comparisons, group, measure)
    if table.empty:
        return table
    told = np.isfinite(table["difference"]) & (table["against_kind"] == kind)
    rows: pd.DataFrame = table[told].copy()
    for column in ("difference", "low", "high", "margin"):
        rows[column] *= measure.factor
    return rows


def _of_table(
    study: StudyData, group: Group, measure: Measure, table: pd.DataFrame, against: str
) -> Iterator[Drawing]:
    names = list(dict.fromkeys(table["structure"]))
    main = OVERALL if OVERALL in names else names[0]
    means = table[table["structure"] == main].sort_values("difference", ascending=False)
    order = list(dict.fromkeys(means["arm"]))
    parts = ["differences", measure.metric, group.dataset, group.split, group.student]
    parts += [f"to-{against}"] if against != NONE else []
    title = f"{measure.name}: differences to {against}: {group}"
    for rows in pages(order, MAX_ROWS):
        arms = rows.items
        caption = _caption(study, group, measure, table, against, arms)
        figure = _main_figure(study, group, measure.gain(against), means, arms)
        yield Drawing(slug(*parts, rows.suffix), title + rows.note, caption, "Differences", figure)
        structures = [name for name in names if name != main]
        for page in pages(structures, _PANELS) if structures else ():
            yield Drawing(
                slug(*parts, "structures", rows.suffix and f"rows-{rows.suffix}", page.suffix),
                f"{title}, by structure{rows.note}{page.note}",
                f"By structure. {caption}",
                "Differences",
                _structures_figure(study, group, measure.gain(against), table, arms, page.items),
            )


def _caption(
    study: StudyData,
    group: Group,
    measure: Measure,
    table: pd.DataFrame,
    against: str,
    arms: list[Arm],
) -> str:
    cases = table["n_cases"].dropna()
    counts = f"{plural(int(cases.max()), 'case')} could be paired. " if len(cases) else ""
    margin = table["margin"].max()
    band = ""
    if np.isfinite(margin):
        band = (
            f" The grey band is the margin of ±{margin:g} {measure.difference_unit}, below which "
            "a difference does not matter."
        )
    verdicts = ", ".join(name for name in _VERDICTS if name in set(table["verdict"]))
    return (
        f"Mean difference in {measure.name} ({measure.difference_unit}) between each arm and "
        f"'{against}', paired by case and averaged over seeds, with {study.confidence:.0%} "
        f"intervals; right of the zero line the arm is better.{band} The marker shows the verdict "
        f"({verdicts}); it is filled where there is a decision, open where the data cannot tell. "
        "An arrow stands for a difference beyond the axis. An asterisk marks one that the Wilcoxon "
        "signed-rank test finds after Holm's "
        f"correction. {counts}{study.sample(group)}{study.notes(arms)}"
    )


def _main_figure(
    study: StudyData, group: Group, label: str, table: pd.DataFrame, arms: list[Arm]
) -> Figure:
    figure = new_figure(DOUBLE * 0.8, len(arms) * ROW + 1.0)
    axes = figure.subplots()
    rows = _panel(axes, study, table, arms)
    name_rows([axes], [study.label(arm, group) for arm in arms], [a.is_baseline for a in arms])
    axes.set_xlabel(label)
    numbers = axes.twinx()
    name_rows([numbers], [_numbers(rows.get(arm)) for arm in arms], [False] * len(arms))
    numbers.spines["right"].set_visible(False)
    common_legend(figure, _legend(table))
    return figure


def _structures_figure(
    study: StudyData,
    group: Group,
    label: str,
    table: pd.DataFrame,
    arms: list[Arm],
    structures: list[str],
) -> Figure:
    figure = new_figure(DOUBLE, len(arms) * ROW + 1.0)
    panels = figure.subplots(1, len(structures), sharey=True, squeeze=False)[0]
    shown = table[table["structure"].isin(structures)]
    for axes, structure in zip(panels, structures, strict=True):
        rows = _panel(axes, study, shown[shown["structure"] == structure], arms)
        for row, arm in enumerate(arms):
            if arm in rows and _is_significant(study, rows[arm]):
                axes.annotate("*", (1.0, row), xycoords=("axes fraction", "data"), va="center",
                              ha="left", annotation_clip=False)  # fmt: skip
        axes.set_title(shorten(structure))
        axes.locator_params(axis="x", nbins=4)
    name_rows(panels, [study.label(arm, group) for arm in arms], [a.is_baseline for a in arms])
    figure.supxlabel(label, fontsize=7.5)
    common_legend(figure, _legend(shown))
    return figure


def _reach(table: pd.DataFrame) -> float:
    """Largest difference that is drawn to scale: methods that failed must not squeeze the others.

    Infinite where most differences are of one size.
    """
    sizes = table["difference"].abs()
    usual = max(2 * sizes.quantile(0.75), 2 * np.nan_to_num(table["margin"].max()))
    return float(usual) if sizes.max() > 2 * usual else np.inf


def _panel(axes: Axes, study: StudyData, table: pd.DataFrame, arms: list[Arm]) -> dict[Arm, Row]:
    """Draw the rows of `arms`; return them by arm, each with whether it is significant."""
    rows: dict[Arm, Row] = {row["arm"]: row for row in table.to_dict("records")}
    reach = _reach(table)
    margin = table["margin"].max()
    if np.isfinite(margin):
        axes.axvspan(-margin, margin, color=LIGHT, alpha=0.55, lw=0, zorder=0)
    axes.axvline(0, color=BLACK, lw=0.8, zorder=1)
    for index, arm in enumerate(arms):
        if arm not in rows:
            continue
        row = rows[arm]
        style, filled = _VERDICTS.get(row["verdict"], _VERDICTS["cannot tell"])
        row["significant"] = _is_significant(study, row)
        face = style.colour if filled else "white"
        if abs(row["difference"]) > reach:
            arrow = ">" if row["difference"] > 0 else "<"
            axes.plot(np.sign(row["difference"]) * reach, index, arrow, color=style.colour, ms=4.5,
                      zorder=3, markerfacecolor=face)  # fmt: skip
            continue
        if np.isfinite([row["low"], row["high"]]).all():
            low, high = np.clip([row["low"], row["high"]], -reach, reach)
            axes.hlines(index, low, high, color=style.colour, lw=1.2, zorder=2)
        axes.plot(row["difference"], index, style.marker, color=style.colour, ms=4.5, zorder=3,
                  markerfacecolor=face)  # fmt: skip
    return rows


def _is_significant(study: StudyData, row: Row) -> bool:
    return bool(row["p_holm"] < 1 - study.confidence)


def _numbers(row: Row | None) -> str:
    if row is None:
        return ""
    star = " *" if row["significant"] else ""
    text = f"{row['difference']:+.2f}"
    if np.isfinite([row["low"], row["high"]]).all():
        text += f" [{row['low']:.2f}, {row['high']:.2f}]"
    return text.replace("-", "−") + star


def _legend(table: pd.DataFrame) -> list[tuple[str, Line2D]]:
    found = set(table["verdict"])
    return [
        (name, marker_of(style, filled, line=True))
        for name, (style, filled) in _VERDICTS.items()
        if name in found
    ]
