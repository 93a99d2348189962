"""What a study found, in plain sentences that hold the numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from kdpipe.stats.scores import OVERALL
from kdpipe.stats.wording import arm_name, difference_unit, factor, metric_name, plural

#: metrics that sentences are about
_SPOKEN = ("dice", "hd95_pooled", "hd95_max")


def say(
    comparisons: pd.DataFrame,
    references: pd.DataFrame,
    protocols: Sequence[str],
    confidence: float,
) -> list[str]:
    """Return sentences: each arm against the undistilled student, then published numbers.

    Args:
        comparisons: table of `kdpipe.stats.compare`.
        references: table of `kdpipe.stats.published`.
        protocols: of the study; the first one is spoken of.
        confidence: of the intervals.
    """
    spoken = comparisons[
        (comparisons["structure"] == OVERALL)
        & (comparisons["against_kind"] == "none")
        & (comparisons["protocol"] == protocols[0])
        & comparisons["metric"].isin(_SPOKEN)
    ]
    return [
        *(_compared(row, confidence) for row in _rows(spoken)),
        *(_published(row) for row in _rows(references)),
    ]


def _rows(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for row in table.to_dict("records"):
        yield {str(name): value for name, value in row.items()}


def _compared(row: dict[str, Any], confidence: float) -> str:
    arm = _arm(row)
    size, unit = _in(row["unit"], row["difference"])
    low, high = (_in(row["unit"], row[end])[0] for end in ("low", "high"))
    margin, resolvable = (_in(row["unit"], row[name])[0] for name in ("margin", "resolvable"))
    metric = metric_name(row["metric"])
    said = {
        "better": f"{arm} is better than {row['against_method']} in {metric}, by",
        "worse": f"{arm} is worse than {row['against_method']} in {metric}, by",
        "equivalent": (
            f"{arm} does not differ from {row['against_method']} in {metric} by {margin:.2f} "
            f"{unit} or more:"
        ),
        "cannot tell": (
            f"{arm}: whether it is better than {row['against_method']} in {metric} cannot be told:"
        ),
    }[row["verdict"]]
    if row["verdict"] == "worse":
        size, low, high = -size, -high, -low
    if math.isnan(size):
        return f"{said} no case has a finite score of both."
    able = f"{resolvable:.2f} {unit}" if math.isfinite(resolvable) else "no difference"
    interval = f"{confidence:.0%} interval"
    measured = f"[{low:.2f}, {high:.2f}] ({interval}" if low <= high else f"(no {interval}"
    return (
        f"{said} {size:.2f} {unit} {measured}, p = {row['p_holm']:.2g} after Holm, "
        f"{plural(row['n_cases'], 'case')}, {plural(row['n_seeds'], 'seed')}; "
        f"these can show {able})."
    )


def _arm(row: dict[str, Any]) -> str:
    arm = arm_name(row["teacher"], row["method"])
    return f"{row['dataset']}/{row['split']}, {row['student']}: {arm}"


def _published(row: dict[str, Any]) -> str:
    ours, unit = _in(row["unit"], row["ours"])
    theirs, low, high = (_in(row["unit"], row[name])[0] for name in ("published", "low", "high"))
    where = f"{row['reference']} {row['table']}".strip()
    over = f" over {row['against']}" if row["against"] else ""
    settled = f"; {row['needed']} {row['needed_of']} would tell" if row["needed_of"] else ""
    remarks = f" ({row['remarks']})" if row["remarks"] else ""
    return (
        f"{where}, {row['printed']}, {row['kind'].replace('_', ' ')}{over} in "
        f"{metric_name(row['metric'])} of "
        f"{row['structure']}: published {theirs:.2f}, ours {ours:.2f} {unit} [{low:.2f}, "
        f"{high:.2f}]: {row['verdict']}{settled}{remarks}."
    )


def _in(unit: str, value: float) -> tuple[float, str]:
    """A value as it is spoken, and its unit; sums in another order must print alike."""
    return round(value * factor(unit), 7), difference_unit(unit)
