"""The decisions of a study as people read them: one table a student and metric, and what to know.

Only the primary protocol's Dice and HD95 are shown, by the mean over structures; `comparisons.csv`
has all metrics and structures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from kdpipe.markup import DAGGER, DOUBLE_DAGGER, Table, latex_table, markdown_table
from kdpipe.paths import NO_TEACHER
from kdpipe.settings import Statistics
from kdpipe.stats.compare import Comparisons
from kdpipe.stats.pairing import FIELD
from kdpipe.stats.power import power_statement
from kdpipe.stats.scores import NONE, OVERALL
from kdpipe.stats.wording import difference_unit, factor, metric_name, p_value, span
from kdpipe.tuning import TUNED

_READINGS = f"{DAGGER}: a reading of its paper, whose full text could not be had."
_LEAKY = (
    f"{DOUBLE_DAGGER}: checkpoints were selected on the very cases that are scored, as the paper "
    "of this split did; differences between arms may hold, scores are too good."
)
_MISSING = (
    "Where an arm has no finite score of a case and seed, the pair is left out; n_cases, n_seeds "
    "and n_left_out of comparisons.csv say what each comparison rests on. The gain of the results "
    "is the difference of the means that stand there, so it is another number then. P(best) rests "
    "on the cases and seeds that all arms have. Where a distance is infinite there is no mean, and "
    "the verdict is cannot tell."
)


def render_decisions(result: Comparisons, run: dict[str, Any]) -> tuple[str, str]:
    """Return the decision tables with their notes, in Markdown and in LaTeX.

    Args:
        result: of `kdpipe.stats.compare.compare_scores`.
        run: the study's ``run.json``: ``study``, ``protocols``, ``statistics``.
    """
    settings = Statistics.model_validate(run.get("statistics", {}))
    markdown, latex = [f"# {run['study']}: comparisons"], ["% needs \\usepackage{booktabs}"]
    shown = result.comparisons[result.comparisons["structure"] == OVERALL]
    if "protocols" in run:
        shown = shown[shown["protocol"] == run["protocols"][0]]
    if shown.empty:
        text = "Nothing to compare: no student has more than one method."
        return f"{markdown[0]}\n\n{text}\n", f"{latex[0]}\n% {text}\n"
    rules = _rules(shown, settings)
    for _, rows in shown.groupby(FIELD, sort=False):
        notes = _notes(rows, result.power, settings)
        title = _title(rows)
        markdown += [f"## {title}", notes]
        for table in _tables(rows, result.ranks, settings):
            markdown += [f"### {table.title}", markdown_table(table)]
            first = f" {rules}" if len(latex) == 1 else ""
            latex.append(latex_table(table, f"{title}: {table.title}. {notes}{first}"))
    markdown += ["## How to read this", rules]
    return "\n\n".join(markdown) + "\n", "\n".join(latex)


def _title(rows: pd.DataFrame) -> str:
    keys: Any = rows.iloc[0]
    mark = DOUBLE_DAGGER if rows["selects_on_test"].any() else ""
    return f"{keys['dataset']}, split {keys['split']}{mark}, student {keys['student']}"


def _tables(rows: pd.DataFrame, ranks: pd.DataFrame, settings: Statistics) -> Iterator[Table]:
    """A table a headline metric against ``none`` and, if there is one, the tuned ``none``."""
    interval = f"{settings.confidence:.0%} interval"
    for metric in _headlines(rows):
        name = metric_name(metric)
        of_metric = rows[rows["metric"] == metric]
        first = of_metric.iloc[0]
        unit = difference_unit(first["unit"])
        order = ranks[(ranks[[*FIELD, "protocol", "metric"]] == _measure(first)).all(axis=1)]
        chance = _by_arm(order, "p_best")
        best = _by_arm(of_metric[of_metric["against_kind"] == "best"], "verdict")
        for kind, against in (("none", NONE), ("none_tuned", NONE + TUNED)):
            compared = of_metric[of_metric["against_kind"] == kind]
            if compared.empty:
                continue
            compared = compared.sort_values("difference", ascending=False, kind="stable")
            header = ["teacher", "method", f"difference, {unit}", interval]
            header += ["p (Holm)", "effect r", "P(best)", f"beside {against}", "beside the best"]
            lines = [_line(row, chance, best) for _, row in compared.iterrows()]
            yield Table(f"{name} against {against}, positive is better", header, lines)


def _measure(row: pd.Series) -> list[str]:
    return [str(row[name]) for name in (*FIELD, "protocol", "metric")]


def _headlines(rows: pd.DataFrame) -> list[str]:
    """Dice and the first HD95; the first metric where the protocol has neither."""
    metrics = list(dict.fromkeys(rows["metric"]))
    found = [next((m for m in metrics if m.startswith(start)), None) for start in ("dice", "hd95")]
    return [metric for metric in found if metric] or metrics[:1]


def _by_arm(rows: pd.DataFrame, column: str) -> dict[tuple[str, str], Any]:
    """(teacher, method) -> value; looked up for each arm, which an index is slow at."""
    return dict(zip(zip(rows["teacher"], rows["method"], strict=True), rows[column], strict=True))


def _line(
    row: pd.Series, chance: dict[tuple[str, str], float], best: dict[tuple[str, str], str]
) -> list[str]:
    arm = (row["teacher"], row["method"])
    scale = factor(row["unit"])
    return [
        "" if row["teacher"] == NO_TEACHER else str(row["teacher"]),
        f"{row['method']}{DAGGER if row['reading'] else ''}",
        _signed(row["difference"] * scale),
        "-"
        if math.isnan(row["low"])
        else f"{_signed(row['low'] * scale)} to {_signed(row['high'] * scale)}",
        p_value(row["p_holm"]),
        _signed(row["effect_rank_biserial"]),
        _number(chance.get(arm, math.nan)),
        str(row["verdict"]),
        str(best.get(arm, "is the best")),
    ]


def _notes(rows: pd.DataFrame, power: pd.DataFrame, settings: Statistics) -> str:
    """What this many cases and seeds can show."""
    measure = _measure(rows.iloc[0])
    seen = power[(power[[*FIELD, "protocol", "metric"]] == measure).all(axis=1)]
    if measure[-1] != "dice" or seen.empty:
        return f"{span(rows['n_cases'], 'test case')}, {span(rows['n_seeds'], 'seed')}."
    line = seen.iloc[0]
    return power_statement(
        int(line["n_cases"]),
        int(line["n_seeds"]),
        int(line["n_comparisons"]),
        settings,
        sd=float(line["sd"]),
        resolved=float(line["resolvable"]),
    )


def _rules(rows: pd.DataFrame, settings: Statistics) -> str:
    alpha = 1 - settings.confidence
    several = (rows["n_seeds"] > 1).any()
    covers = (
        "The interval covers other cases and other trainings (seeds pooled over arms)."
        if several
        else "There is one seed: the interval covers other cases with these very networks; the "
        "training's own noise is unknown, and a difference may be that of two trainings."
    )
    return " ".join(
        [
            "Difference: mean over cases of the paired difference, seeds averaged, structures "
            "averaged within a case.",
            covers,
            "p: Wilcoxon signed-rank over cases, Holm over all methods and teachers of the table; "
            "beside the best, over all pairs, as the best is chosen by the same scores.",
            "Effect r: matched-pairs rank-biserial correlation, -1 to 1. P(best): share of "
            "bootstrap resamples in which the arm ranks first.",
            f"Equivalent: the {1 - 2 * alpha:.0%} interval lies within "
            f"{settings.margin_percent:g} points ({settings.margin_mm:g} mm). Better, worse: "
            f"p at most {alpha:.2g} after Holm and an interval without 0. Cannot tell is no "
            "evidence of no difference.",
            *(
                [_MISSING]
                if (rows["n_left_out"] > 0).any() or rows["n_seeds"].nunique() > 1
                else []
            ),
            *([_READINGS] if rows["reading"].any() else []),
            *([_LEAKY] if rows["selects_on_test"].any() else []),
        ]
    )


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.2f}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
