"""Training curves: Dice on the validation cases, arm by arm."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from kdpipe.figures.drawing import (
    Drawing,
    common_legend,
    leave_out,
    marker_of,
    pages,
    panel_title,
    slug,
    small_multiples,
)
from kdpipe.figures.histories import (
    Histories,
    curve,
    epoch_axis,
    histories,
    mean_curve,
    panels_of,
    trainings,
)
from kdpipe.figures.keys import Arm, Group
from kdpipe.figures.study import StudyData
from kdpipe.figures.style import BASELINE, METHOD, TEACHER, Series
from kdpipe.stats.scores import NONE

_PANELS = 20


def draw(study: StudyData) -> Iterator[Drawing]:
    """Yield a drawing a group and page of arms."""
    for group in study.groups:
        found = histories(study, group)
        arms = list(panels_of(study, group, found))
        if not arms:
            leave_out("validation Dice", str(group), "no student has a history")
            continue
        yield from _validation(study, group, found, arms)


def _validation(
    study: StudyData, group: Group, found: Histories, arms: list[Arm]
) -> Iterator[Drawing]:
    shown = [arm for arm in arms if mean_curve(found[arm], "validation_dice")[0]]
    if not shown:
        leave_out("validation Dice", str(group), "it was never logged")
        return
    none = next((found[arm] for arm in shown if arm.method == NONE), [])
    teachers = {
        arm.teacher: max(values)
        for arm, tables in found.items()
        if arm.is_teacher
        and (values := [dice for t in tables for dice in curve(t, "validation_dice")[1]])
    }
    for page in pages(shown, _PANELS, multiple=4):
        figure, panels, _ = small_multiples(len(page.items))
        for axes, arm in zip(panels, page.items, strict=True):
            _validation_panel(axes, arm, found[arm], none, teachers)
            axes.set_title(panel_title(study.label(arm, group)), fontsize=7.5)
        epoch_axis(panels[0], (table for arm in page.items for table in found[arm]))
        figure.supylabel("validation Dice (%)", fontsize=7.5)
        figure.supxlabel("epoch", fontsize=7.5)
        entries = [("mean of the arm", marker_of(METHOD, line=True))]
        if none:
            entries.append(("undistilled student", _line(BASELINE)))
        if teachers:
            entries.append(("best of the teacher", _line(TEACHER)))
        common_legend(figure, entries)
        yield Drawing(
            slug("training_dice", group.dataset, group.split, group.student, page.suffix),
            f"Validation during training: {group}{page.note}",
            _caption(found, page.items),
            "Training",
            figure,
        )


def _caption(found: Histories, arms: list[Arm]) -> str:
    return (
        "Mean Dice (%) over the validation cases during training, by which the checkpoint is "
        f"selected. Thin lines are single trainings ({trainings(found, arms)} an arm: "
        "seeds and folds), the thick line with markers is their mean. In every panel the "
        "dashed line is the mean of the undistilled student and the dotted line the best "
        "validation of the teacher."
    )


def _line(style: Series) -> Line2D:
    key = marker_of(style, line=True)
    key.set_marker("none")
    return key


def _validation_panel(
    axes: Axes,
    arm: Arm,
    tables: list[pd.DataFrame],
    none: list[pd.DataFrame],
    teachers: dict[str, float],
) -> None:
    best = teachers.get(arm.teacher, max(teachers.values(), default=math.nan))
    if math.isfinite(best):
        axes.axhline(100 * best, color=TEACHER.colour, ls=TEACHER.line, lw=0.9)
    if none:
        epochs, values = mean_curve(none, "validation_dice")
        axes.plot(epochs, 100 * np.array(values), BASELINE.line, color=BASELINE.colour, lw=0.9)
    style = BASELINE if arm.is_baseline else METHOD
    for table in tables if len(tables) > 1 else ():
        epochs, values = curve(table, "validation_dice")
        axes.plot(epochs, 100 * np.array(values), color=style.colour, lw=0.5, alpha=0.6)
    epochs, values = mean_curve(tables, "validation_dice")
    every = max(1, len(epochs) // 8)
    axes.plot(epochs, 100 * np.array(values), style.marker + "-", color=style.colour, lw=1.3,
              ms=2.5, markevery=every)  # fmt: skip
