"""The networks of a study as arms, and their scores by case and seed.

An arm is a method with its teacher for a student, or a teacher, on one split of a data set; the
cases of all folds of a split are pooled, since each is tested in one fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdpipe.settings import Statistics
from kdpipe.stats.intervals import paired_mean, seed_scatter
from kdpipe.stats.pairing import FIELD, blocks
from kdpipe.stats.reproduction import Estimate, estimate_gain
from kdpipe.stats.scores import NONE, mean_over_structures
from kdpipe.stats.verdict import margin_of
from kdpipe.tuning import TUNED

ARM = ["dataset", "split", "role", "teacher", "student", "method"]


@dataclass(frozen=True)
class Arm:
    """A network of the study by its labels; `names` are those of the catalogues."""

    dataset: str
    split: str
    role: str
    teacher: str
    student: str
    method: str
    names: tuple[str, str, str]
    remarks: tuple[str, ...]

    @property
    def baseline(self) -> tuple[str, str, str, str, str]:
        """Key of the undistilled student, tuned if this is."""
        tuned = TUNED if self.method.endswith(TUNED) else ""
        return (self.dataset, self.split, "student", self.student, NONE + tuned)


@dataclass(frozen=True)
class Scored:
    """Scores of one arm by one metric: `values` has a row a (fold, case) and a column a seed."""

    values: pd.DataFrame
    structure: str
    protocol: str
    metric: str
    unit: str

    @property
    def keys(self) -> dict[str, Any]:
        """What was scored, by the names of the columns of tables."""
        return {name: getattr(self, name) for name in ("structure", "protocol", "metric", "unit")}


class Board:
    """Scores of a study by arm: cases in rows, seeds in columns."""

    def __init__(self, scores: pd.DataFrame, run: dict[str, Any]) -> None:
        self._settings = Statistics.model_validate(run["statistics"])
        self.confidence = self._settings.confidence
        self.protocols = list(run["protocols"])
        self._entries = run.get("entries", {})
        keys = [*ARM, "fold", "seed", "case", "protocol", "metric", "unit"]
        every = pd.concat([scores, mean_over_structures(scores, keys)], ignore_index=True)
        self._values = dict(list(every.groupby([*ARM, "structure", "protocol", "metric"])))
        self._blocks = {
            tuple(block.keys[name] for name in (*FIELD, "protocol", "metric", "structure")): block
            for block in blocks(scores, self.protocols)
        }
        self.arms = [
            self._arm(key) for key in scores[ARM].drop_duplicates().itertuples(index=False)
        ]
        self._baselines = {
            (a.dataset, a.split, a.role, a.student, a.method): a
            for a in self.arms
            if a.names[2] == NONE
        }

    def _arm(self, key: Any) -> Arm:
        labels = {"teachers": key.teacher, "students": key.student, "methods": key.method}
        found = {axis: self._entry(axis, label) for axis, label in labels.items()}
        remarks = [
            f"{label} with {', '.join(f'{k} {v}' for k, v in entry['params'].items())}"
            for label, entry in zip(labels.values(), found.values(), strict=True)
            if entry.get("params")
        ]
        teacher, student, method = (entry["name"] for entry in found.values())
        return Arm(**key._asdict(), names=(teacher, student, method), remarks=tuple(remarks))

    def _entry(self, axis: str, label: str) -> dict[str, Any]:
        """Name and parameters of a label; a label that is no entry names itself."""
        entries, plain = self._entries.get(axis, {}), label.removesuffix(TUNED)
        entry: dict[str, Any] = entries.get(label) or entries.get(plain) or {"name": plain}
        return entry

    def baseline(self, arm: Arm) -> Arm | None:
        """The undistilled student of an arm."""
        return self._baselines.get(arm.baseline)

    def margin(self, unit: str) -> float:
        """Differences below this do not matter."""
        return margin_of(unit, self._settings)

    def gain(self, arm: Arm, rival: Arm, scored: Scored) -> Estimate | None:
        """How much better an arm is than its rival, paired; None if `rival` has no such score."""
        place = (arm.dataset, arm.split, arm.student)
        block = self._blocks.get((*place, scored.protocol, scored.metric, scored.structure))
        if block is None or (rival.teacher, rival.method) not in block.arms:
            return None
        both = (block.arms.index((a.teacher, a.method)) for a in (arm, rival))
        first, second = (block.values[index] for index in both)
        return estimate_gain(paired_mean(first, second, seed_scatter(block)))

    def scored(
        self, arm: Arm, structures: Sequence[str], protocols: Sequence[str], metric: str
    ) -> Scored | None:
        """The scores of an arm by the first of `structures` and `protocols` that it has."""
        for protocol in protocols:
            for structure in structures:
                key = (*(getattr(arm, name) for name in ARM), structure, protocol, metric)
                if (rows := self._values.get(key)) is not None:
                    values = rows.pivot(index=["fold", "case"], columns="seed", values="value")
                    return Scored(values, structure, protocol, metric, rows["unit"].iloc[0])
        return None
