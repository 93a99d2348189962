"""Large tables for the page: columns, compressed, unpacked by the browser.

A table of 100,000 scores is some 15 MB as HTML and half a megabyte like this; the page draws only
the rows that can be seen.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from typing import Any

import pandas as pd

from kdpipe.stats.tables import FLAGS, NUMBERS

#: columns that, if they hold one value only, are said once above the table
_ALWAYS_SHOWN = frozenset(("case", "structure", "metric", "method", "value", "difference"))


def pack(table: pd.DataFrame) -> str:
    """Return the table as base64 of gzip of JSON.

    The JSON is ``{"rows": n, "columns": [...]}``; a column of text is ``{"name", "values",
    "codes"}`` (row -> index of its distinct value), one of numbers ``{"name", "numbers"}`` with
    null for NaN and infinity; ``constant`` marks a column that is the same in all rows.
    """
    columns = [_column(table[name]) for name in table]
    content = json.dumps({"rows": len(table), "columns": columns}, separators=(",", ":"))
    # no time stamp: the same table gives the same page
    return base64.b64encode(gzip.compress(content.encode("utf-8"), mtime=0)).decode("ascii")


def _column(column: pd.Series) -> dict[str, Any]:
    name = str(column.name)
    constant = len(column) > 1 and name not in _ALWAYS_SHOWN and column.nunique(dropna=False) == 1
    if name in NUMBERS:
        numbers = [_plain(value) for value in column.tolist()]
        return {"name": name, "constant": constant, "numbers": numbers}
    if name in FLAGS:
        column = column.map({True: "yes", False: "no"})
    codes, values = pd.factorize(column.astype(str))
    return {
        "name": name,
        "constant": constant,
        "values": [str(value) for value in values],
        "codes": codes.tolist(),
    }


def _plain(value: float) -> float | int | None:
    """Whole numbers without a point, NaN and infinity (which JSON has not) as null."""
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else value
