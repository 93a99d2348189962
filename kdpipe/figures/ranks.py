"""Rank of each arm, how stable it is, and a critical difference.

Two ranks are shown, as they answer different questions. The bootstrap ranks the arms' *means* in
each resample of cases and seeds: would the order hold in another study of this kind? Nemenyi's
critical difference (Demsar, JMLR 7, 2006) is one of the mean of the ranks *within each case*: is
an arm ahead in most cases, by however little? Its approximation is worth nothing below five cases.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import studentized_range

from kdpipe.colours import LIGHT
from kdpipe.figures.drawing import Drawing, leave_out, name_rows, pages, slug, style_of
from kdpipe.figures.keys import Arm, Group, Measure
from kdpipe.figures.study import StudyData, main_structure
from kdpipe.figures.style import DOUBLE, MAX_ROWS, ROW, Series, new_figure

_FEWEST_CASES = 5


def draw(study: StudyData) -> Iterator[Drawing]:
    """Yield a drawing a group, metric and page of arms."""
    for group in study.groups:
        for measure in study.headline(group):
            table = _rows(study, group, measure)
            if len(table) < 2:
                why = "fewer than two arms are ranked"
                leave_out(f"ranks, {measure.name}", str(group), why)
                continue
            ranks = _case_ranks(study, group, measure, list(table["arm"]))
            width = critical_difference(len(table), len(ranks), study.confidence)
            for page in pages(list(table["arm"]), MAX_ROWS):
                parts = (measure.metric, group.dataset, group.split, group.student, page.suffix)
                yield Drawing(
                    slug("ranks", *parts),
                    f"Ranks by {measure.name}: {group}{page.note}",
                    _caption(study, group, measure, page.items, len(ranks), width),
                    "Ranks",
                    _figure(study, group, table, page.items, ranks.mean(), width),
                )


def critical_difference(n_arms: int, n_cases: int, confidence: float) -> float:
    """Nemenyi's critical difference of mean ranks; NaN for fewer than five cases or two arms.

    Args:
        n_arms: ranked arms.
        n_cases: cases that rank all of them.
        confidence: 1 - alpha, in (0, 1).
    """
    if n_cases < _FEWEST_CASES or n_arms < 2:
        return math.nan
    quantile = studentized_range.ppf(confidence, n_arms, np.inf) / math.sqrt(2)
    return float(quantile * math.sqrt(n_arms * (n_arms + 1) / (6 * n_cases)))


def _rows(study: StudyData, group: Group, measure: Measure) -> pd.DataFrame:
    table = study.of_measure(study.ranks, group, measure)
    if table.empty:
        return table
    ranked: pd.DataFrame = table[np.isfinite(table["mean_rank"])]
    return ranked.sort_values("mean_rank", kind="stable")


def _case_ranks(study: StudyData, group: Group, measure: Measure, arms: list[Arm]) -> pd.DataFrame:
    """Ranks within each case that all arms have a value of: a row a case, a column an arm."""
    values = study.by_case(group, measure.metric)
    rows = values[(values["structure"] == main_structure(values)) & values["arm"].isin(arms)]
    table = rows.pivot(index="case", columns="arm", values="value").reindex(columns=arms).dropna()
    return table.rank(axis=1, ascending=measure.sign < 0)


def _caption(
    study: StudyData, group: Group, measure: Measure, arms: list[Arm], n_cases: int, width: float
) -> str:
    third = (
        f" Ranks within cases and their critical difference are left out, as {n_cases} cases with "
        "all arms are too few."
    )
    if np.isfinite(width):
        third = (
            f" Right: mean of the ranks within the {n_cases} cases that have all arms; the shaded "
            f"range is Nemenyi's critical difference of {width:.2f} ranks from the best, and arms "
            "in it are not told apart from the best by ranks within cases."
        )
    return (
        f"Left: rank of the arm's mean {measure.name} (1 is best) over bootstrap samples of cases "
        f"and seeds, mean and {study.confidence:.0%} interval. Next: share of the samples in which "
        f"the arm is the best.{third} {study.sample(group)}{study.notes(arms)}"
    )


def _figure(
    study: StudyData,
    group: Group,
    table: pd.DataFrame,
    arms: list[Arm],
    within: pd.Series,
    width: float,
) -> Figure:
    figure = new_figure(DOUBLE, len(arms) * ROW + 0.8)
    widths = (2.0, 1.0, 1.6) if np.isfinite(width) else (2.0, 1.0)
    panels = figure.subplots(1, len(widths), sharey=True, width_ratios=widths)
    rows = {row["arm"]: row for row in table.to_dict("records")}
    for index, arm in enumerate(arms):
        _row(panels, index, rows[arm], style_of(arm))
    labels = [study.label(arm, group) for arm in arms]
    name_rows(panels, labels, [arm.is_baseline for arm in arms])
    panels[1].set_xlim(0, max(10.0, 125 * np.nanmax([*table["p_best"], 0.0])))
    panels[0].set_xlabel("rank of the mean (1 is best)")
    panels[0].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panels[1].set_xlabel("best (% of samples)")
    if np.isfinite(width):
        panels[2].axvspan(within.min(), within.min() + width, color=LIGHT, alpha=0.55, lw=0)
        means: dict[Any, float] = within.to_dict()
        for index, arm in enumerate(arms):
            style = style_of(arm)
            panels[2].plot(means[arm], index, style.marker, color=style.colour, ms=4.5)
        panels[2].set_xlabel("mean rank within cases")
    return figure


def _row(panels: Sequence[Axes], index: int, row: dict[Hashable, Any], style: Series) -> None:
    panels[0].hlines(index, row["rank_low"], row["rank_high"], color=style.colour, lw=1.2)
    panels[0].plot(row["mean_rank"], index, style.marker, color=style.colour, ms=4.5)
    share = 100 * row["p_best"]
    panels[1].barh(index, share, height=0.62, color=style.colour, alpha=0.7)
    if np.isfinite(share):
        text = "<1" if 0 < share < 1 else f"{share:.0f}"
        panels[1].annotate(text, (share, index), (2, 0), textcoords="offset points", va="center",
                           fontsize=7)  # fmt: skip
