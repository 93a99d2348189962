"""The tables of a study: from per-case scores and training facts to CSV, Markdown and LaTeX.

A row shows the mean and the standard deviation of the seeds' means, see `kdpipe.stats.summary`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdpipe.atomic import atomic_path, write_text
from kdpipe.errors import DataError
from kdpipe.protocols import BANDS, protocol_names
from kdpipe.report.folds import with_all_folds
from kdpipe.report.render import render_latex, render_markdown
from kdpipe.stats.scores import CELL, INTEGERS, ROW, read_scores
from kdpipe.stats.summary import summarise_scores

SPLIT = ["dataset", "split", "fold"]
#: column -> where ``profile.json`` has it
_COSTS = {
    "parameters": ("parameters",),
    "macs": ("macs",),
    "cpu_ms": ("cpu", "latency_ms"),
    "cpu_mb": ("cpu", "peak_mb"),
    "gpu_ms": ("cuda", "latency_ms"),
    "gpu_mb": ("cuda", "peak_mb"),
}
#: what not every machine can tell, a GPU's share for instance
_OPTIONAL = {"cpu_mb", "gpu_ms", "gpu_mb"}


def write_tables(run: dict[str, Any], out: Path) -> str:
    """Write ``scores``, ``results``, ``wide`` (CSV) and ``results.md``, ``results.tex`` into `out`.

    Args:
        run: the study's name, its cells, each with its folder, the folder of its network's
            profile and its keys, and the methods (by their labels) that are readings of papers.
        out: folder to write.

    Returns:
        The Markdown tables and the paths of the files, for a terminal.

    Raises:
        DataError: a file of a cell is missing, unreadable or of another cell, a cell is listed
            twice, or the cells are not scored by one known protocol; nothing is written.
    """
    scores = _collect_scores(run["cells"])
    results = summarise(scores, _collect_costs(run["cells"]))
    results["reading"] = results["method"].isin(run.get("readings", ()))
    results = results.merge(_collect_splits(run["cells"]), on=SPLIT, validate="many_to_one")
    shown = results[results["protocol"] != BANDS]
    printed = with_all_folds(shown, scores)
    markdown = render_markdown(printed, run["study"])
    tables = {"scores.csv": scores, "results.csv": results, "wide.csv": widen(shown)}
    for name, table in tables.items():
        with atomic_path(out / name) as temporary:
            table.to_csv(temporary, index=False, na_rep="nan")
    write_text(out / "results.md", markdown)
    write_text(out / "results.tex", render_latex(printed, run["study"]))
    written = "\n".join(f"  {out / name}" for name in (*tables, "results.md", "results.tex"))
    return f"{markdown}\nFiles:\n{written}"


# what the cells left behind


def _collect_scores(cells: Sequence[dict[str, Any]]) -> pd.DataFrame:
    tables, scored_by = [], dict[tuple[str, ...], Path]()
    for cell in cells:
        file = Path(cell["folder"]) / "metrics.csv"
        table = read_scores(file)
        _check_scores(table, file, _keys(cell))
        scored_by.setdefault(tuple(table["protocol"].unique()), file)
        tables.append(table)
    if len(scored_by) > 1:
        named = "; ".join(f"{', '.join(names)} in {file}" for names, file in scored_by.items())
        raise DataError(f"scores of different protocols do not compare: {named}. Evaluate again")
    return pd.concat(tables, ignore_index=True)


def _check_scores(table: pd.DataFrame, file: Path, keys: dict[str, Any]) -> None:
    """Raise DataError unless the table holds scores of this cell, each once, by known protocols."""
    if table.empty:
        raise DataError(f"{file}: holds no score. Evaluate the cell again")
    for key, value in keys.items():
        if (other := table.loc[table[key] != value, key]).size:
            raise DataError(
                f"{file}: {key} is '{other.iloc[0]}' there and '{value}' in the study. "
                "Evaluate the cell again"
            )
    if (twice := table[table.duplicated(["case", "structure", "metric", "protocol"])]).size:
        case, structure, metric = twice.iloc[0][["case", "structure", "metric"]]
        raise DataError(
            f"{file}: case {case}: {metric} of {structure} is there twice. Evaluate the cell again"
        )
    if unknown := set(table["protocol"]) - set(protocol_names()):
        raise DataError(
            f"{file}: unknown protocol {', '.join(sorted(unknown))}. Evaluate the cell again by "
            f"one of {', '.join(protocol_names())}"
        )


def _collect_costs(cells: Sequence[dict[str, Any]]) -> pd.DataFrame:
    rows = []
    for cell in cells:
        network = _read_numbers(Path(cell["profile"]) / "profile.json", _COSTS)
        training = _read_numbers(Path(cell["folder"]) / "model.json", {"seconds": ("seconds",)})
        rows.append(_keys(cell) | network | training)
    return pd.DataFrame(rows)


def _collect_splits(cells: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row a split: the digest of its lists, and whether it selects on its test cases."""
    found: dict[tuple[Any, ...], tuple[str, bool]] = {}
    for cell in cells:
        file = Path(cell["folder"]) / "model.json"
        facts = _read_json(file)
        split = (str(facts.get("split_sha256", "")), bool(facts.get("selects_on_test", False)))
        if found.setdefault(tuple(_keys(cell)[key] for key in SPLIT), split) != split:
            raise DataError(
                f"{file}: its network was trained on another division of the cases than others of "
                "this split. Train the cell again"
            )
    rows = [(*key, *split) for key, split in found.items()]
    return pd.DataFrame(rows, columns=[*SPLIT, "split_sha256", "selects_on_test"])


