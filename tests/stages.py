"""A tiny study whose stages run one by one as processes, to be killed at a chosen write.

The processes are forked from a server that has imported everything, so that each takes a fraction
of a second. What they run is ``kdpipe STAGE ...`` with the arguments that the rules give.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

from kdpipe.config import read_study
from kdpipe.plan import Plan
from kdpipe.provenance import canonical
from kdpipe.runs import run_files

CARD = """
schema_version: 1
id: tiny
title: Small phantoms
modality: CT
channels: [CT]
licence: {spdx: CC0-1.0}
access: {mode: generate}
generator:
  {kind: ct_abdomen, n_cases: 4, shape_min: [24, 24, 24], shape_max: [24, 24, 24]}
labels: {raw: {0: background, 1: liver, 2: kidney, 3: spleen}, may_be_absent: all}
splits: {default: {kind: fixed_counts, train: 1, val: 1, test: 2}}
presets:
  default:
    spacing: [4.0, 4.0, 4.0]
    intensity: {kind: window, low: -175, high: 275}
    patch: [16, 16, 16]
"""

CONFIG = """
study: tiny
cards: [cards]
datasets: [tiny]
teachers: [{unet_tiny: {channels: [4, 8, 8], strides: [2, 2]}}]
students: [{unet_tiny: {channels: [4, 8, 8], strides: [2, 2]}}]
methods: [none]
seeds: [0]
training:
  teacher: {epochs: 1, steps_per_epoch: 1, validate_every: 1}
  student: {epochs: 1, steps_per_epoch: 1, validate_every: 1}
