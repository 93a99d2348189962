"""The tables of the page: results, decisions, ranks, published numbers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kdpipe.markup import Table
from kdpipe.protocols import BANDS
from kdpipe.report.folds import ALL_FOLDS, with_all_folds
from kdpipe.report.page.inputs import Inputs
from kdpipe.report.page.text import Names, amount, number
from kdpipe.report.render import format_tables
from kdpipe.stats.pairing import FIELD
from kdpipe.stats.tables import FLAGS, NUMBERS
from kdpipe.stats.wording import metric_name

#: what has one unit
_SCORED = ["dataset", "protocol", "metric"]
#: kind of a published number -> what was measured
_KINDS = {"level": "{}", "gain": "gain of {}", "gain_percent": "gain of {}, relative, %"}


@dataclass(frozen=True)
class Results:
    """What one protocol measured: the main table and those by structure; with folds pooled."""

    protocol: str
    tables: list[Table]
    pooled: bool


def result_tables(inputs: Inputs) -> list[Results]:
    """Return the formatted tables by protocol, without the one that only a figure uses."""
    results = inputs.results
    if results.empty:
        return []
    shown = with_all_folds(results[results["protocol"] != BANDS], inputs.scores)
    groups = shown.groupby("protocol", sort=False)
    pooled = bool((shown["fold"] == ALL_FOLDS).any())
    return [Results(str(name), format_tables(rows), pooled) for name, rows in groups]


def rank_tables(inputs: Inputs) -> list[Table]:
    """Return the ranks, best first, for each metric; columns that say nothing are left out."""
    ranks = inputs.ranks
    if ranks.empty:
        return []
    arms = ranks.groupby([*FIELD, "protocol", "metric"])["method"].transform("size")
    ranks = ranks[arms > 1]  # one arm is the first of one
    names, several = Names.of(inputs.run), ranks["protocol"].nunique() > 1
    found = []
    for keys, rows in ranks.groupby(["protocol", "metric"], sort=False):
        ranked = rows.sort_values([*FIELD, "mean_rank"], kind="stable")
        lines = [
            [
                *(line[key] for key in FIELD),
                names.arm(line["teacher"], line["method"]),
                *_rank(line),
            ]
            for line in ranked.to_dict("records")
        ]
        name = metric_name(str(keys[1])) + (f" ({keys[0]})" if several else "")
        header = [*FIELD, "method", "mean rank", "interval", "share of resamples at rank 1"]
        found.append(without_constants(Table(name, header, lines), FIELD))
    return found


def power_table(inputs: Inputs) -> Table:
    """Return what difference these cases could resolve, by metric."""
    power = inputs.power
    if power.empty:
        return Table("", [], [])
    units: dict[Hashable, str] = {}  # pictures have voxels where other images have mm
    for table in (inputs.results, inputs.comparisons):
        if not table.empty:
            units |= table.set_index(_SCORED)["unit"].to_dict()
    shown = power[power["protocol"] != BANDS]
    of_rows = [units.get(key, "") for key in shown[_SCORED].itertuples(index=False, name=None)]
    shown = shown.assign(
        **{
            name: [
                amount(value, unit) if np.isfinite(value) else "none" if value > 0 else ""
                for value, unit in zip(shown[name], of_rows, strict=True)
            ]
            for name in ("sd", "resolvable")
        }
    )
    return without_constants(plain_table("", shown), (*FIELD, "protocol"))


def _rank(line: dict[Any, Any]) -> list[str]:
    """Rank, interval, share; nothing where the arms have no case in common."""
    mean, low, high = (line[name] for name in ("mean_rank", "rank_low", "rank_high"))
    if np.isnan(mean):
        return ["", "", ""]
    return [f"{mean:.2f}", f"{low:.2f} to {high:.2f}", f"{line['p_best'] * 100:.0f} %"]


def reference_table(inputs: Inputs) -> Table:
    """Return published numbers beside ours; what both have in common is left out.

    Fractions are shown as per cent, so that they read as the papers print them.
    """
    references = inputs.references
    if references.empty:
        return Table("", [], [])
    rows = [
        [
            line["reference"],
            line["table"],
            Names.of(inputs.run).arm(line["teacher"], line["method"] or "(teacher)"),
            line["student"],
            line["against"],
            line["structure"],
            _KINDS.get(line["kind"], line["kind"]).format(metric_name(line["metric"])),
            _mean_of(line, "published", "published_low", "published_high"),
            _mean_of(line, "ours", "low", "high"),
            f"{line['n_cases']:.0f} / {line['n_seeds']:.0f}",
            line["verdict"],
            f"{line['needed']:.0f} {line['needed_of']}" if line["needed"] > 0 else "",
            line["remarks"],
        ]
        for line in references.to_dict("records")
    ]
    header = ["source", "table", "method", "student", "against", "structure", "what"]
    header += ["published", "ours", "cases / seeds", "verdict", "would settle it", "remarks"]
    droppable = ("table", "student", "against", "would settle it", "remarks")
    return without_constants(Table("", header, rows), droppable, only_empty=True)


def _mean_of(line: dict[Any, Any], mean: str, low: str, high: str) -> str:
    """``81.2 (80.1 to 82.3)``, or without what is not known."""
    middle, *ends = (number(line[name], line["unit"]) for name in (mean, low, high))
    return f"{middle} ({ends[0]} to {ends[1]})" if all((middle, *ends)) else middle


def plain_table(title_: str, table: pd.DataFrame) -> Table:
    """Return a table of any columns as text, numbers with four digits."""
    rows = [
        [_text(name, value) for name, value in line.items()] for line in table.to_dict("records")
    ]
    header = [str(name).replace("_", " ") for name in table]
    return Table(title_, header, rows)


def _text(name: Any, value: Any) -> str:
    if name in FLAGS:
        return "yes" if value else "no"
    if name in NUMBERS and not isinstance(value, str):
        return "" if np.isnan(value) else f"{value:.4g}"
    return str(value)


def without_constants(table: Table, names: Sequence[str], *, only_empty: bool = False) -> Table:
    """Leave out those of the columns `names` that hold one value (or no text) in all rows."""
    held = [{row[index] for row in table.rows} for index in range(len(table.header))]
    keep = [
        index
        for index, name in enumerate(table.header)
        if name not in names or (held[index] != {""} if only_empty else len(held[index]) > 1)
    ]
    rows = [[row[index] for index in keep] for row in table.rows]
    return Table(table.title, [table.header[index] for index in keep], rows)
