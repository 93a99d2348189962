"""The answer of a study in sentences.

They say what `comparisons.csv` holds and nothing else: a verdict is never made here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdpipe.markup import DOUBLE_DAGGER
from kdpipe.report.page.inputs import Inputs
from kdpipe.report.page.text import Names, amount, number
from kdpipe.settings import Statistics
from kdpipe.stats.pairing import FIELD
from kdpipe.stats.scores import OVERALL
from kdpipe.stats.wording import metric_name, p_value, plural
from kdpipe.tuning import TUNED


@dataclass(frozen=True)
class Answer:
    """What was found for one student on one data set: the best arm, then all by verdict."""

    heading: str
    lead: str
    others: list[str]


def answers(inputs: Inputs) -> list[Answer]:
    """Return the verdicts by the first protocol's Dice, mean over structures.

    A protocol without Dice is told by its first metric.
    """
    overall, metric = _primary(inputs)
    if overall.empty:
        return []
    table = overall[overall["metric"] == metric]
    names = Names.of(inputs.run)
    confidence = Statistics.model_validate(inputs.run.get("statistics", {})).confidence
    found = []
    for (dataset, split, student), rows in table.groupby(FIELD, sort=False):
        against_none = _untuned(rows[rows["against_kind"] == "none"])
        if against_none.empty:
            continue
        ranked = against_none.sort_values("difference", ascending=False, kind="stable")
        others = _others(ranked, names) + _tuned(rows[rows["against_kind"] == "none_tuned"], names)
        others += _beside(rows[rows["against_kind"] == "best"], names)
        same = (overall[FIELD] == [dataset, split, student]).all(axis=1)
        others += _by_distance(_untuned(overall[same & (overall["against_kind"] == "none")]), names)
        watermark = DOUBLE_DAGGER if against_none["selects_on_test"].any() else ""
        heading = f"{dataset}, split {split}{watermark}, student {student}"
        heading += f", teacher {names.teacher}" if names.teacher else ""
        found.append(Answer(heading, _lead(ranked, names, confidence), others))
    return found


def _untuned(rows: pd.DataFrame) -> pd.DataFrame:
    """Leave out arms that had trials which the undistilled student had not, if others are left."""
    plain = rows[~rows["method"].str.endswith(TUNED)]
    return rows if plain.empty else plain


def _primary(inputs: Inputs) -> tuple[pd.DataFrame, str]:
    """Return the first protocol's comparisons, mean over structures, and the metric that leads."""
    table = inputs.comparisons
    if table.empty:
        return table, ""
    protocols = [*inputs.run.get("protocols", ()), table["protocol"].iloc[0]]
    named = next(name for name in protocols if (table["protocol"] == name).any())
    table = table[(table["protocol"] == named) & (table["structure"] == OVERALL)]
    metrics = list(table["metric"].unique())
    return table, "dice" if "dice" in metrics else next(iter(metrics), "")


def _lead(ranked: pd.DataFrame, names: Names, confidence: float) -> str:
    """The best arm, or that none was shown to be better."""
    better = ranked[ranked["verdict"] == "better"]
    best: Any = (ranked if better.empty else better).iloc[0]
    name, unit = names.arm(best["teacher"], best["method"]), best["unit"]
    measured = (
        f"{amount(best['difference'], unit, signed=True)} of {metric_name(best['metric'])} "
        f"({confidence * 100:g} % interval {_interval(best)}, Holm-corrected p "
        f"{p_value(best['p_holm']) or 'not known'}, {plural(best['n_cases'], 'case')}, "
        f"{plural(best['n_seeds'], 'seed')})"
    )
    if not better.empty:
        are = "is" if len(better) == 1 else "are"
        return (
            f"{name} is better than the same student without distillation: {measured}. "
            f"{len(better)} of {plural(len(ranked), 'method')} {are} better."
        )
    return (
        "No method was shown to be better than the same student without distillation. The first "
        f"by its mean is {name}: {measured}; verdict: {best['verdict']}."
    )


def _interval(row: Any) -> str:
    """``-0.10 to +0.20``; one case has none."""
    low, high = (number(row[end], row["unit"], signed=True) for end in ("low", "high"))
    return f"{low} to {high}" if low and high else "not known"


def _tuned(rows: pd.DataFrame, names: Names) -> list[str]:
    """Where all had the same budget, the fair comparison is with the tuned undistilled student."""
    ranked = rows.sort_values("difference", ascending=False, kind="stable")
    compared = [
        f"{names.arm(row['teacher'], row['method'])} "
        f"{amount(row['difference'], row['unit'], signed=True)} ({_interval(row)}), "
        f"{row['verdict']}"
        for row in ranked.to_dict("records")
    ]
    text = "Beside the undistilled student that was tuned with the same budget: "
    return [f"{text}{'; '.join(compared)}."] if compared else []


def _others(ranked: pd.DataFrame, names: Names) -> list[str]:
    """All arms by verdict against no distillation."""
    margin = amount(float(ranked["margin"].max()), str(ranked["unit"].iloc[0]))
    heads = {
        "better": "Better than no distillation",
        "equivalent": f"No difference from no distillation larger than {margin}",
        "cannot tell": "Cannot tell from these cases",
        "worse": "Worse than no distillation",
    }
    groups = {verdict: ranked[ranked["verdict"] == verdict] for verdict in heads}
    return [
        f"{heads[verdict]}: {_list(rows, names)}." for verdict, rows in groups.items() if len(rows)
    ]


def _beside(rows: pd.DataFrame, names: Names) -> list[str]:
    """Arms that may be as good as the best one."""
    heads = {
        "equivalent": "As good as the best",
        "cannot tell": "Not to be told apart from the best",
    }
    sentences = []
    for verdict, head in heads.items():
        if len(same := rows[rows["verdict"] == verdict]):
            best: Any = same.iloc[0]
            name = names.arm(best["against_teacher"], best["against_method"])
            sentences.append(f"{head}, {name}: {_list(same, names)}.")
    return sentences


def _by_distance(rows: pd.DataFrame, names: Names) -> list[str]:
    """What the distances say, in one sentence each: a better Dice can go with a worse boundary."""
    sentences = []
    for metric, same in rows[rows["metric"].str.startswith("hd95")].groupby("metric", sort=False):
        best: Any = same.sort_values("difference", ascending=False, kind="stable").iloc[0]
        verdicts = same["verdict"].value_counts(sort=False)
        sentences.append(
            f"By {metric_name(str(metric))}: "
            + ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items())
            + f". The first by its mean is {names.arm(best['teacher'], best['method'])}: "
            f"{amount(best['difference'], best['unit'], signed=True)} ({_interval(best)}), "
            f"{best['verdict']}."
        )
    return sentences


def _list(rows: pd.DataFrame, names: Names) -> str:
    pairs = zip(rows["teacher"], rows["method"], strict=True)
    return ", ".join(names.arm(teacher, method) for teacher, method in pairs)
