"""The results of a study as people read them: the same tables in Markdown and in LaTeX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kdpipe.metrics.protocol import get_protocol

#: what makes a row; seeds are summarised within it
ROW = ["dataset", "split", "fold", "role", "teacher", "student", "method"]
#: the structure that stands for the mean over structures
OVERALL = "mean"
#: stands behind the name of a method that is a reading
DAGGER = "†"
#: stands behind a split whose test cases are those that checkpoints were selected on
DOUBLE_DAGGER = "‡"
_MARKED = [*ROW, "reading", "selects_on_test"]

_LEAKY = (
    f" {DOUBLE_DAGGER}: checkpoints were selected on the very cases that are scored, as the paper "
    "of this split did; such scores are too good."
)
_VOXELS = " Distances in voxels, whatever the protocol says, are of pictures of unknown scale."
_READINGS = (
    f" {DAGGER}: a reading of its paper, whose full text could not be had; `kdpipe list methods "
    "--json` says what is stated and what is not."
)
_METRICS = {"dice": "Dice", "hd95_pooled": "HD95 pooled", "hd95_max": "HD95 max"}
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        DAGGER: r"$\dagger$",
        DOUBLE_DAGGER: r"$\ddagger$",
        "[": "{[}",  # at the start of a row it would be an argument of the \\ before it
        **{special: f"\\{special}" for special in "#$%&_{}"},
    }
)


@dataclass(frozen=True)
class Table:
    """Formatted text: `rows` are as long as `header`; `title` is empty for the main table."""

    title: str
    header: list[str]
    rows: list[list[str]]


def render_markdown(results: pd.DataFrame, study: str) -> str:
    """Return the main table with its notes, then a table by structure for each metric.

    Args:
        results: table of `kdpipe.report.tables.summarise`.
        study: the heading.

    Raises:
        ConfigError: unknown protocol.
    """
    main, *by_structure = format_tables(results)
    parts = [f"# {study}", _markdown(main), _notes(results), _definition(results)]
    for table in by_structure:
        parts += [f"## {table.title}", _markdown(table)]
    return "\n\n".join(parts) + "\n"


def render_latex(results: pd.DataFrame, study: str) -> str:
    """Return the same tables in LaTeX (booktabs); each caption defines the metrics.

    Args:
        results: table of `kdpipe.report.tables.summarise`.
        study: start of the captions.

    Raises:
        ConfigError: unknown protocol.
    """
    main, *by_structure = format_tables(results)
    definition = _definition(results)
    tables = [_latex(main, f"{study}. {_notes(results)} {definition}")]
    tables += [_latex(table, f"{study}: {table.title}. {definition}") for table in by_structure]
    return "% needs \\usepackage{booktabs}\n" + "\n".join(tables)


def format_tables(results: pd.DataFrame) -> list[Table]:
    """Return the main table, one row a cell, and a table by structure for each metric.

    Args:
        results: table of `kdpipe.report.tables.summarise`.
    """
    rows = [
        (_identity(dict(zip(_MARKED, keys, strict=True))), group.set_index(["structure", "metric"]))
        for keys, group in results.groupby(_MARKED, sort=False)
    ]
    # pictures of unknown scale are scored in voxels beside volumes in mm: two columns
    columns = results[["metric", "unit"]].drop_duplicates().itertuples(index=False)
    titles = {(metric, unit): _title(metric, unit) for metric, unit in columns}
    structures = [name for name in results["structure"].unique() if name != OVERALL]
    # a dictionary a row; the structures below are kept apart, as one may be called "method"
    main = _without_constants(
        [
            identity
            | {title: _plus_minus(lines, OVERALL, *column) for column, title in titles.items()}
            | _main_columns(lines)
            for identity, lines in rows
        ]
    )
    identities = _without_constants([identity for identity, _ in rows])
    tables = [Table("", list(main[0]), [list(row.values()) for row in main])]
    for column, title in titles.items():
        values = [
            [*identity.values(), *(_plus_minus(lines, name, *column) for name in structures)]
            for identity, (_, lines) in zip(identities, rows, strict=True)
        ]
        tables.append(Table(f"{title} by structure", [*identities[0], *structures], values))
    return tables


def _identity(keys: dict[str, Any]) -> dict[str, str]:
    watermark = DOUBLE_DAGGER if keys["selects_on_test"] else ""
    where = {"data": keys["dataset"], "split": f"{keys['split']}/{keys['fold']}{watermark}"}
    if keys["role"] == "teacher":
        return where | {"network": keys["teacher"], "teacher": "", "method": "(teacher)"}
    teacher = "" if keys["teacher"] == "no_teacher" else keys["teacher"]
    method = f"{keys['method']}{DAGGER if keys['reading'] else ''}"
    return where | {"network": keys["student"], "teacher": teacher, "method": method}


def _main_columns(lines: pd.DataFrame) -> dict[str, str]:
    """What the main table says of a cell besides its scores."""
    any_line: Any = lines.iloc[0]
    has_dice = (OVERALL, "dice") in lines.index
    gain: Any = lines.loc[(OVERALL, "dice"), "gain"] if has_dice else np.nan
    return {
        "gain Dice": "" if np.isnan(gain) else f"{gain * 100:+.2f}",
        "missed": str(lines.loc[[OVERALL], "n_missed"].max()),
        "params": f"{any_line['parameters'] / 1e6:.3f} M",
        "MACs": f"{any_line['macs'] / 1e9:.3f} G",
        "CPU ms": _rounded(any_line["cpu_ms"]),
        "CPU MB": _rounded(any_line["cpu_mb"]),
        "GPU ms": _rounded(any_line["gpu_ms"]),
        "GPU MB": _rounded(any_line["gpu_mb"]),
    }


def _rounded(value: float) -> str:
    """Three digits, no decimals of a large number; nothing where it was not measured."""
    if np.isnan(value):
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _without_constants(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Leave out what says nothing: the one data set or split of all rows, a GPU where none was.

    A split that selects on its test cases is always named.
    """
    constant = {name for name in ("data", "split") if len({row[name] for row in rows}) == 1}
    if DOUBLE_DAGGER in rows[0]["split"]:
        constant.discard("split")
    constant |= {name for name in ("GPU ms", "GPU MB") if not any(row.get(name) for row in rows)}
    return [{name: text for name, text in row.items() if name not in constant} for row in rows]


