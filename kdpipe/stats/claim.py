"""``claim.json``: what a study claims, for a machine; and whether its scores bear it out.

The claim holds every number of the study's tables. All of them follow from ``scores.csv``, and
`verify_claim` computes them again from there. What scores cannot tell (settings of methods, digests
of splits, the environment) stands there as it was recorded. NaN is written as null, infinity as a
string.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdpipe.atomic import write_json
from kdpipe.errors import DataError
from kdpipe.protocols import get_protocol
from kdpipe.provenance import environment, file_digest
from kdpipe.stats.compare import COMPARISONS, POWER, compare_scores
from kdpipe.stats.json_differences import Difference, differences, is_number
from kdpipe.stats.published import REFERENCES, match_published
from kdpipe.stats.ranks import COLUMNS as RANKS
from kdpipe.stats.scores import METRIC, ROW, read_scores
from kdpipe.stats.sentences import say
from kdpipe.stats.summary import summarise_scores
from kdpipe.stats.tables import read_table
from kdpipe.stats.wording import plural

SCHEMA_VERSION = 1
_SHOWN = 20
_SPLIT = ["dataset", "split", "fold", "split_sha256", "selects_on_test"]
_RESULTS = [
    *(*ROW, "structure", *METRIC, "mean", "sd", "n_seeds", "n_valid", "n_missed", "n_false"),
    *("gain", "gain_tuned", "n_cases"),
]
#: tables and their columns
_COLUMNS = {
    "results": _RESULTS,
    "comparisons": COMPARISONS,
    "ranks": RANKS,
    "power": POWER,
    "references": REFERENCES,
}
#: files whose digests a claim holds
_FILES = ["scores.csv", *(f"{name}.csv" for name in _COLUMNS)]
#: columns that name a row
_NAMES = {
    "results": [*ROW, "structure", *METRIC],
    "comparisons": COMPARISONS[: COMPARISONS.index("difference")],
    "ranks": RANKS[: RANKS.index("mean_rank")],
    "power": POWER[: POWER.index("n_cases")],
    "references": REFERENCES[: REFERENCES.index("printed_unit")],
}
#: facts of a data set that are paths of this machine
_LOCAL = {"manifest", "prepared"}
#: what recomputing needs
_SETTINGS = {"protocols", "statistics", "readings", "entries", "leaky_splits"}
Record = dict[str, Any]


def write_claim(run: dict[str, Any], tables: Path) -> Path:
    """Write ``claim.json`` beside the tables of a study.

    Args:
        run: the study's ``run.json``.
        tables: folder with ``scores.csv``, ``results.csv``, ``comparisons.csv``, ``ranks.csv``,
            ``power.csv`` and ``references.csv``.

    Raises:
        DataError: a table is missing, or lacks a column.
    """
    scores = read_scores(tables / "scores.csv")
    held = {name: _read(tables / f"{name}.csv", columns) for name, columns in _COLUMNS.items()}
    splits = _read(tables / "results.csv", _SPLIT).drop_duplicates()
    settings = {
        "protocols": list(run["protocols"]),
        "statistics": run["statistics"],
        "readings": list(run.get("readings", ())),
        "entries": run.get("entries", {}),
        "leaky_splits": _leaky(splits),
    }
    claim = {
        "schema_version": SCHEMA_VERSION,
        "study": run["study"],
        "environment": environment(),
        "sha256": {name: file_digest(tables / name) for name in _FILES},
        "settings": settings,
        "training": run.get("training", {}),
        "budget": run.get("budget"),
        "datasets": _without_paths(run.get("datasets", {})),
        "splits": _records(splits),
        "protocols": {
            name: get_protocol(name).version for name in scores["protocol"].unique().tolist()
        },
        "seeds": _seeds(scores),
        **{name: _records(table) for name, table in held.items()},
        "sentences": _say(held, settings),
    }
    write_json(tables / "claim.json", claim)
    return tables / "claim.json"


def verify_claim(claim: Path, scores: Path | None = None) -> str:
    """Compute every number of a claim again from its scores.

    Args:
        claim: a ``claim.json``.
        scores: its ``scores.csv``; beside the claim if None. Tables that lie beside the claim must
            be those that it was made of.

    Returns:
        How many numbers hold, for a terminal.

    Raises:
        DataError: the claim or the scores are unreadable, or something differs; the message lists
            what, with the claimed and the recomputed value.
    """
    said = _load(claim)
    file = scores or claim.parent / "scores.csv"
    if not file.is_file():
        raise DataError(f"{file} is not there: a claim is recomputed from it; give --scores PATH")
    table = read_scores(file)
    found = list(_changed_files(said["sha256"], claim.parent, file))
    tables = _recompute(table, said["settings"])
    numbers = 0
    for name, recomputed in tables.items():
        claimed = _by_name(name, said[name])
        again = _by_name(name, _records(recomputed[_COLUMNS[name]]))
        numbers += sum(is_number(value) for rows in again.values() for value in rows[0].values())
        found += _row_differences(name, claimed, again)
    found += differences("seeds", said["seeds"], _seeds(table))
    found += differences("sentences", said["sentences"], _say(tables, said["settings"]))
    if found:
        raise DataError(f"{claim}: {_listed(found, said['environment'])}")
    return (
        f"verified: {numbers} numbers of {said['study']} follow from {file} "
        f"({len(table)} scores, sha256 {said['sha256']['scores.csv'][:12]})"
    )


def _without_paths(datasets: dict[str, Record]) -> dict[str, Record]:
    return {
        name: {key: value for key, value in facts.items() if key not in _LOCAL}
        for name, facts in datasets.items()
    }


# recomputing


def _recompute(scores: pd.DataFrame, settings: dict[str, Any]) -> dict[str, pd.DataFrame]:
    compared = compare_scores(scores, settings)
    return {
        "results": summarise_scores(scores),
        "comparisons": compared.comparisons,
        "ranks": compared.ranks,
        "power": compared.power,
        "references": match_published(scores, settings),
    }


def _say(tables: dict[str, pd.DataFrame], settings: dict[str, Any]) -> list[str]:
    confidence = float(settings["statistics"]["confidence"])
    return say(tables["comparisons"], tables["references"], settings["protocols"], confidence)


def _seeds(scores: pd.DataFrame) -> dict[str, list[int]]:
    """The seeds of each role."""
    groups = scores.groupby("role")["seed"].unique()
    return {str(role): sorted(map(int, seeds)) for role, seeds in groups.items()}


def _leaky(splits: pd.DataFrame) -> list[list[str]]:
    leaky = splits[splits["selects_on_test"].astype(bool)]
    pairs = leaky[["dataset", "split"]].drop_duplicates().itertuples(index=False)
    return [list(map(str, pair)) for pair in pairs]


# comparing


def _changed_files(digests: dict[str, str], folder: Path, scores: Path) -> Iterator[Difference]:
    files = {name: folder / name for name in digests} | {"scores.csv": scores}
    for name, file in files.items():
        if file.is_file() and (digest := file_digest(file)) != digests.get(name):
            yield Difference(f"sha256 of {name}", str(digests.get(name))[:12], digest[:12])


def _by_name(table: str, records: list[Record]) -> dict[str, list[Record]]:
    """Rows by the columns that name them."""
    rows: dict[str, list[Record]] = {}
    for record in records:
        name = " ".join(str(record.get(key)) for key in _NAMES[table] if record.get(key) != "")
        rows.setdefault(name, []).append(record)
    return rows


def _row_differences(
    table: str, claimed: dict[str, list[Record]], again: dict[str, list[Record]]
) -> Iterator[Difference]:
    for name in [*again, *(name for name in claimed if name not in again)]:
        ours, theirs = again.get(name, []), claimed.get(name, [])
        if len(ours) != len(theirs):
            rows = (plural(len(records), "row") for records in (theirs, ours))
            yield Difference(f"{table}: {name}", *rows)
            continue
        for first, second in zip(theirs, ours, strict=True):
            yield from differences(f"{table}: {name}", first, second)


def _listed(found: list[Difference], made_with: dict[str, str]) -> str:
    lines = [f"{path}\n    claimed {claimed}, recomputed {again}" for path, claimed, again in found]
    more = [f"... and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    listed = "\n  ".join([*lines[:_SHOWN], *more])
    now, then = environment()["kdpipe"], made_with.get("kdpipe")
    other = "" if now == then else f" It was made with kdpipe {then}, this is {now}."
    return (
        f"{plural(len(found), 'value')} not as recomputed from the scores."
        f"{other} {_mend([path for path, *_ in found])}\n  {listed}"
    )


def _mend(changed: list[str]) -> str:
    """Say what is to be done; scores that changed are not to become a new claim."""
    if "sha256 of scores.csv" in changed:
        return (
            "The scores are not those that it was made of. Restore scores.csv; in its study, "
            "delete it and run snakemake: it is joined again from the metrics.csv of the cells."
        )
    return "Do not trust it; the study's own is written anew by `kdpipe compare`."


# reading and writing


def _load(claim: Path) -> dict[str, Any]:
    try:
        said = json.loads(claim.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{claim}: {error.strerror}; give the claim.json of a study") from None
    except ValueError as error:
        raise DataError(f"{claim}: not readable as JSON: {error}") from error
    needed = {"study", "environment", "sha256", "settings", "seeds", "sentences", *_COLUMNS}
    if not isinstance(said, dict) or said.get("schema_version") != SCHEMA_VERSION:
        raise DataError(f"{claim}: not a claim of schema version {SCHEMA_VERSION}")
    wrong = needed - said.keys() | {name for name in _COLUMNS if not _is_table(said.get(name))}
    settings = said.get("settings")
    if not isinstance(settings, dict) or not settings.keys() >= _SETTINGS:
        wrong.add("settings")
    if wrong:
        raise DataError(f"{claim}: no usable {', '.join(sorted(wrong))}. Write it anew")
    return said


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _read(file: Path, columns: list[str]) -> pd.DataFrame:
    table = read_table(file)
    if lacking := [name for name in columns if name not in table]:
        raise DataError(f"{file}: lacks {', '.join(lacking)}. Run `kdpipe compare` again")
    return table[columns]


def _records(table: pd.DataFrame) -> list[Record]:
    """Rows as JSON has them."""
    return [
        {str(name): _plain(value) for name, value in row.items()}
        for row in table.to_dict("records")
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
