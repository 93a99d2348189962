"""Training curves: the terms of the loss, and how strongly each of them pulls at the student."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdpipe.colours import BLACK
from kdpipe.figures.drawing import (
    Drawing,
    common_legend,
    leave_out,
    pages,
    panel_title,
    plain_log_axis,
    shorten,
    slug,
    small_multiples,
)
from kdpipe.figures.histories import (
    NORM,
    SEGMENTATION,
    Histories,
    curve,
    epoch_axis,
    histories,
    panels_of,
    terms_of,
    trainings,
)
from kdpipe.figures.keys import Arm, Group
from kdpipe.figures.study import StudyData
from kdpipe.figures.style import Series, series

_PANELS = 12
_MOST = 5
_SEGMENTATION = Series(BLACK, "", "-")
Curve = Callable[[pd.DataFrame, str], tuple[list[float], list[float]]]


def draw(study: StudyData) -> Iterator[Drawing]:
    """Yield drawings of the terms and of their gradients, a group and page of arms each."""
    for group in study.groups:
        found = histories(study, group)
        arms = list(panels_of(study, group, found))
        distilled = [arm for arm in arms if len(terms_of(found[arm])) > 1]
        if not arms:
            leave_out("terms of the loss", str(group), "no student has a history")
            continue
        yield from _of_terms(study, group, found, arms)
        if not distilled:
            why = "no method has a term beside the segmentation loss"
            leave_out("gradients of the terms", str(group), why)
            continue
        yield from _of_gradients(study, group, found, distilled)


def _of_terms(
    study: StudyData, group: Group, found: Histories, arms: list[Arm]
) -> Iterator[Drawing]:
    for page in pages(arms, _PANELS, multiple=3):
        caption = (
            "Terms of the training loss, weighted as they are added, mean over the steps of an "
            "epoch (logarithmic). The black line is the segmentation loss, the others are the "
            f"method's own; one line a training ({trainings(found, page.items)} an arm: seeds and "
            "folds). Terms of different methods do not compare by their size; their gradients do. "
            f"A term is not drawn where it is not above 0.{_selection(found, page.items)}"
        )
        yield Drawing(
            slug("training_terms", group.dataset, group.split, group.student, page.suffix),
            f"Terms of the training loss: {group}{page.note}",
            caption,
            "Training",
            _figure(study, group, found, page.items, curve, "term of the loss"),
        )


def _of_gradients(
    study: StudyData, group: Group, found: Histories, arms: list[Arm]
) -> Iterator[Drawing]:
    for page in pages(arms, _PANELS, multiple=3):
        caption = (
            "How strongly each term of a method pulls: L2 norm of its gradient on the student's "
            "parameters, divided by that of the segmentation loss, at the first step and at the "
            "first step after each validation (logarithmic). At 1, the black line, both pull "
            "alike; far below it the method hardly acts, far above it the labels hardly do. One "
            f"line a training ({trainings(found, page.items)} an arm: seeds and folds)."
            f"{_selection(found, page.items)}"
        )
        yield Drawing(
            slug("training_gradients", group.dataset, group.split, group.student, page.suffix),
            f"Gradients of the methods' terms: {group}{page.note}",
            caption,
            "Training",
            _figure(study, group, found, page.items, _ratio, "gradient / that of segmentation"),
        )


def _selection(found: Histories, arms: list[Arm]) -> str:
    if any(len(terms_of(found[arm])) > _MOST + 1 for arm in arms):
        return f" Of a method with more than {_MOST} terms the {_MOST} largest are shown."
    return ""


def _ratio(table: pd.DataFrame, term: str) -> tuple[list[float], list[float]]:
    """Gradient of a term over that of the segmentation loss; nothing for the latter itself."""
    columns = [NORM + term, NORM + SEGMENTATION]
    if term == SEGMENTATION or not set(columns) <= set(table):
        return [], []
    rows = table[["epoch", *columns]].dropna()
    rows = rows[rows[columns[1]] > 0]
    return rows["epoch"].tolist(), (rows[columns[0]] / rows[columns[1]]).tolist()


def _figure(
    study: StudyData, group: Group, found: Histories, arms: list[Arm], values: Curve, label: str
) -> Figure:
    figure, panels, _ = small_multiples(len(arms), most_columns=3, panel=1.7)
    for axes, arm in zip(panels, arms, strict=True):
        axes.set_yscale("log")
        if values is _ratio:
            axes.axhline(1.0, color=BLACK, lw=0.8, zorder=1)
        _panel(axes, found[arm], values, panel_title(study.label(arm, group)))
    plain_log_axis(panels[0].yaxis)  # all panels share both axes
    epoch_axis(panels[0], (table for arm in arms for table in found[arm]))
    if values is curve:
        common_legend(figure, [("segmentation loss", Line2D([], [], color=BLACK, lw=0.9))])
    figure.supxlabel("epoch", fontsize=7.5)
    figure.supylabel(label, fontsize=7.5)
    return figure


def _panel(axes: Axes, tables: list[pd.DataFrame], values: Curve, title: str) -> None:
    shown = _largest(tables, values)
    others = [term for term in terms_of(tables) if term != SEGMENTATION]
    for term in shown:
        style = _SEGMENTATION if term == SEGMENTATION else series(others.index(term))
        for number, table in enumerate(tables):
            epochs, numbers = values(table, term)
            positive = [value if value > 0 else np.nan for value in numbers]
            axes.plot(epochs, positive, style.line, color=style.colour, lw=0.9,
                      marker=style.marker if len(epochs) <= 25 or values is _ratio else "",
                      ms=2.5, markevery=max(1, len(epochs) // 8),
                      label=None if number or term == SEGMENTATION else shorten(term))  # fmt: skip
    axes.legend(
        *axes.get_legend_handles_labels(),
        title=title,
        title_fontproperties={"size": 7.5, "weight": "bold"},
        alignment="left",
        loc="lower left",
        bbox_to_anchor=(-0.03, 0.98),
        handlelength=1.8,
        borderpad=0.1,
        labelspacing=0.2,
    )


def _largest(tables: list[pd.DataFrame], values: Curve) -> list[str]:
    """The terms to show in the order of the log: segmentation and the largest of the others."""
    sizes = {}
    for term in terms_of(tables):
        numbers = [value for table in tables for value in values(table, term)[1]]
        if any(value > 0 for value in numbers):
            sizes[term] = float(np.mean(np.abs(numbers)))
    others = sorted(sizes.keys() - {SEGMENTATION}, key=lambda term: (-sizes[term], term))[:_MOST]
    return [term for term in sizes if term == SEGMENTATION or term in others]