def _title(metric: str, unit: str) -> str:
    return f"{_METRICS.get(metric, metric)} {'%' if unit == 'fraction' else unit}"


def _plus_minus(lines: pd.DataFrame, structure: str, metric: str, unit: str) -> str:
    """Mean ± sd; a dash where all values are left out, nothing where there is no such score."""
    if (structure, metric) not in lines.index:
        return ""
    line: Any = lines.loc[(structure, metric)]
    if line["unit"] != unit:
        return ""
    if np.isnan(line["mean"]):
        return "-"
    scale = 100.0 if line["unit"] == "fraction" else 1.0
    mean = f"{line['mean'] * scale:.2f}"
    return mean if np.isnan(line["sd"]) else f"{mean} ± {line['sd'] * scale:.2f}"


def _notes(results: pd.DataFrame) -> str:
    students = results[results["role"] == "student"]
    seeds = _span((results if students.empty else students)["n_seeds"])
    return (
        f"Test cases: {_span(results['n_cases'])}. Mean ± sd over {seeds} seed(s) of the student; "
        "gain: difference to the undistilled student (method none), positive is better; "
        "missed: structures that only one of prediction and reference has, over all seeds."
        + f" Splits, sha256 of their lists: {_splits(results)}."
        + (_LEAKY if results["selects_on_test"].any() else "")
        + (_VOXELS if (results["unit"] == "voxel").any() else "")
        + (_READINGS if results["reading"].any() else "")
    )


def _splits(results: pd.DataFrame) -> str:
    columns = ["dataset", "split", "fold", "split_sha256"]
    named = results[columns].drop_duplicates().itertuples(index=False)
    return ", ".join(f"{data} {split}/{fold} {sha[:12]}" for data, split, fold, sha in named)


def _span(counts: pd.Series) -> str:
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _definition(results: pd.DataFrame) -> str:
    """The protocols by name, version and definition: without them an HD95 means nothing."""
    protocols = map(get_protocol, results["protocol"].unique())
    return " ".join(f"Protocol {p.name}, version {p.version}: {p.definition}" for p in protocols)


def _markdown(table: Table) -> str:
    header, *rows = [
        [text.replace("|", r"\|") for text in line] for line in (table.header, *table.rows)
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(f"| {' | '.join(_padded(line, widths))} |" for line in lines)


def _padded(line: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    return (f"{text:<{width}}" for text, width in zip(line, widths, strict=True))


def _latex(table: Table, caption: str) -> str:
    header, *body = [
        " & ".join(text.translate(_LATEX) for text in line) + r" \\"
        for line in (table.header, *table.rows)
    ]
    rows = "\n".join(body)
    return (
        f"\\begin{{table}}\n\\caption{{{caption.translate(_LATEX)}}}\n"
        f"\\begin{{tabular}}{{{'l' * len(table.header)}}}\n\\toprule\n{header}\n\\midrule\n"
        f"{rows}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )
