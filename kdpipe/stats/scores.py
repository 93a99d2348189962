"""The tidy table of scores that everything after the evaluation starts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kdpipe.errors import DataError
from kdpipe.tuning import TUNED

#: what makes a row of the tables; seeds are summarised within it
ROW = ["dataset", "split", "fold", "role", "teacher", "student", "method"]
#: what identifies a trained network
CELL = [*ROW, "seed"]
#: what makes a column of values
METRIC = ["protocol", "metric", "unit"]
#: the key columns that are whole numbers
INTEGERS = ("fold", "seed")
#: all columns, in order
SCORES = [*CELL, "case", "structure", "metric", "protocol", "value", "unit", "status"]
#: the structure that stands for the mean over structures
OVERALL = "mean"
#: the undistilled student
NONE = "none"
#: it as configured, and with the settings that a budget chose
UNDISTILLED = (NONE, NONE + TUNED)


def mean_over_structures(scores: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return the rows of the structure `OVERALL`; structures without a value do not count.

    Args:
        scores: with the column ``value``.
        by: columns that make a single case of a single training, and what was measured of it.

    Returns:
        Columns `by`, ``value``, ``structure``.
    """
    means = scores.groupby(list(by), sort=False)["value"].mean().reset_index()
    return means.assign(structure=OVERALL)


def read_scores(file: Path) -> pd.DataFrame:
    """Read a ``metrics.csv`` or ``scores.csv``.

    All is text as it stands, but for the value, the fold and the seed: guessed types would make 1
    of a case ``001`` and NaN of a structure ``NA``.

    Raises:
        DataError: unreadable, a column is missing, or a number is none.
    """
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: no table of scores ({error}). Evaluate the cell again") from error
    if lacking := [name for name in SCORES if name not in table]:
        raise DataError(f"{file}: lacks the columns {', '.join(lacking)}. Evaluate the cell again")
    for name, number in {"value": float, **dict.fromkeys(INTEGERS, int)}.items():
        try:
            table[name] = [number(text) for text in table[name]]
        except ValueError as error:
            raise DataError(f"{file}: {name}: {error}. Evaluate the cell again") from error
    return table
