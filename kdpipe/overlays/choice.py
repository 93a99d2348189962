"""Which cases of a study are shown, and beside which of its networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdpipe.errors import DataError
from kdpipe.stats.scores import CELL, OVERALL, UNDISTILLED, read_scores
from kdpipe.stats.wording import arm_name

_ARM = ["teacher", "method"]
_SHOWN = 3  # distilled students in a picture


@dataclass(frozen=True)
class CaseResult:
    """One network's result on one case.

    Attributes:
        kind: ``teacher``, ``none`` (the undistilled student) or ``distilled``.
        label: its name.
        seed: the one that is shown, the lowest.
        folder: cell of the fold that tests the case.
        dice: structure -> Dice in [0, 1] of the case by this seed, with the mean `OVERALL`; NaN
            where it is undefined.
    """

    kind: str
    label: str
    seed: int
    folder: str
    dice: Mapping[str, float]

    @property
    def title(self) -> str:
        """Its name and mean Dice, for the head of a column."""
        prefix = "Teacher " if self.kind == "teacher" else ""
        mean = self.dice[OVERALL]
        return f"{prefix}{self.label}\nDice " + ("–" if math.isnan(mean) else f"{100 * mean:.1f}")


@dataclass(frozen=True)
class Choice:
    """One case to show: of `n_cases`, by the mean Dice of `ranked_by`, with its columns."""

    dataset: str
    split: str
    student: str
    case: str
    role: str
    n_cases: int
    ranked_by: str
    arms: Sequence[CaseResult]


def read_dice(file: Path, protocol: str) -> pd.DataFrame:
    """Read the Dice of every case and structure from ``scores.csv``.

    Raises:
        DataError: the file is unreadable or has no Dice by this protocol.
    """
    table = read_scores(file)
    table = table[(table["metric"] == "dice") & (table["protocol"] == protocol)]
    if table.empty:
        raise DataError(f"{file}: has no Dice by protocol {protocol!r}. Evaluate the study again")
    return table


def choose(run: Mapping[str, Any], dice: pd.DataFrame) -> list[Choice]:
    """Choose the worst, median and best case of each student of each split.

    They are those of the undistilled student: a case counts by its mean Dice over structures and
    then seeds; equal ones are ordered by name. A student that is only distilled is ranked by the
    best of its arms. Beside them stand the three arms of best mean Dice over all cases, and the
    teacher of the first of them.
    """
    folders = {tuple(str(cell[key]) for key in CELL): cell["folder"] for cell in run["cells"]}
    choices = []
    for (dataset, split), part in dice.groupby(["dataset", "split"], sort=False):
        teachers = part[part["role"] == "teacher"]
        students = part[part["role"] == "student"]
        for student, rows in students.groupby("student", sort=False):
            found = _Student(folders, teachers, rows)
            shown = found.cases()
            choices += [
                Choice(
                    str(dataset),
                    str(split),
                    str(student),
                    case,
                    role,
                    len(found.ranking),
                    found.ranked_by,
                    found.arms(case),
                )
                for role, case in shown.items()
            ]
    return choices


class _Student:
    """The scores of one student, and of the teachers of its split."""

    def __init__(
        self,
        folders: Mapping[tuple[str, ...], str],
        teachers: pd.DataFrame,
        rows: pd.DataFrame,
    ):
        self.folders, self.teachers, self.rows = folders, teachers, rows
        means = _case_means(rows, _ARM)
        of_arm = means.groupby(_ARM)["value"].mean().sort_index()
        order = of_arm.sort_values(ascending=False, kind="stable", na_position="last").index
        self.distilled = [arm for arm in order if arm[1] not in UNDISTILLED][:_SHOWN]
        baselines = [arm for arm in sorted(order, key=lambda arm: arm[1]) if arm[1] in UNDISTILLED]
        self.none = baselines[0] if baselines else None  # before a tuned one, as in the tables
        ranked = self.none or self.distilled[0]
        self.ranked_by = "the undistilled student" if self.none else arm_name(*ranked)
        cases = means[(means[_ARM] == list(ranked)).all(axis=1)].dropna(subset="value")
        self.ranking = cases.sort_values(["value", "case"], kind="stable")["case"].tolist()

    def cases(self) -> dict[str, str]:
        """Return role -> case; fewer than three where there are fewer cases."""
        n, roles = len(self.ranking), dict[str, str]()
        for role, at in (("median", (n - 1) // 2), ("worst", 0), ("best", n - 1)):
            if n == 2 and role == "median":
                continue
            if n and self.ranking[at] not in roles.values():
                roles[role] = self.ranking[at]
        return {role: roles[role] for role in ("worst", "median", "best") if role in roles}

    def arms(self, case: str) -> list[CaseResult]:
        """Return the columns of a case's picture: teacher, undistilled, best distilled ones."""
        rows = self.rows[self.rows["case"] == case]
        found = [self._teacher(case)]
        if self.none:
            found.append(
                self._arm("none", f"{self.none[1]} (undistilled)", _only(rows, *self.none))
            )
        for arm in self.distilled:
            found.append(self._arm("distilled", arm_name(*arm), _only(rows, *arm)))
        return [arm for arm in found if arm is not None]

    def _teacher(self, case: str) -> CaseResult | None:
        """The teacher of the best arm; where that has none, the best of the split."""
        means = _case_means(self.teachers, ["teacher"]).groupby("teacher")["value"].mean()
        taught = [teacher for teacher, _ in self.distilled if teacher in means.index]
        if not taught and means.empty:
            return None
        name = taught[0] if taught else str(means.idxmax())
        rows = self.teachers[(self.teachers["case"] == case) & (self.teachers["teacher"] == name)]
        return self._arm("teacher", name, rows)

    def _arm(self, kind: str, label: str, rows: pd.DataFrame) -> CaseResult | None:
        """Describe what the lowest seed made of a case; None where nobody predicted it."""
        if rows.empty:
            return None
        rows = rows[rows["seed"] == rows["seed"].min()]
        keys = tuple(str(rows.iloc[0][key]) for key in CELL)
        if keys not in self.folders:
            raise DataError(f"scores of {', '.join(filter(None, keys))}: no such cell in the study")
        dice = dict(zip(rows["structure"], rows["value"].tolist(), strict=True))
        valid = [value for value in dice.values() if not math.isnan(value)]
        mean = float(np.mean(valid)) if valid else math.nan
        return CaseResult(
            kind, label, int(rows.iloc[0]["seed"]), self.folders[keys], dice | {OVERALL: mean}
        )


def _case_means(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean Dice of each case over structures, then seeds; columns `by`, case, value."""
    seeds = rows.groupby([*by, "case", "seed"], sort=True, as_index=False)["value"].mean()
    cases: pd.DataFrame = seeds.groupby([*by, "case"], sort=True, as_index=False)["value"].mean()
    return cases


def _only(rows: pd.DataFrame, teacher: str, method: str) -> pd.DataFrame:
    return rows[(rows["teacher"] == teacher) & (rows["method"] == method)]
