"""Two or more ways to do the same work, timed in turns, so that a busy machine slows all alike.

A file of this folder that compares with a peer has ``rows(rounds) -> list[Row]``;
``python bench/all.py`` (``make bench``) runs them all and prints one table.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

Clock = Callable[[], float]
Ways = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        stage: "evaluation", "inference", "training" and so on.
        work: what is done, with its size.
        ours: what kdpipe used; a number with its unit, "0.16 s", "12 MB".
        peer: name and version of the peer, and how it was tuned.
        theirs: what the peer used, in the same unit.
        ratio: theirs over ours; above 1 kdpipe is better.
        target: the ratio that is wanted, None where there is none.
        limit: the physical limit and how near it is, if known.
        equal: how the results of both compare, "0 voxels differ".
        note: whatever else a reader must know.
    """

    stage: str
    work: str
    ours: str
    peer: str
    theirs: str
    ratio: float
    target: float | None = None
    limit: str = ""
    equal: str = ""
    note: str = ""


def in_turns(
    ways: Ways, rounds: int = 5, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Run all ways `rounds` times, the first one another in each round, and return their seconds.

    Each way runs once before, unless `rounds` is 1: what is compiled or cached is then there.
    """
    names = list(ways)
    if rounds > 1:
        for name in names:
            ways[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()
            start = clock()
            ways[name]()
            seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], ours: str, theirs: str) -> float:
    """Median over the rounds of theirs / ours within a round."""
    pairs = zip(seconds[theirs], seconds[ours], strict=True)
    return statistics.median(their / our for their, our in pairs)


def shown(seconds: list[float]) -> str:
    """Median with a fitting unit."""
    median = statistics.median(seconds)
    return f"{median:.3g} s" if median >= 1 else f"{1000 * median:.3g} ms"


def shown_bytes(amount: float) -> str:
    """Bytes with a fitting unit."""
    return f"{amount / 2**20:.3g} MiB" if amount < 2**30 else f"{amount / 2**30:.3g} GiB"


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of all rows."""
    lines = [
        "| stage | work | kdpipe | peer | peer's | ratio | target | limit | results |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        wanted = "" if row.target is None else f"{row.target:.3g}"
        short = row.target is not None and row.ratio < row.target
        told = "; ".join(filter(None, (row.equal, row.note)))
        lines.append(
            f"| {row.stage} | {row.work} | {row.ours} | {row.peer} | {row.theirs} "
            f"| {row.ratio:.3g}{' (short)' if short else ''} | {wanted} | {row.limit} | {told} |"
        )
    return "\n".join(lines)


def record(rows: Sequence[Row], packages: Sequence[str] = ()) -> dict[str, object]:
    """What the JSON file holds: the rows, and on what they were measured."""
    from kdpipe.engine.device import processor

    known = ("kdpipe", "torch", "monai", "numpy", "scipy", "numba", *packages)
    return {
        "rows": [asdict(row) for row in rows],
        "cpu": processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in known},
    }


def main(measure: Callable[[int], list[Row]], packages: Sequence[str] = ()) -> None:
    """Measure, print the table and write it as JSON where that is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5, help="medians are of so many")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    rows = measure(options.rounds)
    print(table(rows))
    if options.json:
        text = json.dumps(record(rows, packages), indent=1, ensure_ascii=False)
        options.json.write_text(text + "\n", encoding="utf-8")
