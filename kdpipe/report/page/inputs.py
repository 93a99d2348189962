"""What the report page is made of: tables, pictures and the facts that the cells left behind.

A file that is not there, or is empty, is no error: the page says that the part is missing. A file
that is there and cannot be read is one, because a page without it would look complete.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kdpipe.errors import DataError
from kdpipe.stats.tables import read_table

_TABLES = ("scores", "results", "comparisons", "ranks", "power", "references")
_MIME = {".svg": "image/svg+xml", ".png": "image/png"}


@dataclass(frozen=True)
class Picture:
    """A figure or an overlay: `source` is a data URI, `group` and `caption` may be empty."""

    title: str
    caption: str
    group: str
    source: str


@dataclass(frozen=True)
class Inputs:
    """All of a study that the page shows; tables that are not there are empty."""

    run: dict[str, Any]
    scores: pd.DataFrame
    results: pd.DataFrame
    comparisons: pd.DataFrame
    ranks: pd.DataFrame
    power: pd.DataFrame
    references: pd.DataFrame
    claim: dict[str, Any]
    figures: list[Picture]
    overlays: list[Picture]


def read_inputs(run: dict[str, Any], tables: Path, figures: Path, overlays: Path) -> Inputs:
    """Read what `kdpipe.report.page.write.write_report` gets.

    Raises:
        DataError: a table, an index or a picture is there and cannot be read.
    """
    return Inputs(
        run=run,
        claim=read_json(tables / "claim.json"),
        figures=_pictures(figures, "figures.json", (".svg", ".png")),
        overlays=_pictures(overlays, "overlays.json", (".png",)),
        **{name: _table(tables / f"{name}.csv") for name in _TABLES},
    )


def _table(file: Path) -> pd.DataFrame:
    return read_table(file) if file.is_file() and file.stat().st_size else pd.DataFrame()


def read_json(file: Path) -> Any:
    """Read a JSON file; an empty dictionary where there is none.

    Raises:
        DataError: the file is there and is no JSON.
    """
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not readable as JSON ({error}). Write it again") from error


def _pictures(folder: Path, index: str, suffixes: Sequence[str]) -> list[Picture]:
    """Read the pictures that the index of a folder lists, in its order."""
    listed = read_json(folder / index)
    return [_picture(folder, entry, suffixes, folder / index) for entry in listed or []]


def _picture(folder: Path, entry: Any, suffixes: Sequence[str], index: Path) -> Picture:
    """Read what an entry names: by its ``file``, or by a ``name`` that a suffix is added to."""
    name = str(entry.get("file") or entry.get("name") or "") if isinstance(entry, dict) else ""
    if not name:
        raise DataError(f"{index}: an entry without a name: {entry!r}. Draw the pictures again")
    # a name is no path: what lies elsewhere is not taken into the page
    names = [name, *(f"{name}{suffix}" for suffix in suffixes)]
    files = [folder / Path(each).name for each in names if Path(each).suffix in suffixes]
    file = next(filter(Path.is_file, files), None)
    if file is None:
        raise DataError(f"{index}: there is no picture {name!r}. Draw the pictures again")
    content = base64.b64encode(file.read_bytes()).decode("ascii")
    return Picture(
        title=str(entry.get("title") or _title_of_case(entry) or name),
        caption=str(entry.get("caption") or ""),
        group=str(entry.get("group") or _group_of_case(entry)),
        source=f"data:{_MIME[file.suffix]};base64,{content}",
    )


def _title_of_case(entry: dict[str, Any]) -> str:
    """``Worst case: a, largest difference ...``; empty for an entry of another kind."""
    if not entry.get("case"):
        return ""
    role, why = str(entry.get("role") or "").capitalize(), entry.get("why")
    return f"{role} case: {entry['case']}".strip() + (f", slice with {why}" if why else "")


def _group_of_case(entry: dict[str, Any]) -> str:
    parts = (entry.get("dataset"), entry.get("split"), entry.get("student"))
    return ", ".join(str(part) for part in parts if part)
