"""What planning a large study costs: kdpipe's graph against bare Snakemake's of the same jobs.

Usage: python bench/planning.py [--rounds 5] [--json FILE]

Writes a study of many methods and seeds, and a Snakefile that knows nothing of kdpipe but has the
same rules, jobs, inputs, outputs and resources: it looks the inputs up in a JSON file, and has no
`params`. Then `snakemake --dry-run` plans both in turns. Both plans must have as many jobs of each
rule, or the comparison stops.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from side_by_side import Row, in_turns, main, ratio, shown

from kdpipe.config import load_study
from kdpipe.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
TEACHERS, STUDENTS, SEEDS = 2, 5, 10

BARE = """
import json

G = json.load(open("graph.json"))
CELLS, PROFILES, T = G["cells"], G["profiles"], "results/tables/big"
NAMES = ("scores.csv", "results.csv", "results.md", "comparisons.md", "claim.json")
TABLES = [f"{T}/{n}" for n in NAMES]

wildcard_constraints:
    cell=r".+/(?:teachers|students)/.+/seed\\d+",
    profile=r".+/profiles/(?:teachers|students)/[A-Za-z0-9_.+-]+",
    dataset=r"[a-z0-9_]+",
    preset=r"[A-Za-z0-9_]+",
    split=r"[A-Za-z0-9_]+",
    fold=r"\\d+",

localrules: all

def grows(amount):
    return lambda wildcards, attempt: amount * attempt

def of(key, name):
    return lambda wildcards: f"{CELLS[wildcards.cell][key]}/{name}"

def teacher(wildcards):
    folder = CELLS[wildcards.cell]["teacher"]
    return f"{folder}/model.pt" if folder else []

rule all:
    input: TABLES, "results/reports/big.html"
