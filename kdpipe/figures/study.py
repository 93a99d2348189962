"""The data of all figures: the tables of a study, read once, and views that several need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdpipe.figures.keys import Arm, Group, Measure
from kdpipe.markup import DAGGER
from kdpipe.paths import NO_TEACHER
from kdpipe.protocols import BANDS, direction
from kdpipe.settings import Statistics
from kdpipe.stats.scores import NONE, OVERALL, mean_over_structures, read_scores
from kdpipe.stats.tables import read_table
from kdpipe.stats.wording import arm_name, plural, span

_LONGEST_NAME = 25


class StudyData:
    """All tables of a study.

    Args:
        run: the study's ``run.json``.
        tables: folder of ``scores.csv``, ``results.csv``, ``comparisons.csv``, ``ranks.csv``.

    Raises:
        DataError: a table cannot be read.
    """

    def __init__(self, run: dict[str, Any], tables: Path):
        self.run = run
        self.scores = read_scores(tables / "scores.csv")
        self.results = read_table(tables / "results.csv")
        self.comparisons = read_table(tables / "comparisons.csv")
        self.ranks = read_table(tables / "ranks.csv")
        names = [name for name in self.scores["protocol"].unique() if name != BANDS]
        wanted = [name for name in run.get("protocols", ()) if name in names]
        self.protocol = (wanted or names or [""])[0]
        self.confidence = Statistics.model_validate(run.get("statistics", {})).confidence
        self.readings = set(run.get("readings", ()))
        self._labels: dict[Group, dict[Arm, str]] = {}
        self._means: dict[tuple[Group, str, str], pd.DataFrame] = {}
        self._rows: dict[Group, pd.DataFrame] = {}
        self._samples: dict[Group, str] = {}

    @cached_property
    def groups(self) -> list[Group]:
        """Every data set, split and student of the study, in its order."""
        students = self.scores.loc[self.scores["role"] == "student"]
        keys = students[["dataset", "split", "student"]].drop_duplicates()
        return [Group(*key) for key in keys.itertuples(index=False)]

    def rows_of(self, group: Group) -> pd.DataFrame:
        """Scores of a group's student and of the teachers on its split."""
        if group not in self._rows:
            scores = self.scores
            here = (scores["dataset"] == group.dataset) & (scores["split"] == group.split)
            here &= (scores["student"] == group.student) | (scores["role"] == "teacher")
            self._rows = {group: scores if here.all() else scores[here]}  # of one at a time
        return self._rows[group]

    @staticmethod
    def of_measure(table: pd.DataFrame, group: Group, measure: Measure) -> pd.DataFrame:
        """Rows of `comparisons` or `ranks` on a group and measure, with the column ``arm``."""
        wanted = {
            **{"dataset": group.dataset, "split": group.split, "student": group.student},
            **{"protocol": measure.protocol, "metric": measure.metric},
        }
        if table.empty:
            return table
        rows = table[(table[list(wanted)] == pd.Series(wanted)).all(axis=1)]
        pairs = zip(rows["teacher"], rows["method"], strict=True)
        arms: list[Any] = [Arm(*pair) for pair in pairs]  # pandas' types know scalars alone
        return rows.assign(arm=arms)

    def headline(self, group: Group) -> list[Measure]:
        """What figures show of a group: Dice and one HD95, as far as the protocol has them."""
        rows = self.rows_of(group)
        rows = rows[rows["protocol"] == self.protocol]
        found = rows[["metric", "unit"]].drop_duplicates("metric").itertuples(index=False)
        measures = [
            Measure(metric, self.protocol, unit, direction(self.protocol, metric))
            for metric, unit in found
        ]
        overlaps = [m for m in measures if m.sign > 0]
        distances = [m for m in measures if m.metric.startswith("hd95")]
        best = [m for m in overlaps if m.metric == "dice"] or overlaps
        return best[:1] + distances[:1]

    def by_case(self, group: Group, metric: str, protocol: str = "") -> pd.DataFrame:
        """Return one row an arm, case and structure, means over seeds.

        Args:
            group: whose student; teachers of the split are there too.
            metric: name of a metric.
            protocol: name; empty for the study's first.

        Returns:
            Columns ``arm``, ``case``, ``structure`` (`OVERALL` where there are several), ``value``
            in the tables' unit, NaN left out of means.
        """
        key = (group, metric, protocol or self.protocol)
        if key not in self._means:
            rows = self.rows_of(group)
            rows = rows[(rows["metric"] == metric) & (rows["protocol"] == key[2])]
            self._means[key] = _mean_over_seeds(rows)
        return self._means[key]

    def gains(self, group: Group, measure: Measure) -> pd.DataFrame:
        """Paired differences to ``none``: `by_case` without teachers and ``none``, plus ``gain``.

        ``gain`` is in the unit of the axis, positive for better; NaN where a pair is incomplete.
        """
        values = self.by_case(group, measure.metric, measure.protocol)
        is_none = np.array([arm.method == NONE for arm in values["arm"]], dtype=bool)
        base = values[is_none].set_index(["case", "structure"])["value"]
        base = base[~base.index.duplicated()]
        keep = np.array([not arm.is_teacher and arm.method != NONE for arm in values["arm"]], bool)
        rows = values[keep].copy()
        index = pd.MultiIndex.from_frame(rows[["case", "structure"]])
        against = base.reindex(index).to_numpy(dtype=float)
        rows["gain"] = measure.sign * measure.factor * (rows["value"].to_numpy() - against)
        return rows

    def arms(self, group: Group) -> list[Arm]:
        """All arms: ``none`` first, then methods by their mean Dice, then teachers."""
        arms = sorted(self._arms_of(group))
        if measures := self.headline(group):
            arms = self.ranking(self.by_case(group, measures[0].metric), measures[0])
        return sorted(arms, key=lambda arm: (arm.is_teacher, not arm.is_baseline))

    @staticmethod
    def ranking(values: pd.DataFrame, measure: Measure) -> list[Arm]:
        """Arms of a table of `by_case`, the best mean first; those without values last."""
        rows = values[values["structure"] == main_structure(values)]
        means = (measure.sign * rows.groupby("arm", sort=True)["value"].mean()).sort_values(
            ascending=False, kind="stable", na_position="last"
        )
        return list(means.index)

    def label(self, arm: Arm, group: Group) -> str:
        """Name of an arm, cut where it is long; the teacher is added where there are several."""
        return self._labels_of(group).get(arm, _full_name(arm, False, True))

    def _labels_of(self, group: Group) -> dict[Arm, str]:
        if group not in self._labels:
            arms, several = self._arms_of(group), len(self._teachers(group)) > 1
            full = {arm: _full_name(arm, arm.method in self.readings, several) for arm in arms}
            short = {
                arm: " from ".join(map(_short, name.split(" from "))) for arm, name in full.items()
            }
            twice = Counter(short.values())
            self._labels[group] = {
                arm: name if twice[name] == 1 else full[arm] for arm, name in short.items()
            }
        return self._labels[group]

    def _teachers(self, group: Group) -> set[str]:
        return {arm.teacher for arm in self._arms_of(group)} - {"", NO_TEACHER}

    def _arms_of(self, group: Group) -> set[Arm]:
        rows = self.rows_of(group)[["teacher", "method"]].drop_duplicates()
        return {Arm(*row) for row in rows.itertuples(index=False)}

    def sample(self, group: Group) -> str:
        """The sentence that says how many cases, seeds and folds there are, by which protocol."""
        if group not in self._samples:
            self._samples[group] = self._sample(group)
        return self._samples[group]

    def _sample(self, group: Group) -> str:
        rows = self.rows_of(group)
        rows = rows[rows["student"] == group.student]
        seeds = rows.groupby(["teacher", "method"])["seed"].nunique()
        cases, folds = rows["case"].nunique(), rows["fold"].nunique()
        pooled = f" pooled over {folds} folds" if folds > 1 else ""
        leak = " Checkpoints were selected on the very cases shown: the scores are too good."
        leak = leak if self._selects_on_test(group) else ""
        counts = f"n = {plural(cases, 'case')}{pooled}, {span(seeds, 'seed')} an arm"
        return f"{counts}; protocol {self.protocol}.{leak}"

    def _selects_on_test(self, group: Group) -> bool:
        table = self.results
        if "selects_on_test" not in table:
            return False
        here = (table["dataset"] == group.dataset) & (table["split"] == group.split)
        return bool(table.loc[here, "selects_on_test"].any())

    def notes(self, arms: Sequence[Arm]) -> str:
        """Sentences on the marks of labels, empty where there is nothing to say."""
        if any(arm.method in self.readings for arm in arms):
            return f" {DAGGER}: a reading of a paper whose full text could not be had."
        return ""


