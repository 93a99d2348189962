"""The benchmarks can be run, and the frame that they share counts as it says."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

IMPORT_ALL = """
import importlib, pathlib, sys
for file in sorted(pathlib.Path(sys.argv[1]).glob("*.py")):
    module = importlib.import_module(file.stem)
    if "__main__" in file.read_text() and file.stem != "inference_ways":  # a worker of another
        assert callable(getattr(module, "rows", None) or getattr(module, "main", None)), file
for part in importlib.import_module("all").PARTS:
    assert callable(importlib.import_module(part).rows), part
"""


def _run(root: Path, *arguments: str) -> None:
    bench = root / "bench"
    environment = os.environ | {
        "PYTHONPATH": f"{root}{os.pathsep}{bench}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def frame(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(root / "bench"))
    return importlib.import_module("side_by_side")


@pytest.fixture
def scale(frame: Any) -> Any:
    return importlib.import_module("scale")


def test_each_can_be_imported_and_run(root: Path) -> None:
    _run(root, "-c", IMPORT_ALL, str(root / "bench"))


class Clock:
    """Moves only when work is done."""

    def __init__(self) -> None:
        self.now, self.done = 0.0, ""

    def work(self, name: str, seconds: float) -> None:
        self.now += seconds
        self.done += name

    def __call__(self) -> float:
        return self.now


def test_ways_take_turns_and_are_timed_apart(frame: Any) -> None:
    clock = Clock()
    ways = {name: lambda name=name: clock.work(name, ord(name) - 96) for name in "abc"}
    seconds = frame.in_turns(ways, 3, clock)
    assert clock.done == "abc" + "abc" + "bca" + "cab"  # once to warm up, then another one first
    assert seconds == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [3.0] * 3}


def test_one_round_is_not_warmed_up(frame: Any) -> None:
    clock = Clock()
    frame.in_turns({"a": lambda: clock.work("a", 1.0)}, 1, clock)
    assert clock.done == "a"


def test_the_ratio_is_the_median_of_the_rounds(frame: Any) -> None:
    seconds = {"ours": [1.0, 2.0, 1.0], "theirs": [4.0, 4.0, 100.0]}
    assert frame.ratio(seconds, "ours", "theirs") == 4.0


def test_the_table_says_what_falls_short(frame: Any) -> None:
    row = frame.Row("stage", "work", "2 s", "peer", "3 s", 1.5, 2.0, "", "equal", "a note")
    *_, line = frame.table([row]).splitlines()
    assert line == "| stage | work | 2 s | peer | 3 s | 1.5 (short) | 2 |  | equal; a note |"


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_found(scale: Any, power: float) -> None:
    amounts = [10, 20, 40, 80]
    growth = scale.fitted("stage", "cases", amounts, [3 * n**power for n in amounts])
    assert growth.exponent == pytest.approx(power)
    assert growth.end == pytest.approx(power)
    assert growth.error == pytest.approx(0, abs=1e-6)
    assert growth.steep == (power > 1.15)


def test_what_turns_steep_is_found_behind_a_fixed_cost(scale: Any) -> None:
    amounts = [10, 20, 40, 80]
    growth = scale.fitted("stage", "cases", amounts, [900 + n**2 for n in amounts])
    assert growth.exponent < 1.15 < growth.end
    assert growth.steep


def test_the_growth_of_a_stage_is_measured(scale: Any) -> None:
    works = importlib.import_module("scale_works")
    series = works.Series("tables", "seeds", (1, 2, 3, 4), works.of_study("tabulate", "seeds"))
    growth = scale.measured(series, rounds=1)
    assert growth.amounts == [1, 2, 3, 4]
    assert all(seconds > 0 for seconds in growth.seconds)


def test_the_works_of_the_growth_can_be_done(scale: Any, tmp_path: Path) -> None:
    works = importlib.import_module("scale_works")
    assert len(works._evaluation(tmp_path / "evaluation", 2, 12, 3)()) > 0
    works._prediction(tmp_path / "prediction", 16, 32, 2)()
    assert (tmp_path / "prediction" / "predictions" / "c0.nii.gz").exists()


def test_the_figure_of_the_growth_is_written(scale: Any, tmp_path: Path) -> None:
    amounts = [1, 2, 4, 8]
    found = [
        scale.fitted(stage, grows, amounts, amounts)
        for stage in ("prepare", "predict")
        for grows in ("cases", "voxels")
    ]
    scale.draw(found, tmp_path / "scale")
    assert {file.name for file in tmp_path.iterdir()} == {"scale.svg", "scale.png"}


@pytest.mark.slow
def test_the_bench_of_a_gpu_runs_without_one(root: Path, tmp_path: Path) -> None:
    _run(
        root, str(root / "bench" / "gpu.py"), "--device", "cpu", "--tiny", "--rounds", "1",
        "--out", str(tmp_path),
    )  # fmt: skip
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["left_out"] == {}
    assert {"training", "distances", "evaluation", "the zoo"} == {
        row["stage"] for row in found["rows"]
    }
    assert found["device"] in (tmp_path / "gpu.md").read_text()
