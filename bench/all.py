"""All comparisons with peers, one after the other, each in a process of its own: one table.

Usage: python bench/all.py [--only inference data] [--rounds 5] [--out results/bench]

Writes ``bench.json`` (the rows, with versions and the processor) and ``bench.md``. What a part
printed while it ran goes to standard error. A part that fails is named, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from side_by_side import Row, table

HERE = Path(__file__).resolve().parent
PARTS = (
    "evaluation",
    "inference",
    "data",
    "kd_step",
    "cohort",
    "shipped",
    "startup",
    "planning",
)


def measured(part: str, rounds: int, folder: Path) -> dict[str, object] | None:
    """Run one part; None if it failed."""
    file = folder / f"{part}.json"
    print(f"{part}: load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    command = [sys.executable, str(HERE / f"{part}.py"), "--rounds", str(rounds)]
    environment = os.environ | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # the peers have theirs from installation
    done = subprocess.run(
        [*command, "--json", str(file)], stdout=sys.stderr, env=environment, check=False
    )
    if done.returncode or not file.exists():
        print(f"{part}: failed with {done.returncode}", file=sys.stderr)
        return None
    found: dict[str, object] = json.loads(file.read_text(encoding="utf-8"))
    return found


def main() -> int:
    """Run the parts and print their table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        parts = {part: measured(part, options.rounds, Path(temporary)) for part in options.only}
    found = {part: result for part, result in parts.items() if result is not None}
    rows = [Row(**row) for result in found.values() for row in result["rows"]]  # type: ignore
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    (options.out / "bench.json").write_text(text, encoding="utf-8")
    (options.out / "bench.md").write_text(table(rows) + "\n", encoding="utf-8")
    print(table(rows))
    return int(len(found) < len(parts))


if __name__ == "__main__":
    raise SystemExit(main())
