"""The ``train.csv`` of each cell, for the figures of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from kdpipe.figures.drawing import leave_out
from kdpipe.figures.keys import Arm, Group
from kdpipe.figures.study import StudyData
from kdpipe.stats.wording import span

#: column of the gradient of a term; a column that has one is a term of the loss
NORM = "gradient_norm_"
#: the supervised term, which every network has
SEGMENTATION = "segmentation"

#: arm -> the ``train.csv`` of each seed and fold
Histories = dict[Arm, list[pd.DataFrame]]


def histories(study: StudyData, group: Group) -> Histories:
    """Return arm -> histories of its seeds and folds, of a student and the teachers of its split.

    A cell without a readable history, or that was never trained here, is left out with a line in
    the log.
    """
    found: Histories = {}
    for cell in study.run["cells"]:
        here = (cell["dataset"], cell["split"]) == (group.dataset, group.split)
        if here and (cell["role"] == "teacher" or cell["student"] == group.student):
            table = _read(Path(cell["folder"]) / "train.csv", group)
            if table is not None:
                found.setdefault(Arm(cell["teacher"], cell["method"]), []).append(table)
    return found


def _read(file: Path, group: Group) -> pd.DataFrame | None:
    try:
        table: pd.DataFrame = pd.read_csv(file).apply(pd.to_numeric, errors="coerce")
    except (OSError, ValueError) as error:
        leave_out("training", str(group), f"{file} is not readable ({error})")
        return None
    if table.empty or "epoch" not in table or table["epoch"].isna().all():
        leave_out("training", str(group), f"{file} has no epoch")
        return None
    return table


def terms_of(tables: list[pd.DataFrame]) -> list[str]:
    """Terms of an arm's loss: the segmentation loss first, the others as they were logged."""
    names = dict.fromkeys(
        column.removeprefix(NORM)
        for table in tables
        for column in table.columns
        if column.startswith(NORM) and column.removeprefix(NORM) in table
    )
    return sorted(names, key=lambda name: name != SEGMENTATION) or [SEGMENTATION]


def curve(table: pd.DataFrame, column: str) -> tuple[list[float], list[float]]:
    """Epochs and values of a column where it was logged; empty where it never was."""
    if column not in table:
        return [], []
    rows = table[["epoch", column]].dropna()
    return rows["epoch"].tolist(), rows[column].tolist()


def mean_curve(tables: list[pd.DataFrame], column: str) -> tuple[list[float], list[float]]:
    """Mean over histories at each epoch where any has a value."""
    parts = [table[["epoch", column]] for table in tables if column in table]
    if not parts:
        return [], []
    means = pd.concat(parts).dropna().groupby("epoch")[column].mean()
    return means.index.tolist(), means.tolist()


def panels_of(study: StudyData, group: Group, there: Histories) -> Iterator[Arm]:
    """Arms of a figure of training in the order of all figures: ``none``, methods, no teachers."""
    yield from (arm for arm in study.arms(group) if arm in there and not arm.is_teacher)


def trainings(found: Histories, arms: Sequence[Arm]) -> str:
    """Return how many trainings an arm has, for a caption."""
    return span((len(found[arm]) for arm in arms), "training")


def epoch_axis(axes: Axes, tables: Iterable[pd.DataFrame]) -> None:
    """Let an axis of epochs reach from 0 to the last one, at whole numbers."""
    axes.set_xlim(0, 1.04 * max(table["epoch"].max() for table in tables))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
