"""How the cost of each stage grows with its work: four sizes, a fit, a figure.

Usage: python bench/scale.py [--out results/bench] [--rounds 3] [--only evaluate predict]

The seconds are the processor's, on one thread (of child processes too), the median of the rounds;
so a busy machine matters little. The exponent is the slope of log seconds over log size, with its
standard error: 1 is linear. Fixed costs flatten it, so the slope between the two largest sizes
stands beside it. A work that should be linear and has a steeper one is marked, and the exit code
is 1. Writes ``scale.json``, ``scale.md``, ``scale.svg`` and ``scale.png``. Takes five minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scale_figure import draw
from scale_works import Series, all_series
from scipy import stats
from side_by_side import in_turns, shown

#: largest exponent that counts as linear: of the fit, and between the two largest sizes alone
LINEAR, LINEAR_AT_THE_END = 1.15, 1.3


@dataclass(frozen=True)
class Growth:
    """What was measured of a series.

    Attributes:
        stage, grows: see `Series`.
        amounts: the sizes, rising.
        seconds: the median of each.
        exponent: slope in log-log, and its standard `error`.
        end: slope between the two largest.
    """

    stage: str
    grows: str
    amounts: list[int]
    seconds: list[float]
    exponent: float
    error: float
    end: float

    @property
    def steep(self) -> bool:
        """Whether it grows faster than its work."""
        return self.exponent > LINEAR or self.end > LINEAR_AT_THE_END


def cpu_seconds() -> float:
    """What this process and those that it has waited for have used so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def fitted(stage: str, grows: str, amounts: Sequence[int], seconds: Sequence[float]) -> Growth:
    """Fit a straight line through logarithms."""
    x, y = ([math.log(value) for value in values] for values in (amounts, seconds))
    line = stats.linregress(x, y)
    end = (y[-1] - y[-2]) / (x[-1] - x[-2])
    return Growth(
        stage, grows, list(amounts), list(seconds), float(line.slope), float(line.stderr), end
    )


def measured(series: Series, rounds: int) -> Growth:
    """Do the work at all sizes in turns."""
    with tempfile.TemporaryDirectory() as temporary:
        works = {}
        for size in series.sizes:
            folder = Path(temporary, str(size))
            folder.mkdir()
            works[str(size)] = series.make(folder, size)
        times = in_turns(works, rounds, cpu_seconds)
    medians = [statistics.median(times[str(size)]) for size in series.sizes]
    return fitted(series.stage, series.grows, [series.amount(n) for n in series.sizes], medians)


def _short(amount: int) -> str:
    return f"{amount / 1e6:.2g} M" if amount >= 10**5 else str(amount)


def table(found: Sequence[Growth]) -> str:
    """A Markdown table of all."""
    lines = [
        "| stage | grows with | sizes | CPU seconds | exponent | at the end | linear |",
        "|---|---|---|---|---:|---:|---|",
    ]
    for growth in found:
        sizes = ", ".join(map(_short, growth.amounts))
        seconds = ", ".join(shown([value]) for value in growth.seconds)
        lines.append(
            f"| {growth.stage} | {growth.grows} | {sizes} | {seconds} "
            f"| {growth.exponent:.2f} ± {growth.error:.2f} | {growth.end:.2f} "
            f"| {'**no**' if growth.steep else 'yes'} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, print the table as it grows, and write the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="stages")
    options = parser.parse_args()
    from kdpipe.engine.device import keep_freed_memory, processor

    keep_freed_memory()
    found = []
    for series in all_series():
        if not options.only or series.stage in options.only:
            found.append(measured(series, options.rounds))
            print(table(found).splitlines()[-1], file=sys.stderr, flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    facts = {"cpu": processor(), "cores": os.cpu_count(), "rounds": options.rounds}
    text = json.dumps(facts | {"growth": [asdict(growth) for growth in found]}, indent=1)
    (options.out / "scale.json").write_text(text + "\n", encoding="utf-8")
    (options.out / "scale.md").write_text(table(found) + "\n", encoding="utf-8")
    draw(found, options.out / "scale")
    print(table(found))
    return int(any(growth.steep for growth in found))


if __name__ == "__main__":
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "BLOSC_NTHREADS"):
        if os.environ.get(name) != "1":  # they are read when libraries are loaded
            os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"))
            os.environ["BLOSC_NTHREADS"] = "1"
            os.environ["PYTHONPATH"] = os.pathsep.join(
                [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
            )
            os.execv(sys.executable, [sys.executable, *sys.argv])
    raise SystemExit(main())