def _read_json(file: Path) -> dict[str, Any]:
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: unreadable ({error}). Delete it and run again") from error
    return facts if isinstance(facts, dict) else {}


def _read_numbers(file: Path, paths: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    """Read the numbers that are at `paths` in a JSON file; NaN for those that may be missing."""
    facts = _read_json(file)
    found = {name: _look_up(facts, path) for name, path in paths.items()}
    lacking = [name for name, value in found.items() if np.isnan(value) and name not in _OPTIONAL]
    if lacking:
        raise DataError(f"{file}: lacks numbers for {', '.join(lacking)}. Delete it and run again")
    return found


def _look_up(facts: Any, path: Sequence[str]) -> float:
    for key in path:
        facts = facts.get(key) if isinstance(facts, dict) else None
    return facts if isinstance(facts, int | float) else np.nan


def _keys(cell: dict[str, Any]) -> dict[str, Any]:
    """The cell's keys, of the types that `_read_scores` gives them."""
    return {key: int(cell[key]) if key in INTEGERS else str(cell[key]) for key in CELL}


# numbers


def summarise(scores: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell of the grid, structure and metric, with what its network costs.

    Args:
        scores: tidy table of `kdpipe.metrics.folders`, with the key columns `CELL`.
        costs: columns `CELL`, those of `_COSTS` and ``seconds``; one row a cell and seed.

    Returns:
        The columns of `summarise_scores`, then ``parameters``, ``macs``; ``cpu_ms``, ``gpu_ms``
        (latency) and ``cpu_mb``, ``gpu_mb`` (peak memory) of one window; ``training_seconds``.

    Raises:
        DataError: a cell is there twice, or has scores but no costs or the reverse; a structure
            is called `OVERALL`.
    """
    _check_cells(scores, costs)
    cost = costs.groupby(ROW, sort=False).agg(
        **{name: (name, "first") for name in _COSTS},
        training_seconds=("seconds", "mean"),
    )
    results = summarise_scores(scores)
    return results.merge(cost.reset_index(), on=ROW, how="left", validate="many_to_one")


def widen(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell of the grid; a column of means and one of SDs for each metric.

    The columns are called ``<protocol>.<metric>.<structure>.mean`` and ``.sd``.
    """
    values = results.melt(
        [*ROW, "protocol", "metric", "structure"], ["mean", "sd"], var_name="statistic"
    )
    parts = (values[name] for name in ("protocol", "metric", "structure", "statistic"))
    values["column"] = [".".join(names) for names in zip(*parts, strict=True)]
    wide = values.pivot(index=ROW, columns="column", values="value")
    costs = results.groupby(ROW, sort=False)[[*_COSTS, "training_seconds"]].first()
    return costs.join(wide[list(dict.fromkeys(values["column"]))]).reset_index()


def _check_cells(scores: pd.DataFrame, costs: pd.DataFrame) -> None:
    """Raise DataError unless every cell has scores and, once, costs."""
    if (twice := costs[costs.duplicated(CELL)]).size:
        raise DataError(f"{_name(twice)}: twice in the study. Give one of the two another label")
    scored = scores[CELL].drop_duplicates()
    sides = scored.merge(costs[CELL], on=CELL, how="outer", indicator="side", validate="1:1")
    if (alone := sides[sides["side"] != "both"]).size:
        has = "scores but no costs" if alone["side"].iloc[0] == "left_only" else "costs, no scores"
        raise DataError(
            f"{_name(alone)}: has {has}. Are the keys of its metrics.csv those of the study?"
        )


def _name(cells: pd.DataFrame) -> str:
    """The first of the cells, for a message."""
    first = cells.iloc[0]
    return "cell " + ", ".join(f"{key} {first[key]}" for key in CELL if first[key] != "")
