"""The decision tables of the page: which method is better than none, in words and drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from kdpipe.markup import DOUBLE_DAGGER, Table
from kdpipe.protocols import BANDS
from kdpipe.report.page.inputs import Inputs
from kdpipe.report.page.tables import without_constants
from kdpipe.report.page.text import Names, number
from kdpipe.stats.pairing import FIELD
from kdpipe.stats.scores import METRIC, OVERALL
from kdpipe.stats.wording import difference_unit, metric_name, p_value

#: width and height of a drawn interval, in pixels
BAR = (220, 18)
#: kind of comparison -> what a title and a caption say of it
_AGAINST = {
    "none": ("", "the same student without distillation"),
    "none_tuned": (", tuned", "the same student without distillation, both with a budget"),
}


@dataclass(frozen=True)
class Bar:
    """An interval to draw: x positions in [0, `BAR`[0]].

    `outside` is -1 or 1 where the difference itself lies left or right of what is drawn, else 0.
    """

    low: float
    high: float
    middle: float
    zero: float
    margin: tuple[float, float]
    outside: int


@dataclass(frozen=True)
class Decision:
    """A row of a decision table; `bar` is None where there is no interval."""

    texts: list[str]
    verdict: str
    bar: Bar | None


@dataclass(frozen=True)
class Decisions:
    """All arms against the undistilled student by one metric, best first."""

    title: str
    caption: str
    header: list[str]
    rows: list[Decision]


def decision_tables(inputs: Inputs) -> list[Decisions]:
    """Return a table for each protocol and metric: arms against none, mean over structures.

    Where a budget was given, tuned arms are compared with the tuned undistilled student too.
    """
    table = inputs.comparisons
    if table.empty:
        return []
    table = table[(table["structure"] == OVERALL) & (table["protocol"] != BANDS)]
    units = table.groupby(["protocol", "metric"])["unit"].transform("nunique")
    table = table.assign(several_units=units > 1)
    return [
        _decision_table(rows, str(kind), inputs.run)
        for kind in _AGAINST
        for _, rows in table[table["against_kind"] == kind].groupby(METRIC, sort=False)
    ]


def _decision_table(rows: pd.DataFrame, kind: str, run: dict[str, Any]) -> Decisions:
    protocol, metric, unit = (str(rows[name].iloc[0]) for name in METRIC)
    name, several = metric_name(metric), len(run.get("protocols", ())) > 1
    (short, long), shown_in = _AGAINST[kind], difference_unit(unit)
    header, decisions = _said(_decision_header(shown_in), _decisions(rows, run))
    of_unit = f" {unit}" if rows["several_units"].any() else ""
    return Decisions(
        title=name + of_unit + (f" ({protocol})" if several else "") + short,
        caption=(
            f"Difference of {name} ({shown_in}) to {long}, mean over structures, protocol "
            f"{protocol}. Positive is better. Grey band: differences that do not matter."
        ),
        header=header,
        rows=decisions,
    )


def _decision_header(unit: str) -> list[str]:
    last = ["p (Holm)", "cases", "seeds", f"resolvable, {unit}"]
    return ["data", "split", "student", "method", f"difference, {unit}", "interval", *last]


def _said(header: list[str], decisions: list[Decision]) -> tuple[list[str], list[Decision]]:
    """Leave out the one data set, split and student of all rows; a watermark always stays."""
    table = Table("", header, [decision.texts for decision in decisions])
    marked = any(DOUBLE_DAGGER in decision.texts[1] for decision in decisions)
    table = without_constants(
        table, ("data", "student") if marked else ("data", "split", "student")
    )
    pairs = zip(decisions, table.rows, strict=True)
    return table.header, [replace(decision, texts=texts) for decision, texts in pairs]


def _decisions(rows: pd.DataFrame, run: dict[str, Any]) -> list[Decision]:
    names, span = Names.of(run), _span(rows)
    groups = (group for _, group in rows.groupby(FIELD, sort=False))
    ranked = (g.sort_values("difference", ascending=False, kind="stable") for g in groups)
    return [_decision(line, names, span) for group in ranked for line in group.to_dict("records")]


def _decision(line: dict[Any, Any], names: Names, span: float) -> Decision:
    unit = line["unit"]
    watermark = DOUBLE_DAGGER if line.get("selects_on_test") is True else ""
    low, high = number(line["low"], unit, signed=True), number(line["high"], unit, signed=True)
    texts = [
        line["dataset"],
        f"{line['split']}{watermark}",
        line["student"],
        names.arm(line["teacher"], line["method"]),
        number(line["difference"], unit, signed=True),
        f"{low} to {high}" if low and high else "",
        p_value(line["p_holm"]),
        f"{line['n_cases']:.0f}",
        f"{line['n_seeds']:.0f}",
        number(line["resolvable"], unit),
    ]
    return Decision(texts, line["verdict"], _bar(line, span))


def _span(rows: pd.DataFrame) -> float:
    """Half the width of the axis: most intervals fit; one that is far off does not squash them."""
    ends = rows[["low", "high"]].abs().max(axis=1).dropna()
    margin = float(rows["margin"].max())
    widest = float(ends.quantile(0.75)) if len(ends) else 0.0
    return max(1.2 * widest, 2 * (margin if np.isfinite(margin) else 0.0), 1e-9)


def _bar(line: dict[Any, Any], span: float) -> Bar | None:
    if not np.isfinite([line["low"], line["high"], line["difference"]]).all():
        return None
    width = BAR[0]

    def place(value: float) -> float:
        return round(float(np.clip((value / span + 1) / 2, 0, 1)) * width, 1)

    margin = line["margin"] if np.isfinite(line["margin"]) else 0.0
    return Bar(
        low=place(line["low"]),
        high=place(line["high"]),
        middle=place(line["difference"]),
        zero=place(0.0),
        margin=(place(-margin), place(margin)),
        outside=int(np.sign(line["difference"])) if abs(line["difference"]) > span else 0,
    )
