"""What the test cases say of the chosen student: means with intervals, differences, failures.

All is of this one network on these cases. Statistics are those of `kdpipe.stats`: with one seed
the interval is for other cases, with this very network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from kdpipe.errors import DataError
from kdpipe.markup import Table
from kdpipe.protocols import direction
from kdpipe.ship.measured import Facts
from kdpipe.stats.intervals import PairedMean, SeedScatter, paired_mean
from kdpipe.stats.scores import CELL, OVERALL, mean_over_structures
from kdpipe.stats.wording import difference_unit, factor, level_unit, metric_name
from kdpipe.tuning import TUNED

#: how many of the worst cases are listed, and how many structures of each
WORST = 3
_LOWEST = 3
_HEADLINE = ("dice", "hd95", "nsd")
_MISSED, _FALSE = "missing_in_prediction", "missing_in_reference"
_ONE_SEED = SeedScatter(0.0, 0.0, 0)


def rows_of(scores: pd.DataFrame, cell: Facts, protocol: str) -> pd.DataFrame:
    """Return the scores of one cell by one protocol, of metrics that can be better or worse.

    Raises:
        DataError: there are none.
    """
    rows = scores[scores["protocol"] == protocol]
    for key in CELL:
        rows = rows[rows[key] == cell[key]]
    if rows.empty:
        raise DataError(f"no score of {cell['folder']} by {protocol}: evaluate it, then tabulate")
    ranked = [name for name in rows["metric"].unique() if direction(protocol, name)]
    shown = [name for name in ranked if name.startswith(_HEADLINE)] or ranked
    return rows[rows["metric"].isin(shown)]


def metric_table(rows: pd.DataFrame, confidence: float) -> Table:
    """Return one row a structure, the mean over structures first: mean and interval by metric.

    Args:
        rows: of `rows_of`.
        confidence: of the intervals, in (0, 1).
    """
    with_mean = pd.concat([_overall(rows), rows], ignore_index=True)
    metrics = list(rows[["metric", "unit"]].drop_duplicates().itertuples(index=False, name=None))
    counts = _first_metric(rows)
    lines = []
    for structure in with_mean["structure"].unique():
        of_it = with_mean[with_mean["structure"] == structure]
        statuses = counts if structure == OVERALL else counts[counts["structure"] == structure]
        values = (
            of_it.loc[of_it["metric"] == name, "value"].to_numpy(float) for name, _ in metrics
        )
        lines.append(
            [
                structure,
                str(statuses.loc[statuses["value"].notna(), "case"].nunique()),
                *(str((statuses["status"] == status).sum()) for status in (_MISSED, _FALSE)),
                *(
                    _with_interval(found, unit, confidence)
                    for found, (_, unit) in zip(values, metrics, strict=True)
                ),
            ]
        )
    titles = [f"{metric_name(name)}, {level_unit(unit)}" for name, unit in metrics]
    return Table("", ["structure", "cases", "missed", "false", *titles], lines)


def difference_table(
    rows: pd.DataFrame, others: Sequence[tuple[str, pd.DataFrame]], confidence: float
) -> Table:
    """Return the mean paired difference to other networks on the mean over structures.

    Positive is better for the chosen student, whatever the metric.

    Args:
        rows: of the chosen student.
        others: (name, rows of that network).
        confidence: of the intervals.
    """
    lines = []
    for name, theirs in others:
        for metric, unit in rows[["metric", "unit"]].drop_duplicates().itertuples(index=False):
            found = _difference(rows, theirs, metric)
            cases = found.differences.size
            text = _interval_text(found, unit, confidence, signed=True) if cases else "no case"
            title = f"{metric_name(metric)}, {difference_unit(unit)}"
            lines.append([name, title, text, str(cases)])
    return Table("", ["against", "metric", "difference", "cases"], lines)


def failure_table(rows: pd.DataFrame) -> Table:
    """Return the worst test cases by the first metric, the mean over structures of each."""
    first = _first_metric(rows)
    name, unit = first.iloc[0][["metric", "unit"]]
    sign = direction(first.iloc[0]["protocol"], name)
    overall = _overall(first).assign(order=lambda table: sign * table["value"])
    worst = overall[overall["value"].notna()].sort_values(["order", "case"]).head(WORST)
    lines = []
    for case, value in worst[["case", "value"]].itertuples(index=False):
        of_case = first[first["case"] == case].assign(order=lambda table: sign * table["value"])
        lowest = of_case[of_case["value"].notna()].sort_values("order", kind="stable").head(_LOWEST)
        lines.append(
            [
                str(case),
                _number(value, unit),
                ", ".join(
                    f"{structure} {_number(found, unit)}"
                    for structure, found in lowest[["structure", "value"]].itertuples(index=False)
                ),
                *(
                    ", ".join(of_case.loc[of_case["status"] == status, "structure"]) or "none"
                    for status in (_MISSED, _FALSE)
                ),
            ]
        )
    title = f"{metric_name(name)}, {level_unit(unit)}"
    header = ["case", f"mean {title}", "its lowest structures", "missed", "false"]
    return Table("", header, lines)


def verdicts(comparisons: pd.DataFrame, chosen: Facts, protocol: str) -> Table:
    """Return what the study's comparisons say of the arm against the undistilled student.

    Args:
        comparisons: ``comparisons.csv`` of the study; may be empty.
        chosen: the cell.
        protocol: that decides.
    """
    header = ["against", "metric", "difference", "cases", "seeds", "verdict"]
    if comparisons.empty:
        return Table("", header, [])
    kinds = ["none_tuned"] if chosen["method"].endswith(TUNED) else ["none"]
    wanted = {key: chosen[key] for key in ("dataset", "split", "student", "teacher", "method")}
    found = comparisons[comparisons["against_kind"].isin(kinds)]
    for key, value in (wanted | {"protocol": protocol, "structure": OVERALL}).items():
        found = found[found[key] == value]
    found = found[found["metric"].str.startswith(_HEADLINE)]
    lines = [
        [
            row["against_method"],
            f"{metric_name(row['metric'])}, {difference_unit(row['unit'])}",
            _span(row["difference"], row["low"], row["high"], row["unit"], signed=True),
            str(row["n_cases"]),
            str(row["n_seeds"]),
            row["verdict"],
        ]
        for _, row in found.iterrows()
    ]
    return Table("", header, lines)


def _overall(rows: pd.DataFrame) -> pd.DataFrame:
    keys = ["case", "metric", "protocol", "unit"]
    return mean_over_structures(rows, keys)


def _first_metric(rows: pd.DataFrame) -> pd.DataFrame:
    first: pd.DataFrame = rows[rows["metric"] == rows["metric"].iloc[0]]
    return first


def _difference(rows: pd.DataFrame, others: pd.DataFrame, metric: str) -> PairedMean:
    ours, theirs = (
        _overall(table[table["metric"] == metric]).set_index("case")["value"]
        for table in (rows, others)
    )
    theirs = theirs.reindex(ours.index)
    sign = direction(str(rows["protocol"].iloc[0]), metric)
    both = [sign * table.to_numpy(float)[:, None] for table in (ours, theirs)]
    return paired_mean(both[0], both[1], _ONE_SEED)


def _with_interval(values: np.ndarray, unit: str, confidence: float) -> str:
    """Mean over cases with its interval; how many were infinite, and so not in the mean."""
    column = values[:, None]
    found = paired_mean(column, np.where(np.isnan(column), np.nan, 0.0), _ONE_SEED)
    if not found.differences.size:
        return "infinite" if np.isinf(values).any() else "none"
    infinite = int(np.isinf(values).sum())
    beside = f", {infinite} infinite" if infinite else ""
    return _interval_text(found, unit, confidence) + beside


def _interval_text(found: PairedMean, unit: str, confidence: float, signed: bool = False) -> str:
    half = found.half_width(confidence)
    low, high = found.mean - half, found.mean + half
    if not signed:  # no score is beyond its scale
        low, high = max(low, 0.0), min(high, 1.0 if unit == "fraction" else math.inf)
    return _span(found.mean, low, high, unit, signed)


def _span(mean: float, low: float, high: float, unit: str, signed: bool = False) -> str:
    if math.isnan(low) or math.isnan(high):
        return f"{_number(mean, unit, signed)} (no interval)"
    shown, first, last = (_number(value, unit, signed) for value in (mean, low, high))
    return f"{shown} ({first} to {last})"


def _number(value: float, unit: str, signed: bool = False) -> str:
    return f"{value * factor(unit):{'+' if signed else ''}.2f}"
