"""Studies with scores that were never measured: tables, statistics and report of `scale.py`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

STRUCTURES = 5


class Study:
    """A study with scores that were never measured, below `folder`."""

    METRICS = {"dice": "fraction", "hd95_pooled": "mm", "nsd": "fraction", "reference_ml": "ml"}

    def __init__(self, folder: Path, cases: int = 30, methods: int = 12, seeds: int = 2):
        from kdpipe.config import load_study
        from kdpipe.plan import Plan
        from kdpipe.runs import run_files

        named = [{"kd": {"tau": 1 + i / 8}, "as": f"kd{i}"} for i in range(methods - 1)]
        plan = Plan(load_study({
            "study": "scale", "results_root": str(folder), "datasets": ["phantom_ct"],
            "teachers": ["res_unet"], "students": ["unet_tiny"], "methods": ["none", *named],
            "seeds": list(range(seeds)), "evaluation": {"bands": False},
        }))  # fmt: skip
        self.tables, self.folder = Path(plan.paths.tables("scale")), folder
        self.run = run_files(plan)[f"{self.tables}/run.json"]
        self.tables.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for cell in self.run["cells"]:
            self._write_cell(cell, cases, rng)

    def _write_cell(self, cell: dict[str, Any], cases: int, rng: np.random.Generator) -> None:
        of, profile = Path(cell["folder"]), Path(cell["profile"])
        for part in (of, profile):
            part.mkdir(parents=True, exist_ok=True)
        (of / "model.json").write_text(json.dumps({"seconds": 1.0, "split_sha256": "0"}))
        cost = {"latency_ms": 1.0, "peak_mb": 1.0}
        (profile / "profile.json").write_text(
            json.dumps({"parameters": 1, "macs": 1, "cpu": cost, "cuda": None})
        )
        keys = {key: cell[key] for key in cell if key not in ("folder", "profile")}
        names = (f"organ{i}" for i in range(STRUCTURES))
        every = itertools.product((f"c{i:03d}" for i in range(cases)), names, self.METRICS)
        table = pd.DataFrame(every, columns=["case", "structure", "metric"])
        table = table.assign(
            **keys, protocol="strict_mm", value=rng.uniform(0.6, 0.9, len(table)), status="ok",
            unit=table["metric"].map(self.METRICS),
        )  # fmt: skip
        table.to_csv(of / "metrics.csv", index=False)

    def tabulate(self) -> None:
        """What the rule of the tables does."""
        from kdpipe.report.tables import write_tables

        write_tables(self.run, self.tables)

    def compare(self) -> None:
        """The statistics; wants tables."""
        from kdpipe.stats.write import write_comparisons

        write_comparisons(self.run, self.tables)

    def report(self) -> None:
        """The page without figures; wants tables and statistics."""
        from kdpipe.report.page.write import write_report

        none = self.folder / "none"
        write_report(self.run, self.tables, none, none, self.folder / "report.html")


def of_study(step: str, axis: str) -> Callable[[Path, int], Callable[[], object]]:
    """The maker of one of the three steps, for studies that grow along an axis."""

    def make(folder: Path, size: int) -> Callable[[], object]:
        study = Study(folder, **{axis: size})
        before = {"tabulate": (), "compare": ("tabulate",), "report": ("tabulate", "compare")}
        for earlier in before[step]:
            getattr(study, earlier)()
        return getattr(study, step)  # type: ignore[no-any-return]

    return make
