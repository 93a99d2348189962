"""Structures that an arm misses altogether, and those that it finds where there are none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdpipe.figures.drawing import Drawing, leave_out, name_rows, pages, slug, style_of
from kdpipe.figures.keys import Arm, Group
from kdpipe.figures.study import StudyData
from kdpipe.figures.style import DOUBLE, MAX_ROWS, ROW, new_figure

#: panel -> the status that counts, the statuses that are its chances
_KINDS = {
    "missed": ("missing_in_prediction", ("ok", "missing_in_prediction")),
    "false": ("missing_in_reference", ("missing_in_both", "missing_in_reference")),
}


def draw(study: StudyData) -> Iterator[Drawing]:
    """Yield a drawing a group and page of arms."""
    for group in study.groups:
        counts = _counts(study, group)
        kinds = [kind for kind in _KINDS if counts[kind].sum() > 0]
        if not kinds:
            leave_out("missed structures", str(group), "no arm misses or invents one")
            continue
        arms = [arm for arm in study.arms(group) if arm in counts.index]
        for page in pages(arms, MAX_ROWS):
            yield Drawing(
                slug("missed", group.dataset, group.split, group.student, page.suffix),
                f"Missed and false structures: {group}{page.note}",
                _caption(study, group, kinds, page.items),
                "Missed structures",
                _figure(study, group, counts, kinds, page.items),
            )


def _counts(study: StudyData, group: Group) -> pd.DataFrame:
    """Index `Arm`; columns of `_KINDS` and, with ``_of`` behind them, their chances."""
    rows = study.rows_of(group)
    rows = rows[rows["protocol"] == study.protocol]
    rows = rows[rows["metric"] == rows["metric"].iloc[0]] if len(rows) else rows
    table = pd.DataFrame(
        {
            **{kind: rows["status"] == status for kind, (status, _) in _KINDS.items()},
            **{f"{kind}_of": rows["status"].isin(of) for kind, (_, of) in _KINDS.items()},
        }
    )
    pairs = zip(rows["teacher"], rows["method"], strict=True)
    arms: list[Any] = [Arm(*pair) for pair in pairs]  # pandas' types know scalars alone
    table["arm"] = arms
    return table.groupby("arm").sum()


def _caption(study: StudyData, group: Group, kinds: list[str], arms: list[Arm]) -> str:
    texts = {
        "missed": "missed: the reference has the structure, the prediction not one voxel of it",
        "false": "false: the prediction has a structure that the reference of the case has not",
    }
    absent = [kind for kind in _KINDS if kind not in kinds]
    none = "".join(f" No arm has a {kind} structure." for kind in absent)
    return (
        f"Structures lost or invented as a whole ({'; '.join(texts[kind] for kind in kinds)}). "
        "A bar is the share (%) of the structures of all cases and seeds where that could happen; "
        f"beside it the counts, 'of' how many.{none} Shorter is better. {study.sample(group)}"
        f"{study.notes(arms)}"
    )


def _figure(
    study: StudyData, group: Group, counts: pd.DataFrame, kinds: list[str], arms: list[Arm]
) -> Figure:
    width = DOUBLE * 0.8 if len(kinds) > 1 else DOUBLE * 0.55
    figure = new_figure(width, len(arms) * ROW + 0.8)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        _panel(axes, counts, kind, arms)
        axes.set_xlabel(f"{kind} structures (%)")
    name_rows(panels, [study.label(arm, group) for arm in arms], [a.is_baseline for a in arms])
    return figure


def _panel(axes: Axes, counts: pd.DataFrame, kind: str, arms: list[Arm]) -> None:
    shares = 100 * counts[kind] / counts[f"{kind}_of"].replace(0, np.nan)
    numbers, chances, heights = (
        of_arm.to_dict() for of_arm in (counts[kind], counts[f"{kind}_of"], shares)
    )
    for index, arm in enumerate(arms):
        share = float(np.nan_to_num(heights[arm]))
        axes.barh(index, share, height=0.62, color=style_of(arm).colour, alpha=0.75)
        axes.annotate(f"{numbers[arm]} of {chances[arm]}", (share, index), (2, 0), va="center",
                      fontsize=7, textcoords="offset points")  # fmt: skip
    axes.set_xlim(0, 1.6 * max(float(np.nanmax(shares)), 0.1))  # room for the counts
    ticks = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(0, min(axes.get_xlim()[1], 100))
    axes.set_xticks([tick for tick in ticks if 0 <= tick <= min(axes.get_xlim()[1], 100)])