"""

#: rule -> inputs, outputs, further lines
BARE_RULES: dict[str, tuple[str, str, str]] = {
    "configure": ("", 'run="{folder}/run.json"', "localrule: True"),
    "fetch": ('run="data/raw/{dataset}/run.json"', 'm="data/raw/{dataset}/manifest.tsv"', ""),
    "prepare": (
        'run="data/prepared/{dataset}/{preset}/run.json",'
        ' names=ancient("data/prepared/{dataset}/{preset}/names/run.json"),'
        ' manifest="data/raw/{dataset}/manifest.tsv"',
        'c="data/prepared/{dataset}/{preset}/cases.tsv",'
        ' f="data/prepared/{dataset}/{preset}/fingerprint.json"',
        "",
    ),
    "split": (
        'run="results/{dataset}/{split}/fold{fold}/run.json",'
        ' cases="data/prepared/{dataset}/default/cases.tsv"',
        'split="results/{dataset}/{split}/fold{fold}/split.json"',
        "localrule: True",
    ),
    "train_teacher": (
        'run="{cell}/run.json", split=of("fold", "split.json"), cases=of("prepared", "cases.tsv")',
        'model="{cell}/model.pt", facts="{cell}/model.json", history="{cell}/train.csv"',
        'wildcard_constraints: cell=r".+/teachers/.+/seed\\d+"',
    ),
    "distill": (
        'run="{cell}/run.json", split=of("fold", "split.json"),'
        ' cases=of("prepared", "cases.tsv"), teacher=teacher',
        'model="{cell}/model.pt", facts="{cell}/model.json", history="{cell}/train.csv"',
        'wildcard_constraints: cell=r".+/students/.+/seed\\d+"',
    ),
    "profile": ('run="{profile}/run.json"', 'c="{profile}/profile.json"', ""),
    "predict": (
        'run=of("predict", "run.json"), model="{cell}/model.pt", split=of("fold", "split.json"),'
        ' cases=of("prepared", "cases.tsv")',
        'p=directory("{cell}/predictions")',
        "",
    ),
    "evaluate": (
        'run=of("evaluate", "run.json"), cell="{cell}/run.json", p="{cell}/predictions",'
        ' split=of("fold", "split.json"), manifest=of("raw", "manifest.tsv")',
        's="{cell}/metrics.csv"',
        "",
    ),
    "tabulate": (
        'run=f"{T}/run.json", s=expand("{cell}/metrics.csv", cell=CELLS),'
        ' f=expand("{cell}/model.json", cell=CELLS), c=expand("{p}/profile.json", p=PROFILES)',
        'expand("{t}/{n}", t=T, n=["scores.csv", "results.csv", "wide.csv", "results.md",'
        ' "results.tex"])',
        "localrule: True",
    ),
    "compare": (
        'run=f"{T}/run.json", s=f"{T}/scores.csv", r=f"{T}/results.csv"',
        'expand("{t}/{n}", t=T, n=["comparisons.csv", "ranks.csv", "power.csv", "references.csv",'
        ' "comparisons.md", "comparisons.tex", "claim.json"])',
        "localrule: True",
    ),
    "figures": (
        'run=f"{T}/run.json", r=f"{T}/results.csv", c=f"{T}/comparisons.csv",'
        ' h=expand("{cell}/train.csv", cell=CELLS)',
        'directory("results/figures/big")',
        "localrule: True",
    ),
    "overlays": (
        'run=f"{T}/run.json", s=f"{T}/scores.csv", p=expand("{cell}/predictions", cell=CELLS)',
        'directory("results/overlays/big")',
        "",
    ),
    "report": (
        'run=f"{T}/run.json", s=f"{T}/scores.csv", r=f"{T}/results.csv", c=f"{T}/claim.json",'
        ' f=expand("{cell}/model.json", cell=CELLS), g="results/figures/big",'
        ' o="results/overlays/big"',
        '"results/reports/big.html"',
        "localrule: True",
    ),
}


def config(cells: int) -> dict[str, Any]:
    """A study of at least `cells` cells, one data set and one fold."""
    of_a_method = TEACHERS * STUDENTS * SEEDS
    methods = -(-(cells - TEACHERS - STUDENTS * SEEDS) // of_a_method)
    return {
        "study": "big",
        "datasets": ["phantom_ct"],
        "teachers": [{"res_unet": {}, "as": f"teacher{i}"} for i in range(TEACHERS)],
        "students": [{"unet_tiny": {}, "as": f"student{i}"} for i in range(STUDENTS)],
        "methods": ["none", *({"kd": {"tau": 1 + i / 8}, "as": f"kd{i}"} for i in range(methods))],
        "seeds": list(range(SEEDS)),
    }


def bare_snakefile() -> str:
    """The text of a Snakefile with the same graph."""
    text = BARE
    for name, (inputs, outputs, more) in BARE_RULES.items():
        wildcards = sorted(
            set(re.findall(r"{(cell|profile|folder|dataset|preset|split|fold)}", outputs))
        )
        unique = "_".join(f"{{{wildcard}}}" for wildcard in wildcards) or "log"
        if "for" in outputs or "expand" in outputs:
            unique = "log"
        text += f"\nrule {name}:\n"
        text += f"    input: {inputs}\n" if inputs else ""
        text += f"    output: {outputs}\n"
        text += f'    log: "logs/{name}/{unique}"\n'
        if name not in ("configure",):
            text += f'    benchmark: "benchmarks/{name}/{unique}"\n'
        text += "    threads: 1\n    resources: mem_mb=grows(4000), runtime=grows(60)\n"
        text += f"    {more}\n" if more else ""
        text += '    shell: "touch {output}"\n'
    return text


def write_bare(folder: Path, plan: Plan) -> None:
    """Write the Snakefile without kdpipe, and the graph that it looks up."""
    paths = plan.paths
    cells = {}
    for cell_folder, cell in plan.cells.items():
        name = cell.dataset.name
        cells[cell_folder] = {
            "raw": paths.raw(name),
            "prepared": plan.prepared(cell),
            "fold": paths.fold(dataset=name, split=cell.split, fold=cell.fold),
            "predict": paths.stage(name, "predict"),
            "evaluate": paths.stage(name, "evaluate"),
            "teacher": plan.teacher_folder(cell),
        }
    (folder / "graph.json").write_text(
        json.dumps({"cells": cells, "profiles": list(plan.profiles)})
    )
    (folder / "Snakefile").write_text(bare_snakefile())


@dataclass(frozen=True)
class DryRun:
    """What a plan took, and what was printed."""

    cpu_seconds: float
    peak_mib: float
    text: str


def dry_run(folder: Path, snakefile: Path) -> DryRun:
    """Plan once."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile)]
    command += ["--directory", str(folder), "--dry-run", "--quiet", "rules", "--cores", "2"]
    command += ["--workflow-profile", "none"]
    if (folder / "config.yaml").exists():
        command += ["--configfile", str(folder / "config.yaml")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(command, stdout=told, stderr=told, env=environment)
        _, status, used = os.wait4(process.pid, 0)  # of this process alone
        told.seek(0)
        text = told.read()
    if status:
        raise SystemExit(text[-3000:])
    return DryRun(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, text)


def jobs(text: str) -> dict[str, int]:
    """Rule -> number of jobs, from the table that Snakemake prints."""
    return {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", text, re.M)}


def compared(cells: int, rounds: int) -> Row:
    """Plan a study of so many cells both ways, in turns."""
    with tempfile.TemporaryDirectory() as temporary:
        ours, bare = Path(temporary, "kdpipe"), Path(temporary, "bare")
        for folder in (ours, bare):
            folder.mkdir()
        settings = config(cells)
        (ours / "config.yaml").write_text(yaml.safe_dump(settings))
        write_bare(bare, Plan(load_study(settings)))
        plans: dict[str, list[DryRun]] = {"kdpipe": [], "bare": []}
        ways = {
            "kdpipe": lambda: plans["kdpipe"].append(dry_run(ours, ROOT / "Snakefile")),
            "bare": lambda: plans["bare"].append(dry_run(bare, bare / "Snakefile")),
        }
        seconds = in_turns(ways, rounds)
    theirs, mine = (jobs(plans[name][-1].text) for name in ("bare", "kdpipe"))
    if theirs != mine:
        raise SystemExit(f"the graphs differ: {mine} and {theirs}")
    used, memory = (
        statistics.median(
            getattr(k, field) / getattr(b, field)
            for k, b in zip(plans["kdpipe"], plans["bare"], strict=True)
        )
        for field in ("cpu_seconds", "peak_mib")
    )
    return Row(
        "planning",
        f"{mine['total']} jobs of {cells} cells",
        shown(seconds["kdpipe"]),
        "bare Snakemake, the same graph",
        shown(seconds["bare"]),
        ratio(seconds, "kdpipe", "bare"),
        1 / 1.15,
        "Snakemake itself",
        "as many jobs of each rule",
        f"{used:.2f} of its processor time, {memory:.2f} of its memory",
    )


def rows(rounds: int = 5) -> list[Row]:
    """Two sizes of study: about 3700 jobs and 12000."""
    return [compared(cells, rounds) for cells in (870, 2900)]


if __name__ == "__main__":
    main(rows, packages=("snakemake",))
