"""The results of a study as people read them: the same tables in Markdown and in LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from kdpipe.markup import DAGGER, DOUBLE_DAGGER, Table, latex_table, markdown_table
from kdpipe.paths import NO_TEACHER
from kdpipe.protocols import get_protocol
from kdpipe.report.folds import ALL_FOLDS, whole_splits
from kdpipe.stats.scores import OVERALL, ROW
from kdpipe.stats.wording import factor, level_unit, metric_name, span

_MARKED = [*ROW, "reading", "selects_on_test"]
#: what the main table shows; the others have a table of their own
_HEADLINE = ("dice", "hd95", "nsd")

_LEAKY = (
    f" {DOUBLE_DAGGER}: checkpoints were selected on the very cases that are scored, as the paper "
    "of this split did; such scores are too good."
)
_FOLDS = f" Fold {ALL_FOLDS}: the cases of all folds together, as the comparisons pool them."
_PAPER = (
    " The protocol is a paper's own, to stand beside its tables; it is none to choose a method by."
)
_VOXELS = " Distances in voxels, whatever the protocol says, are of pictures of unknown scale."
_READINGS = (
    f" {DAGGER}: a reading of its paper, whose full text could not be had; `kdpipe list methods "
    "--json` says what is stated and what is not."
)


def render_markdown(results: pd.DataFrame, study: str) -> str:
    """Return, for each protocol, the main table with its notes, then those by structure.

    Args:
        results: table of `kdpipe.report.tables.summarise`, with the marks of its cells.
        study: the heading.

    Raises:
        ConfigError: unknown protocol.
    """
    parts = [f"# {study}"]
    several = results["protocol"].nunique() > 1
    for protocol, of_protocol in results.groupby("protocol", sort=False):
        main, *others = format_tables(of_protocol)
        if several:
            mark = " of a paper" if get_protocol(str(protocol)).paper else ""
            parts.append(f"# Protocol {protocol}{mark}")
        parts += [markdown_table(main), _notes(of_protocol), _definition(of_protocol)]
        for table in others:
            parts += [f"## {table.title}", markdown_table(table)]
    return "\n\n".join(parts) + "\n"


def render_latex(results: pd.DataFrame, study: str) -> str:
    """Return the same tables in LaTeX (booktabs); each caption defines the metrics.

    Args:
        results: table of `kdpipe.report.tables.summarise`, with the marks of its cells.
        study: start of the captions.

    Raises:
        ConfigError: unknown protocol.
    """
    tables = []
    for _, of_protocol in results.groupby("protocol", sort=False):
        main, *others = format_tables(of_protocol)
        definition = _definition(of_protocol)
        tables.append(latex_table(main, f"{study}. {_notes(of_protocol)} {definition}"))
        tables += [latex_table(t, f"{study}: {t.title}. {definition}") for t in others]
    return "% needs \\usepackage{booktabs}\n" + "\n".join(tables)


def format_tables(results: pd.DataFrame) -> list[Table]:
    """Return the main table, a row a cell; further metrics; a table by structure for each metric.

    Args:
        results: rows of one protocol of `kdpipe.report.tables.summarise`.
    """
    rows = [
        (_identity(dict(zip(_MARKED, keys, strict=True))), group.set_index(["structure", "metric"]))
        for keys, group in results.groupby(_MARKED, sort=False)
    ]
    identities = _without_constants([identity for identity, _ in rows])
    titles = _titles(results)
    headline = {column: title for column, title in titles.items() if _is_headline(column[0])}
    further = {column: title for column, title in titles.items() if column not in headline}
    main = _without_constants(
        [identity | _means(lines, headline) | _main_columns(lines) for identity, lines in rows]
    )
    tables = [Table("", list(main[0]), [list(row.values()) for row in main])]
    if further:
        cells = [
            [*identity.values(), *_means(lines, further).values()]
            for identity, (_, lines) in zip(identities, rows, strict=True)
        ]
        tables.append(Table("Further metrics", [*identities[0], *further.values()], cells))
    structures = [name for name in results["structure"].unique() if name != OVERALL]
    # names of structures never become keys of a dictionary: one may be called "method"
    for column, title in headline.items():
        values = [
            [*identity.values(), *(_plus_minus(lines, name, *column) for name in structures)]
            for identity, (_, lines) in zip(identities, rows, strict=True)
        ]
        tables.append(Table(f"{title} by structure", [*identities[0], *structures], values))
    return tables


def _titles(results: pd.DataFrame) -> dict[tuple[str, str], str]:
    """(metric, unit) -> title; the size of a structure in the reference is no result.

    Pictures of unknown scale are scored in voxels beside volumes in mm: two columns.
    """
    columns = results[["metric", "unit"]].drop_duplicates().itertuples(index=False)
    return {
        (metric, unit): f"{metric_name(metric)} {level_unit(unit)}"
        for metric, unit in columns
        if unit != "ml" and metric != "reference_ml"  # which is in voxels of pictures
    }


def _is_headline(metric: str) -> bool:
    return metric.split("_")[0] in _HEADLINE


def _identity(keys: dict[str, Any]) -> dict[str, str]:
    watermark = DOUBLE_DAGGER if keys["selects_on_test"] else ""
    where = {"data": keys["dataset"], "split": f"{keys['split']}/{keys['fold']}{watermark}"}
    if keys["role"] == "teacher":
        return where | {"network": keys["teacher"], "teacher": "", "method": "(teacher)"}
    teacher = "" if keys["teacher"] == NO_TEACHER else keys["teacher"]
    method = f"{keys['method']}{DAGGER if keys['reading'] else ''}"
    return where | {"network": keys["student"], "teacher": teacher, "method": method}


def _main_columns(lines: pd.DataFrame) -> dict[str, str]:
    """What the main table says of a cell besides its scores."""
    any_line: Any = lines.iloc[0]
    overall = lines.loc[[OVERALL]]
    return {
        "gain Dice": _gain(lines, "gain"),
        "gain tuned": _gain(lines, "gain_tuned"),
        "missed": str(overall["n_missed"].max()),
        "false": str(overall["n_false"].max()),
        "params": f"{any_line['parameters'] / 1e6:.3f} M",
        "MACs": f"{any_line['macs'] / 1e9:.3f} G",
        "CPU ms": _rounded(any_line["cpu_ms"]),
        "CPU MB": _rounded(any_line["cpu_mb"]),
        "GPU ms": _rounded(any_line["gpu_ms"]),
        "GPU MB": _rounded(any_line["gpu_mb"]),
    }


def _gain(lines: pd.DataFrame, column: str) -> str:
    if (OVERALL, "dice") not in lines.index:
        return ""
    gain: Any = lines.loc[(OVERALL, "dice"), column]
    return "" if np.isnan(gain) else f"{gain * 100:+.2f}"


def _rounded(value: float) -> str:
    """Three digits, no decimals of a large number; nothing where it was not measured."""
    if np.isnan(value):
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _without_constants(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Leave out what says nothing: the one data set or split of all rows, what nobody measured.

    A split that selects on its test cases is always named.
    """
    constant = {name for name in ("data", "split") if len({row[name] for row in rows}) == 1}
    if DOUBLE_DAGGER in rows[0]["split"]:
        constant.discard("split")
    optional = ("GPU ms", "GPU MB", "gain tuned")
    constant |= {name for name in optional if not any(row.get(name) for row in rows)}
    return [{name: text for name, text in row.items() if name not in constant} for row in rows]


