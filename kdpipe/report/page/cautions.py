"""What a reader must know before the numbers: what weakens them, the gravest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdpipe.markup import DAGGER, DOUBLE_DAGGER
from kdpipe.report.page.inputs import Inputs
from kdpipe.report.page.text import Names
from kdpipe.stats.pairing import FIELD
from kdpipe.stats.scores import NONE, OVERALL
from kdpipe.stats.wording import plural


@dataclass(frozen=True)
class Caution:
    """What a reader must know before the numbers."""

    title: str
    text: str


def cautions(inputs: Inputs) -> list[Caution]:
    """Return what weakens the numbers, the gravest first."""
    results = inputs.results
    found = _power(inputs.power)
    if results.empty:
        return found
    found += _of_papers(inputs.run) + _marks(results) + _weak_teachers(results) + _missed(results)
    students = results[results["role"] == "student"]
    if (students["n_seeds"] == 1).any():
        text = (
            "Some or all students were trained with one seed. Their intervals and verdicts cover "
            "the choice of cases only: a second training of the same student would score "
            "differently, and nothing here says by how much."
        )
        found.append(Caution("Single seed", text))
    found += _unequal(inputs.comparisons)
    if (results["unit"] == "voxel").any():
        text = (
            "Distances in voxels are of pictures of unknown scale, or of a protocol that ignores "
            "the spacing. They do not compare between data sets."
        )
        found.append(Caution("Distances in voxels", text))
    return found


def _unequal(comparisons: pd.DataFrame) -> list[Caution]:
    """Say where arms lack seeds or finite scores that others have."""
    if comparisons.empty or "n_left_out" not in comparisons:
        return []
    overall = comparisons[comparisons["structure"] == OVERALL]
    found = []
    if (overall.groupby(FIELD)["n_seeds"].nunique() > 1).any() or (overall["n_left_out"] > 0).any():
        text = (
            "Some arms lack seeds, or finite scores of cases, that others have. Comparisons pair "
            "what both arms have; the gain in the tables of results is the difference of the means "
            "that stand there, so the two can differ. Ranks rest on what all arms have. Where a "
            "distance is infinite there is no mean, and the verdict is \u201ccannot tell\u201d."
        )
        found.append(Caution("Scores that not all arms have", text))
    return found


def _power(power: pd.DataFrame) -> list[Caution]:
    """Say where no comparison could have come out, whatever the methods did."""
    if power.empty or "can_be_significant" not in power:
        return []
    weak = power[~power["can_be_significant"]]
    found = []
    keys = [*FIELD, "n_cases", "n_comparisons"]
    where: Any
    for where, rows in weak.groupby(keys, sort=False):
        dataset, split, student, n_cases, n_comparisons = where
        text = (
            f"With {plural(n_cases, 'case')} no comparison can be significant after correction "
            f"({dataset}, split {split}, student {student}: "
            f"{plural(n_comparisons, 'comparison')}, the smallest p that these cases can give is "
            f"{rows['smallest_p'].min():.2g}). "
            "\u201cCannot tell\u201d is the only honest verdict."
        )
        found.append(Caution("Low power", text))
    return found


def _of_papers(run: dict[str, Any]) -> list[Caution]:
    """Name the protocols that reproduce a paper's choices."""
    papers = [name for name, facts in run.get("definitions", {}).items() if facts.get("paper")]
    if not papers:
        return []
    text = (
        f"{', '.join(papers)}: reproduces the choices of a paper, its traps included, so that its "
        "table can be compared with. Such scores decide nothing."
    )
    return [Caution("Protocol of a paper", text)]


def _marks(results: pd.DataFrame) -> list[Caution]:
    found = []
    if "selects_on_test" in results and results["selects_on_test"].any():
        leaky = results.loc[results["selects_on_test"], ["dataset", "split"]].drop_duplicates()
        named = ", ".join(f"{data} {split}" for data, split in leaky.itertuples(index=False))
        text = (
            f"{named}: checkpoints were selected on the very cases that are scored, as the paper "
            "of this split did. Such scores are too good, and compare with nothing else."
        )
        found.append(Caution(f"{DOUBLE_DAGGER} Selected on the test cases", text))
    if "reading" in results and results["reading"].any():
        named = ", ".join(results.loc[results["reading"], "method"].unique())
        text = (
            f"{named}: a reading of its paper, whose full text could not be had. "
            "\u201ckdpipe list methods --json\u201d says what is stated there and what is not."
        )
        found.append(Caution(f"{DAGGER} Readings", text))
    return found


def _weak_teachers(results: pd.DataFrame) -> list[Caution]:
    """Name teachers that have nothing to teach, by the Dice of the first protocol."""
    rows = results[results["protocol"] == results.iloc[0]["protocol"]]
    rows = rows[(rows["structure"] == OVERALL) & (rows["metric"] == "dice")]
    keys = ["dataset", "split"]
    teachers = (
        rows[rows["role"] == "teacher"].groupby([*keys, "teacher"], sort=False)["mean"].mean()
    )
    untaught = rows[(rows["role"] == "student") & (rows["method"] == NONE)]
    students = untaught.groupby([*keys, "student"], sort=False)["mean"].mean()
    named = [
        f"{teacher} ({100 * dice:.1f}) on {dataset} {split}, beside {student} ({100 * own:.1f})"
        for (dataset, split, teacher), dice in teachers.items()
        for (*where, student), own in students.items()
        if where == [dataset, split] and dice <= own
    ]
    if not named:
        return []
    text = (
        f"Dice in per cent: {_first(named)}. A teacher that does not beat the undistilled student "
        "has nothing to teach; what the methods do here says little of them. Train it longer."
    )
    return [Caution("Teacher no better than the student", text)]


def _missed(results: pd.DataFrame) -> list[Caution]:
    """Count each structure once: by the first metric of the first protocol."""
    first: Any = results.iloc[0]
    same = (results["protocol"] == first["protocol"]) & (results["metric"] == first["metric"])
    rows = results[same & (results["structure"] == OVERALL)]
    columns = [name for name in ("n_missed", "n_false") if name in rows]
    missed = rows.assign(missed=rows[columns].sum(axis=1)).query("missed > 0")
    if missed.empty:
        return []
    total = missed.groupby(["dataset", "role", "teacher", "student", "method"], sort=False)
    counts = total["missed"].sum().sort_values(ascending=False, kind="stable")
    named = [_of_cell(*keys, n=n) for keys, n in counts.items()]
    words = {"n_missed": "missed", "n_false": "invented"}
    kinds = [f"{missed[name].sum():.0f} {words[name]}" for name in columns]
    text = (
        f"{counts.sum():.0f} structures are in only one of reference and prediction, "
        f"{' and '.join(kinds)}, over all cases and seeds ({_first(named)}). What such a structure "
        "counts is the protocol's choice; a mean of distances rises or falls with it."
    )
    return [Caution("Missed or invented structures", text)]


def _of_cell(dataset: str, role: str, teacher: str, student: str, method: str, *, n: float) -> str:
    arm = f"{student} {Names(frozenset()).arm(teacher, method)}"
    return f"{f'teacher {teacher}' if role == 'teacher' else arm} on {dataset}: {n:.0f}"


def _first(named: Sequence[str], most: int = 6) -> str:
    more = len(named) - most
    return "; ".join(named[:most]) + (f"; and {more} more" if more > 0 else "")
