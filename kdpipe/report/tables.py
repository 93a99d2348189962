"""The tables of a study: from per-case scores and training facts to CSV, Markdown and LaTeX.

Values are first averaged over the cases of each seed, then summarised over seeds: a row shows the
mean and the standard deviation of the seeds' means (ddof 1; nothing where there is one seed).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdpipe.atomic import atomic_path, write_text
from kdpipe.errors import DataError

#: what makes a row; seeds are summarised within it
ROW = ["dataset", "split", "fold", "role", "teacher", "student", "method"]
OVERALL = "mean"
_HIGHER_IS_BETTER = {"dice"}
_MISSED = {"missing_in_prediction", "missing_in_reference"}


def write_tables(run: dict[str, Any], out: Path) -> str:
    """Write ``scores.csv``, ``results.csv``, ``results.md`` and ``results.tex`` into `out`.

    Args:
        run: the study's name and its cells, each with its folder and its keys.
        out: folder to write.

    Returns:
        The Markdown table and the paths of the files, for a terminal.
    """
    scores = _collect_scores(run["cells"])
    results = summarise(scores, _collect_costs(run["cells"]))
    markdown = render_markdown(results, run["study"])
    tables = {"scores.csv": scores, "results.csv": results}
    for name, table in tables.items():
        with atomic_path(out / name) as temporary:
            table.to_csv(temporary, index=False, na_rep="nan")
    write_text(out / "results.md", markdown)
    write_text(out / "results.tex", render_latex(results, run["study"]))
    written = "\n".join(f"  {out / name}" for name in (*tables, "results.md", "results.tex"))
    return f"{markdown}\nFiles:\n{written}"


def _collect_scores(cells: Sequence[dict[str, Any]]) -> pd.DataFrame:
    tables = [
        pd.read_csv(Path(cell["folder"]) / "metrics.csv", keep_default_na=False, na_values=["nan"])
        for cell in cells
    ]
    return pd.concat(tables, ignore_index=True)


def _collect_costs(cells: Sequence[dict[str, Any]]) -> pd.DataFrame:
    rows = []
    for cell in cells:
        file = Path(cell["folder"]) / "model.json"
        facts = json.loads(file.read_text(encoding="utf-8"))
        if not {"parameters", "macs", "validation_dice", "seconds"} <= facts.keys():
            raise DataError(f"{file}: lacks parameters, macs, validation_dice or seconds")
        kept = {key: facts[key] for key in ("parameters", "macs", "seconds")}
        rows.append({**{key: cell[key] for key in [*ROW, "seed"]}, **kept})
    return pd.DataFrame(rows)


def summarise(scores: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell of the grid, structure and metric.

    Args:
        scores: tidy table of `kdpipe.metrics.folders`, with the key columns `ROW` and ``seed``.
        costs: columns `ROW`, ``seed``, ``parameters``, ``macs`` and ``seconds``.

    Returns:
        Columns `ROW`, ``structure`` (`OVERALL` is the mean over structures), ``metric``, ``unit``,
        ``mean``, ``sd`` and ``n_seeds``; ``n_valid`` values and ``n_missed`` structures over all
        seeds; ``gain`` over the undistilled student (positive is better); ``parameters``,
        ``macs`` and ``training_seconds``.
    """
    per_seed = _per_seed(scores)
    groups = per_seed.groupby([*ROW, "structure", "metric", "unit"], sort=False)
    results = groups.agg(
        mean=("value", "mean"),
        sd=("value", "std"),
        n_seeds=("seed", "nunique"),
        n_valid=("n_valid", "sum"),
        n_missed=("n_missed", "sum"),
    ).reset_index()
    results["gain"] = _gain(results)
    cost = costs.groupby(ROW, sort=False).agg(
        parameters=("parameters", "first"),
        macs=("macs", "first"),
        training_seconds=("seconds", "mean"),
    )
    return results.merge(cost.reset_index(), on=ROW, how="left", validate="many_to_one")


