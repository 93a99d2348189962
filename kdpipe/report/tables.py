"""The tables of a study: from per-case scores and training facts to CSV, Markdown and LaTeX.

Values are first averaged over the cases of each seed, then summarised over seeds: a row shows the
mean and the standard deviation of the seeds' means (ddof 1; nothing where there is one seed).
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
from kdpipe.metrics.protocol import PROTOCOLS
from kdpipe.report.render import OVERALL, ROW, render_latex, render_markdown

CELL = [*ROW, "seed"]
SPLIT = ["dataset", "split", "fold"]
_INTEGERS = ("fold", "seed")
_SCORES = [*CELL, "case", "structure", "metric", "protocol", "value", "unit", "status"]
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
_HIGHER_IS_BETTER = {"dice"}
_MISSED = {"missing_in_prediction", "missing_in_reference"}


def write_tables(run: dict[str, Any], out: Path) -> str:
    """Write ``scores.csv``, ``results.csv``, ``results.md`` and ``results.tex`` into `out`.

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
    markdown = render_markdown(results, run["study"])
    tables = {"scores.csv": scores, "results.csv": results}
    for name, table in tables.items():
        with atomic_path(out / name) as temporary:
            table.to_csv(temporary, index=False, na_rep="nan")
    write_text(out / "results.md", markdown)
    write_text(out / "results.tex", render_latex(results, run["study"]))
    written = "\n".join(f"  {out / name}" for name in (*tables, "results.md", "results.tex"))
    return f"{markdown}\nFiles:\n{written}"


# what the cells left behind


def _collect_scores(cells: Sequence[dict[str, Any]]) -> pd.DataFrame:
    tables, scored_by = [], dict[str, Path]()
    for cell in cells:
        file = Path(cell["folder"]) / "metrics.csv"
        table = _read_scores(file)
        _check_scores(table, file, _keys(cell))
        scored_by |= {protocol: file for protocol in table["protocol"].unique()}
        tables.append(table)
    if len(scored_by) > 1:
        named = "; ".join(f"{protocol} in {file}" for protocol, file in scored_by.items())
        raise DataError(f"scores of different protocols do not compare: {named}. Evaluate again")
    return pd.concat(tables, ignore_index=True)


def _read_scores(file: Path) -> pd.DataFrame:
    """Read a ``metrics.csv``; all is text as it stands, but for the value, the fold and the seed.

    Guessed types would make 1 of a case ``001`` and NaN of a structure ``NA``.
    """
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: no table of scores ({error}). Evaluate the cell again") from error
    if lacking := [name for name in _SCORES if name not in table]:
        raise DataError(f"{file}: lacks the columns {', '.join(lacking)}. Evaluate the cell again")
    for name, number in {"value": float, **dict.fromkeys(_INTEGERS, int)}.items():
        try:
            table[name] = [number(text) for text in table[name]]
        except ValueError as error:
            raise DataError(f"{file}: {name}: {error}. Evaluate the cell again") from error
    return table


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
    if (twice := table[table.duplicated(["case", "structure", "metric"])]).size:
        case, structure, metric = twice.iloc[0][["case", "structure", "metric"]]
        raise DataError(
            f"{file}: case {case}: {metric} of {structure} is there twice. Evaluate the cell again"
        )
    if unknown := set(table["protocol"]) - PROTOCOLS.keys():
        raise DataError(
            f"{file}: unknown protocol {', '.join(sorted(unknown))}. Evaluate the cell again by "
            f"one of {', '.join(PROTOCOLS)}"
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
    return {key: int(cell[key]) if key in _INTEGERS else str(cell[key]) for key in CELL}


# numbers


def summarise(scores: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell of the grid, structure and metric.

    Args:
        scores: tidy table of `kdpipe.metrics.folders`, with the key columns `CELL`.
        costs: columns `CELL`, those of `_COSTS` and ``seconds``; one row a cell and seed.

    Returns:
        Columns `ROW`, ``structure`` (`OVERALL` is the mean over structures), ``metric``,
        ``protocol``, ``unit``, ``mean``, ``sd`` and ``n_seeds``; ``n_valid`` values and
        ``n_missed`` structures over all seeds; ``gain`` over the undistilled student (positive is
        better); ``n_cases`` scored; ``parameters``, ``macs``; ``cpu_ms``, ``gpu_ms`` (latency)
        and ``cpu_mb``, ``gpu_mb`` (peak memory) of one window; ``training_seconds``.

    Raises:
        DataError: a cell is there twice, or has scores but no costs or the reverse; a structure
            is called `OVERALL`.
    """
    _check_cells(scores, costs)
    groups = _per_seed(scores).groupby(
        [*ROW, "structure", "metric", "protocol", "unit"], sort=False
    )
    results = groups.agg(
        mean=("value", "mean"),
        sd=("value", "std"),
        n_seeds=("seed", "nunique"),
        n_valid=("n_valid", "sum"),
        n_missed=("n_missed", "sum"),
    ).reset_index()
    results["gain"] = _gain(results)
    cases = scores.groupby(ROW, sort=False).agg(n_cases=("case", "nunique"))
    cost = costs.groupby(ROW, sort=False).agg(
        **{name: (name, "first") for name in _COSTS},
        training_seconds=("seconds", "mean"),
    )
    of_row = cases.join(cost, validate="one_to_one").reset_index()
    return results.merge(of_row, on=ROW, how="left", validate="many_to_one")


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
    if (scores["structure"] == OVERALL).any():
        raise DataError(
            f"{_name(scores[scores['structure'] == OVERALL])}: a structure is called {OVERALL!r}, "
            "which is the mean over structures here. Rename it in the data set's card"
        )


def _name(cells: pd.DataFrame) -> str:
    """The first of the cells, for a message."""
    first = cells.iloc[0]
    return "cell " + ", ".join(f"{key} {first[key]}" for key in CELL if first[key] != "")


def _per_seed(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean over cases for each seed and structure, and over structures as `OVERALL`."""
    scores = scores.assign(missed=scores["status"].isin(_MISSED))
    keys = [*CELL, "metric", "protocol", "unit"]
    structures = scores.groupby([*keys, "structure"], sort=False).agg(
        value=("value", "mean"), n_valid=("value", "count"), n_missed=("missed", "sum")
    )
    structures = structures.reset_index()
    overall = structures.groupby(keys, sort=False).agg(
        value=("value", "mean"), n_valid=("n_valid", "sum"), n_missed=("n_missed", "sum")
    )
    overall = overall.reset_index().assign(structure=OVERALL)
    return pd.concat([structures, overall], ignore_index=True)


def _gain(results: pd.DataFrame) -> pd.Series:
    """Difference to the row of method ``none`` with the same student; NaN for teachers."""
    same = ["dataset", "split", "fold", "student", "structure", "metric", "protocol"]
    students = results["role"] == "student"
    baseline = results[students & (results["method"] == "none")].set_index(same)["mean"]
    against = baseline.reindex(pd.MultiIndex.from_frame(results[same])).to_numpy()
    sign = np.where(results["metric"].isin(_HIGHER_IS_BETTER), 1.0, -1.0)
    return pd.Series(sign * (results["mean"].to_numpy() - against)).where(students.to_numpy())