def main_structure(values: pd.DataFrame) -> str:
    """`OVERALL`, or the only structure of a table of `StudyData.by_case`."""
    names = values["structure"].unique()
    return OVERALL if OVERALL in names or len(names) == 0 else str(names[0])


def structures_of(values: pd.DataFrame) -> list[str]:
    """Structures of a table of `StudyData.by_case`, the mean over them first."""
    names = list(dict.fromkeys(values["structure"]))
    return sorted(names, key=lambda name: name != OVERALL)


def _mean_over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over structures a case and seed first, as the tables do, then over seeds."""
    keys = ["teacher", "method", "case", "structure"]
    if rows["structure"].nunique() > 1:
        cell = ["teacher", "method", "fold", "seed", "case"]
        rows = pd.concat([rows, mean_over_structures(rows, cell)], ignore_index=True)
    means = rows.groupby(keys, sort=False)["value"].mean().reset_index()
    pairs = zip(means.pop("teacher"), means.pop("method"), strict=True)
    means.insert(0, "arm", [Arm(*pair) for pair in pairs])
    return means


def _full_name(arm: Arm, reading: bool, with_teacher: bool) -> str:
    if arm.is_teacher:
        return f"{arm.teacher} (teacher)"
    return arm_name(arm.teacher if with_teacher else "", arm.method, reading=reading)


def _short(name: str) -> str:
    half = (_LONGEST_NAME - 1) // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}…{name[-half:]}"