profile: {repeats: 5}
statistics: {resamples: 500}
"""

#: what costs a network, measured elsewhere
_COSTS = {"parameters": 1000, "macs": 1000, "cpu": {"latency_ms": 1.0, "peak_mb": 1.0}}
#: in the order of a study; those of training are there to feed the others
_TRAINED = ["fetch", "prepare", "split", "train"]
_SCORED = ["predict", "evaluate", "tables", "compare", "figures", "overlays", "report"]
STAGES = [stage for stage in (*_TRAINED, *_SCORED) if stage not in {"split", "train"}]
_MODULES = [
    "stages",
    "kdpipe.cli",
    "kdpipe.data.acquisition.fetch",
    "kdpipe.data.preparation.prepare",
    "kdpipe.data.splits.split",
    "kdpipe.data.checks.verdict",
    "kdpipe.engine.shared",
    "kdpipe.engine.adopt",
    "kdpipe.commands.evaluation",
    "kdpipe.metrics.folders",
    "kdpipe.nets.unet_tiny",
    "kdpipe.infer.predict",
    "kdpipe.report.tables",
    "kdpipe.report.page.write",
    "kdpipe.stats.write",
    "kdpipe.figures.write",
    "kdpipe.overlays.write",
]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(_MODULES)
PATIENCE = 300.0


class Study:
    """The study in a folder; `finish` runs what is missing of it."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "cards").mkdir(parents=True)
        (folder / "cards" / "tiny.yaml").write_text(CARD)
        (folder / "config.yaml").write_text(CONFIG)
        with _within(folder):
            plan = Plan(read_study("config.yaml"))
            for path, run in run_files(plan).items():
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_text(f"{canonical(run)}\n")
            for path in plan.profiles:
                Path(path, "profile.json").write_text(json.dumps(_COSTS))
        self.cells = list(plan.cells)
        self.started: list[ForkServerProcess] = []

    def copy(self, folder: Path) -> Study:
        """Return a copy of all that there is."""
        shutil.copytree(self.folder, folder)
        twin = Study.__new__(Study)
        twin.folder, twin.cells, twin.started = folder, self.cells, []
        return twin

    @property
    def log(self) -> str:
        """What all processes have said."""
        return (self.folder / "log.txt").read_text()

    def settings(self, path: str) -> str:
        """What the rule `configure` would write to a run.json, by the configuration as it is."""
        with _within(self.folder):
            return f"{canonical(run_files(Plan(read_study('config.yaml')))[path])}\n"

    def outputs(self, stage: str) -> list[Path]:
        """What Snakemake takes for the results of the stage, and deletes when it fails."""
        raw, prepared, tables = "data/raw/tiny", "data/prepared/tiny/default", "results/tables/tiny"
        cell = self.cells[0]
        names = {
            "fetch": [f"{raw}/manifest.tsv"],
            "prepare": [f"{prepared}/cases.tsv", f"{prepared}/fingerprint.json"],
            "predict": [f"{cell}/predictions"],
            "evaluate": [f"{cell}/metrics.csv"],
            "tables": [f"{tables}/{name}" for name in _TABLES],
            "compare": [f"{tables}/{name}" for name in _COMPARISONS],
            "figures": ["results/figures/tiny"],
            "overlays": ["results/overlays/tiny"],
            "report": ["results/reports/tiny.html"],
        }
        return [self.folder / name for name in names[stage]]

    def products(self, stage: str) -> list[Path]:
        """The outputs, and what survives a failure."""
        raw, prepared = self.folder / "data/raw/tiny", self.folder / "data/prepared/tiny/default"
        kept = {
            "fetch": [raw / "files"],
            "prepare": [prepared / name for name in ("cases", *_FINDINGS)],
        }
        return [*self.outputs(stage), *kept.get(stage, [])]

    def arguments(self, stage: str, cell: str = "", workers: int = 1) -> list[str]:
        """The command line, as the rule gives it."""
        cell = cell or self.cells[0]
        raw, prepared, tables = "data/raw/tiny", "data/prepared/tiny/default", "results/tables/tiny"
        split = "results/tiny/default/fold0/split.json"
        figures, overlays = "results/figures/tiny", "results/overlays/tiny"
        text = {
            "fetch": f"--run {raw}/run.json --files {raw}/files --archives data/archives/tiny"
            f" --labels {raw}/labels --manifest {raw}/manifest.tsv",
            "prepare": f"--run {prepared}/run.json --manifest {raw}/manifest.tsv"
            f" --store {prepared}/cases --cases {prepared}/cases.tsv"
            f" --fingerprint {prepared}/fingerprint.json --names {prepared}/names/run.json"
            f" --integrity {prepared}/integrity.json --report {prepared}/report.html"
            f" --workers {workers}",
            "split": f"--run results/tiny/default/fold0/run.json --cases {prepared}/cases.tsv"
            f" --integrity {prepared}/integrity.json --out {split}",
            "train": f"--run {cell}/run.json --prepared {prepared} --split {split}"
            f" --state {cell}/checkpoint --model {cell}/model.pt",
            "predict": f"--run results/tiny/predict/run.json --model {cell}/model.pt"
            f" --prepared {prepared} --split {split} --out {cell}/predictions",
            "evaluate": f"--run results/tiny/evaluate/run.json --cell {cell}/run.json"
            f" --prediction {cell}/predictions --split {split} --manifest {raw}/manifest.tsv"
            f" --prepared {prepared} --workers {workers} --out {cell}/metrics.csv",
            "tables": f"--run {tables}/run.json --out {tables}",
            "compare": f"--run {tables}/run.json --tables {tables}",
            "figures": f"--run {tables}/run.json --tables {tables} --out {figures}",
            "overlays": f"--run {tables}/run.json --tables {tables} --out {overlays}",
            "report": f"--run {tables}/run.json --tables {tables} --figures {figures}"
            f" --overlays {overlays} --out results/reports/tiny.html",
        }[stage]
        return [stage, *text.split()]

    def finish(self) -> None:
        """Run all stages."""
        for stage in (*_TRAINED, *_SCORED):
            for cell in self.cells if stage in {"train", "predict", "evaluate"} else [""]:
                assert self.run(stage, cell=cell) == 0, self.log

    def start(
        self,
        stage: str,
        *,
        cell: str = "",
        fault: Fault | None = None,
        elsewhere: str = "",
        wait_minutes: int = 0,
        **environment: str,
    ) -> ForkServerProcess:
        """Start a stage as a process of its own; its results may go to another folder."""
        arguments = self.arguments(stage, cell)
        if elsewhere:
            for flag in set(arguments) & {"--out", "--store", "--cases", "--fingerprint"}:
                at = arguments.index(flag) + 1
                arguments[at] = f"{elsewhere}/{Path(arguments[at]).name}"
        if wait_minutes:
            arguments += ["--wait-minutes", str(wait_minutes)]
        given = (arguments, str(self.folder), fault, environment)
        process = _SERVER.Process(target=_child, args=given)
        process.start()
        self.started.append(process)
        return process

    def run(self, stage: str, **given: Any) -> int:
        """Run a stage, see `start`; return its exit code, that of a signal is negative."""
        process = self.start(stage, **given)
        process.join(PATIENCE)
        assert process.exitcode is not None, self.log
        return process.exitcode

    def writes(self, stage: str) -> int:
        """Run a stage and count its writes."""
        counted = self.folder.with_name(f"{self.folder.name}-writes")
        assert self.run(stage, fault=Fault(0, 0, str(counted))) == 0, self.log
        return int(counted.read_text())

    def contents(self) -> dict[str, str]:
        """Digest of every file, also of hidden ones."""
        return {
            str(file.relative_to(self.folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(self.folder.rglob("*"))
            if file.is_file() and file.name != "log.txt"
        }

    def remove(self, paths: list[Path]) -> None:
        """Delete files and folders."""
        for path in paths:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


_TABLES = ("scores.csv", "results.csv", "wide.csv", "results.md", "results.tex")
_COMPARISONS = (
    "comparisons.csv",
    "ranks.csv",
    "power.csv",
    "references.csv",
    "comparisons.md",
    "comparisons.tex",
    "claim.json",
)
_FINDINGS = ("integrity.json", "integrity.tsv", "report.html")


class Fault(NamedTuple):
    """A signal before a write, by its number; and a file for the number of writes."""

    number: int
    at: int
    counted: str = ""


_WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}


def _child(
    arguments: list[str], folder: str, fault: Fault | None, environment: dict[str, str]
) -> None:
    os.chdir(folder)
    os.environ.pop("SLURM_JOB_ID", None)
    os.environ |= environment
    with open("log.txt", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    from kdpipe.cli import main

    seen = _watch_writes(fault) if fault else []
    code = main(arguments)
    if fault and fault.counted:
        Path(fault.counted).write_text(str(len(seen)))
    sys.exit(code)


def _watch_writes(fault: Fault) -> list[str]:
    """Send this process the signal before the write; return the list of its writes."""
    here, process, seen = os.getcwd(), os.getpid(), list[str]()

    def hook(event: str, values: tuple[object, ...]) -> None:
        if event not in _WRITES and not (event == "open" and _is_write(values[2])):
            return
        if os.getpid() != process or not isinstance(values[0], str | os.PathLike):
            return
        if not os.path.abspath(values[0]).startswith(f"{here}/"):
            return
        seen.append(event)
        if len(seen) == fault.at:
            os.kill(process, fault.number)

    sys.addaudithook(hook)
    return seen


def _is_write(flags: object) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


@contextmanager
def _within(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


STOPPED = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 75, signal.SIGINT: 75}
