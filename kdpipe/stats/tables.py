"""The CSV tables of a study, read with the types that were written.

Text stays as it stands: guessed types would make 1 of a case ``001`` and NaN of a method ``NA``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from kdpipe.errors import DataError

#: columns that hold numbers
NUMBERS = frozenset(
    (
        *("fold", "seed", "value", "mean", "sd", "gain", "gain_tuned", "parameters", "macs"),
        *("n_seeds", "n_valid", "n_missed", "n_false", "n_cases", "n_comparisons", "needed"),
        *("cpu_ms", "cpu_mb", "gpu_ms", "gpu_mb", "training_seconds", "difference", "low", "high"),
        *("p_value", "p_holm", "effect_rank_biserial", "effect_dz", "margin", "resolvable"),
        *("mean_rank", "rank_low", "rank_high", "p_best", "smallest_p", "n_left_out"),
        *("ours", "ours_sd", "published", "published_sd", "published_low", "published_high"),
    )
)
#: columns that hold yes or no
FLAGS = frozenset(("reading", "selects_on_test", "can_be_significant"))
_COUNTS = frozenset(name for name in NUMBERS if name.startswith("n_")) | {"fold", "seed", "needed"}


def read_table(file: Path) -> pd.DataFrame:
    """Read a table: `NUMBERS` as numbers, `FLAGS` as booleans, all else as text.

    Raises:
        DataError: missing, unreadable, or a number is none.
    """
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        for name in NUMBERS.intersection(table):
            table[name] = [float(text) if text else np.nan for text in table[name]]
            if name in _COUNTS and np.isfinite(table[name]).all():
                table[name] = table[name].astype(int)
        for name in FLAGS.intersection(table):
            table[name] = table[name].str.lower().isin(("true", "1"))
    except pd.errors.EmptyDataError:  # pandas writes a table without columns so
        return pd.DataFrame()
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not readable as a table ({error}). Write it again") from error
    return table