def _per_seed(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean over cases for each seed and structure, and over structures as `OVERALL`."""
    scores = scores.assign(missed=scores["status"].isin(_MISSED))
    keys = [*ROW, "seed", "metric", "unit"]
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
    same = ["dataset", "split", "fold", "student", "structure", "metric"]
    students = results["role"] == "student"
    baseline = results[students & (results["method"] == "none")].set_index(same)["mean"]
    against = baseline.reindex(pd.MultiIndex.from_frame(results[same])).to_numpy()
    sign = np.where(results["metric"].isin(_HIGHER_IS_BETTER), 1.0, -1.0)
    return pd.Series(sign * (results["mean"].to_numpy() - against)).where(students.to_numpy())


# what people read


def _wide(results: pd.DataFrame) -> pd.DataFrame:
    """One row a cell, a column a metric and structure, formatted."""
    rows = []
    for keys, group in results.groupby(ROW, sort=False):
        named = dict(zip(ROW, keys, strict=True))
        row = {"data": named["dataset"], "split": f"{named['split']}/{named['fold']}"}
        row |= _identity(named)
        overall = group[group["structure"] == OVERALL].set_index("metric")
        for metric, line in overall.iterrows():
            row[_title(str(metric), line["unit"])] = _plus_minus(line, str(metric))
        row["gain Dice"] = _signed(overall.loc["dice", "gain"] * 100)
        row["missed"] = str(int(overall.loc["dice", "n_missed"]))
        for _, line in group[
            (group["structure"] != OVERALL) & (group["metric"] == "dice")
        ].iterrows():
            row[f"Dice {line['structure']}"] = _plus_minus(line, "dice")
        row["params"] = f"{line['parameters'] / 1e6:.3f} M"
        row["MACs"] = f"{line['macs'] / 1e9:.3f} G"
        rows.append(row)
    wide = pd.DataFrame(rows).fillna("")
    return wide.drop(columns=[c for c in ("data", "split") if wide[c].nunique() == 1])


def _identity(named: dict[str, Any]) -> dict[str, str]:
    if named["role"] == "teacher":
        return {"network": named["teacher"], "teacher": "", "method": "(teacher)"}
    teacher = "" if named["teacher"] == "no_teacher" else named["teacher"]
    return {"network": named["student"], "teacher": teacher, "method": named["method"]}


def _title(metric: str, unit: str) -> str:
    names = {"dice": "Dice %", "hd95_pooled": "HD95 pooled", "hd95_max": "HD95 max"}
    return names.get(metric, metric) if metric == "dice" else f"{names.get(metric, metric)} {unit}"


def _plus_minus(line: Any, metric: str) -> str:
    scale = 100.0 if metric == "dice" else 1.0
    if np.isnan(line["mean"]):
        return "-"
    mean = f"{line['mean'] * scale:.2f}"
    return mean if np.isnan(line["sd"]) else f"{mean} ± {line['sd'] * scale:.2f}"


def _signed(value: float) -> str:
    return "" if np.isnan(value) else f"{value:+.2f}"


def _notes(results: pd.DataFrame) -> str:
    seeds = int(results.loc[results["role"] == "student", "n_seeds"].max())
    cases = int(results.loc[results["structure"] != OVERALL, "n_valid"].max()) // seeds
    return (
        f"Test cases: at most {cases} a structure. Mean ± sd over {seeds} seed(s) of the student; "
        "gain: difference to the undistilled student (method none), positive is better; "
        "missed: structures that only one of prediction and reference has, over all seeds."
    )


def render_markdown(results: pd.DataFrame, study: str) -> str:
    """Return the readable table in Markdown."""
    wide = _wide(results)
    widths = [max(len(str(v)) for v in (name, *wide[name])) for name in wide]
    lines = [
        _markdown_line(wide.columns, widths),
        _markdown_line(["-" * w for w in widths], widths),
    ]
    lines += [_markdown_line(row, widths) for row in wide.itertuples(index=False)]
    return f"# {study}\n\n" + "\n".join(lines) + f"\n\n{_notes(results)}\n"


def _markdown_line(values: Any, widths: Sequence[int]) -> str:
    cells = (f"{value!s:<{width}}" for value, width in zip(values, widths, strict=True))
    return f"| {' | '.join(cells)} |"


def render_latex(results: pd.DataFrame, study: str) -> str:
    """Return the same table in LaTeX (booktabs)."""
    wide = _wide(results)
    header = " & ".join(_latex(name) for name in wide)
    body = "\n".join(
        " & ".join(_latex(value) for value in row) + r" \\" for row in wide.itertuples(index=False)
    )
    return (
        "% needs \\usepackage{booktabs}\n\\begin{table}\n"
        f"\\caption{{{_latex(study)}. {_latex(_notes(results))}}}\n"
        f"\\begin{{tabular}}{{{'l' * wide.shape[1]}}}\n\\toprule\n{header} \\\\\n\\midrule\n"
        f"{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def _latex(value: object) -> str:
    text = str(value)
    for plain, escaped in (("%", r"\%"), ("_", r"\_"), ("&", r"\&"), ("±", r"$\pm$")):
        text = text.replace(plain, escaped)
    return text