def _means(lines: pd.DataFrame, columns: dict[tuple[str, str], str]) -> dict[str, str]:
    return {name: _plus_minus(lines, OVERALL, *column) for column, name in columns.items()}


def _plus_minus(lines: pd.DataFrame, structure: str, metric: str, unit: str) -> str:
    """Mean ± sd; a dash where all values are left out, nothing where there is no such score."""
    if (structure, metric) not in lines.index:
        return ""
    line: Any = lines.loc[(structure, metric)]
    if line["unit"] != unit:
        return ""
    if np.isnan(line["mean"]):
        return "-"
    scale = factor(line["unit"])
    mean = f"{line['mean'] * scale:.2f}"
    return mean if np.isnan(line["sd"]) else f"{mean} ± {line['sd'] * scale:.2f}"


def _notes(results: pd.DataFrame) -> str:
    students = results[results["role"] == "student"]
    seeds = span((results if students.empty else students)["n_seeds"], "seed")
    cases = span(whole_splits(results)["n_cases"], "test case")
    tuned = (
        " gain tuned: difference to the tuned undistilled student (none+tuned);"
        if results["gain_tuned"].notna().any()
        else ""
    )
    return (
        f"{cases}. Mean ± sd over {seeds} of the student; "
        f"gain: difference to the undistilled student (method none), positive is better;{tuned} "
        "missed: structures that only the reference has, false: that only the prediction has, "
        "over all seeds."
        + (_FOLDS if (results["fold"] == ALL_FOLDS).any() else "")
        + f" Splits, sha256 of their lists: {_splits(results)}."
        + (_PAPER if any(get_protocol(p).paper for p in results["protocol"].unique()) else "")
        + (_LEAKY if results["selects_on_test"].any() else "")
        + (_VOXELS if _voxels_against_the_protocol(results) else "")
        + (_READINGS if results["reading"].any() else "")
    )


def _voxels_against_the_protocol(results: pd.DataFrame) -> bool:
    in_voxels = results.loc[results["unit"] == "voxel", "protocol"].unique()
    return any(get_protocol(name).distance_unit != "voxel" for name in in_voxels)


def _splits(results: pd.DataFrame) -> str:
    columns = ["dataset", "split", "fold", "split_sha256"]
    single = results[results["fold"] != ALL_FOLDS]
    named = single[columns].drop_duplicates().itertuples(index=False)
    return ", ".join(f"{data} {split}/{fold} {sha[:12]}" for data, split, fold, sha in named)


def _definition(results: pd.DataFrame) -> str:
    """The protocols by name, version and definition: without them an HD95 means nothing."""
    protocols = map(get_protocol, results["protocol"].unique())
    return " ".join(f"Protocol {p.name}, version {p.version}: {p.definition}" for p in protocols)
