"""After one edit, a dry run plans exactly the jobs that the edit touches.

The graph is the real one on a copy of the checkout. Only the command line is replaced by one that
writes its outputs and nothing else, so that a finished study costs seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FAKE_CLI = '''
"""Writes what a stage would write, without doing it."""
import sys
from pathlib import Path

FLAGS = ("--manifest", "--cases", "--fingerprint", "--model", "--out")
OUTPUTS = {
    "fetch": ("--manifest",), "prepare": ("--cases", "--fingerprint"), "split": ("--out",),
    "train": ("--model",), "distill": ("--model",), "predict": ("--out",), "evaluate": ("--out",),
    "profile": ("--out",), "tables": ("--out",),
}


def main():
    stage, *rest = sys.argv[1:]
    given = dict(zip(rest[::2], rest[1::2]))
    for flag in OUTPUTS[stage]:
        path = Path(given[flag])
        if stage == "predict":
            path = path / "case.nii.gz"
        names = {"train": ("model.pt", "model.json", "train.csv"),
                 "tables": ("scores.csv", "results.csv", "results.md", "results.tex")}
        names = names.get("train" if stage == "distill" else stage)
        folder = path.parent if stage in ("train", "distill") else path
        for file in [folder / name for name in names] if names else [path]:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{stage} {file}")
    return 0
'''

CARD = """
schema_version: 1
id: mine
title: A local data set
modality: CT
channels: [CT]
licence: {spdx: CC0-1.0}
access: {mode: local}
labels: {raw: {0: background, 1: liver, 2: spleen}}
splits: {default: {kind: fractions, val: 0.2, test: 0.3}}
presets:
  default: {intensity: {kind: window, low: -100, high: 200}, patch: [16, 16, 16]}
"""

CONFIG = """
study: tiny
cards: [cards]
data_source: {mine: source}
datasets: [mine]
teachers: [segresnet]
students: [unet_tiny]
methods: [none, {kd: {weight: 1.0}}, cwd, {sum: [kd, at], as: both}]
seeds: [0, 1]
"""

#: a teacher that is trained already
ADOPTED = """
study: tiny
cards: [cards]
data_source: {mine: source}
datasets: [mine]
teachers: [{segresnet: {}, weights: models/best.pt}]
students: [unet_tiny]
methods: [none, kd]
"""


class Checkout:
    """A copy of the workflow, in which a study was run to its end."""

    def __init__(self, folder: Path, root: Path, config: str):
        self.folder = folder
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / "kdpipe", folder / "kdpipe", ignore=ignore)
        for part in ("workflow", "envs"):
            shutil.copytree(root / part, folder / part)
        shutil.copy(root / "Snakefile", folder)
        (folder / "profiles").symlink_to("workflow/profiles")
        self.write("kdpipe/cli.py", FAKE_CLI)
        self.write("config.yaml", config)
        self.write("models/best.pt", "weights")
        self.write("cards/mine.yaml", CARD)
        self.write("source/dataset.json", "{}")
        for case in "ab":
            for part in ("imagesTr", "labelsTr"):
                self.write(f"source/{part}/{case}.nii.gz", case)
        self.write("source/imagesTr/large.nii.gz", "x" * 1_500_000)

    def write(self, name: str, text: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def replace(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text, f"{name} no longer holds {old!r}"
        self.write(name, text.replace(old, new))

    def snakemake(self, *arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def planned(self) -> set[str]:
        """Rule and cell of every job that a dry run plans, such as ``distill kd/seed0``."""
        text = self.snakemake("--dry-run")
        jobs = re.findall(
            r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    output: ([^,\n]+)", text, re.M
        )
        return {_short(rule, output) for rule, output in jobs if rule != "all"}

    def planned_after(self, change: Callable[[Checkout], None]) -> set[str]:
        """What is planned after an edit, which is taken back."""
        before = {
            file: (file.read_bytes(), file.stat())
            for part in ("kdpipe", "cards", "source", "models", "config.yaml")
            for file in [self.folder / part, *(self.folder / part).rglob("*")]
            if file.is_file()
        }
        change(self)
        try:
            return self.planned()
        finally:
            for file, (content, stat) in before.items():
                file.write_bytes(content)
                os.utime(file, (stat.st_atime, stat.st_mtime))
            (self.folder / "kdpipe/methods/mine.py").unlink(missing_ok=True)


def _short(rule: str, output: str) -> str:
    cell = re.search(r"/(teachers|students)/(.+)/(seed\d+)/", output.rsplit("/", 1)[0] + "/")
    if rule == "profile":
        return f"profile {Path(output).parent.name}"
    if cell is None:
        return rule if rule != "configure" else f"configure {Path(output).parent.name}"
    return f"{rule} {cell[2].rsplit('/', 1)[-1]}/{cell[3]}"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Checkout:
    made = Checkout(tmp_path_factory.mktemp("checkout"), root, CONFIG)
    made.snakemake()
    return made


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Checkout:
    made = Checkout(tmp_path_factory.mktemp("adopted"), root, ADOPTED)
    made.snakemake()
    return made


TEACHER = "segresnet/seed0"
SEEDS = ("seed0", "seed1")


def cells(*methods: str, seeds: tuple[str, ...] = SEEDS) -> list[str]:
    return [f"{method}/{seed}" for method in methods for seed in seeds]


ALL = [TEACHER, *cells("none", "kd", "cwd", "both")]


def jobs(rules: str, of: list[str]) -> set[str]:
    return {f"{rule} {cell}" for rule in rules.split() for cell in of}


TRAINED = "distill predict evaluate"
EVERYTHING = (
    {f"train_teacher {TEACHER}", "tabulate"}
    | jobs("distill", cells("none", "kd", "cwd", "both"))
    | jobs("predict evaluate", ALL)
)
Edit = Callable[[Checkout], None]


def edit(file: str, old: str, new: str) -> Edit:
    return lambda checkout: checkout.replace(file, old, new)


def touch(*files: str) -> Edit:
    return lambda checkout: [os.utime(checkout.folder / file) for file in files] and None


def older_image(checkout: Checkout) -> None:
    """Replace an image as an archive tool does, which keeps the date of long ago."""
    file = checkout.folder / "source/imagesTr/a.nii.gz"
    file.write_text("older")
    os.utime(file, (1, 1))


def new_method(checkout: Checkout) -> None:
    checkout.write("kdpipe/methods/mine.py", (checkout.folder / "kdpipe/methods/kd.py").read_text())


def new_method_used(checkout: Checkout) -> None:
    new_method(checkout)
    checkout.replace("config.yaml", "as: both}]", "as: both}, mine]")


CASES: dict[str, tuple[Edit, set[str]]] = {
    "nothing": (lambda checkout: None, set()),
    "a comment": (
        edit("kdpipe/methods/cwd.py", "from __future__", "# why\nfrom __future__"),
        set(),
    ),
    "a docstring": (edit("kdpipe/engine/loop.py", '"""The training loop', '"""A loop'), set()),
    "a method": (
        edit("kdpipe/methods/cwd.py", "dim=2).mean()", "dim=2).sum()"),
        jobs(TRAINED, cells("cwd")) | {"tabulate"},
    ),
    "what methods share": (
        edit("kdpipe/terms/divergences.py", 'reduction="none"', 'reduction="sum"'),
        jobs(TRAINED, cells("kd", "cwd", "both")) | {"tabulate"},
    ),
    "a part of a sum": (
        edit("kdpipe/methods/at.py", "return loss / ", "return 2 * loss / "),
        jobs(TRAINED, cells("both")) | {"tabulate"},
    ),
    "the engine": (edit("kdpipe/engine/loop.py", "self.step += 1", "self.step += 2"), EVERYTHING),
    "the student's network": (
        edit("kdpipe/nets/unet_tiny.py", "        0,\n", "        1,\n"),
        jobs(TRAINED, cells("none", "kd", "cwd", "both")) | {"profile unet_tiny", "tabulate"},
    ),
    "the teacher's network": (
        edit("kdpipe/nets/segresnet.py", "check_", "check__"),
        EVERYTHING - jobs(TRAINED, cells("none")) | {"profile segresnet"},
    ),
    "how costs are measured": (
        edit("kdpipe/engine/profile.py", "statistics.median(", "min("),
        {"profile segresnet", "profile unet_tiny", "tabulate"},
    ),
    "how often a cost is measured": (
        lambda checkout: checkout.write("config.yaml", CONFIG + "profile: {repeats: 9}\n"),
        jobs("configure profile", ["segresnet", "unet_tiny"]) | {"tabulate"},
    ),
    "the metrics": (
        edit(
            "kdpipe/metrics/surface.py",
            "def pooled_hausdorff",
            "def _x(): ...\ndef pooled_hausdorff",
        ),
        jobs("evaluate", ALL) | {"tabulate"},
    ),
    "the way back": (
        edit("kdpipe/infer/restore.py", "np.uint8", "np.uint16"),
        jobs("predict evaluate", ALL) | {"tabulate"},
    ),
    "the preparation": (
        edit("kdpipe/data/preprocess.py", "import annotations\n", "import annotations\nX = 1\n"),
        EVERYTHING | {"prepare", "split"},
    ),
    "the report": (edit("kdpipe/report/tables.py", '"mean"', '"average"'), {"tabulate"}),
    "the command line": (edit("kdpipe/cli.py", "return 0", "return 0 + 0"), set()),
    "a method's weight": (
        edit("config.yaml", "weight: 1.0", "weight: 2.0"),
        jobs("configure " + TRAINED, cells("kd")) | {"tabulate"},
    ),
    "the order of keys": (
        edit("config.yaml", "study: tiny\ncards: [cards]", "cards: [cards]\nstudy: tiny"),
        set(),
    ),
    "a name of a label": (
        edit("cards/mine.yaml", "liver", "hepar"),
        jobs("evaluate", ALL) | {"configure evaluate", "configure names", "tabulate"},
    ),
    "a window": (
        edit("cards/mine.yaml", "high: 200", "high: 250"),
        EVERYTHING | {"configure default", "prepare", "split"},
    ),
    "the overlap of windows": (
        lambda checkout: checkout.write("config.yaml", CONFIG + "inference: {overlap: 0.25}\n"),
        jobs("predict evaluate", ALL) | {"configure predict", "tabulate"},
    ),
    "the teacher's recipe": (
        lambda checkout: checkout.write(
            "config.yaml", CONFIG + "training: {teacher: {epochs: 5}}\n"
        ),
        EVERYTHING - jobs(TRAINED, cells("none")) | {f"configure {TEACHER}"},
    ),
    "resources": (
        lambda checkout: checkout.write(
            "config.yaml", CONFIG + "resources: {train: {mem_mb: 9}}\n"
        ),
        set(),
    ),
    "how often a training is saved": (
        lambda checkout: checkout.write(
            "config.yaml", CONFIG + "resources: {train: {checkpoint_seconds: 5, loaders: 2}}\n"
        ),
        set(),
    ),
    "the teacher's seed": (
        lambda checkout: checkout.write("config.yaml", CONFIG + "teacher_seed: 1\n"),
        jobs("configure train_teacher predict evaluate", ["segresnet/seed1"])
        | jobs(TRAINED, cells("kd", "cwd", "both"))
        | {"configure tiny", "tabulate"},
    ),
    "dates alone": (
        touch(
            "source/imagesTr/a.nii.gz",
            "source/imagesTr/large.nii.gz",
            "data/raw/mine/manifest.tsv",
            f"results/mine/default/fold0/teachers/{TEACHER}/model.pt",
        ),
        set(),
    ),
    "an image": (
        lambda checkout: checkout.write("source/imagesTr/a.nii.gz", "other"),
        EVERYTHING | {"fetch", "prepare", "split"},
    ),
    "an image of an older date": (older_image, EVERYTHING | {"fetch", "prepare", "split"}),
    "a method that no study uses": (new_method, set()),
    "a method that the study uses": (
        new_method_used,
        jobs("configure " + TRAINED, cells("mine")) | {"configure tiny", "tabulate"},
    ),
    "a seed": (
        edit("config.yaml", "seeds: [0, 1]", "seeds: [0, 1, 2]"),
        jobs("configure " + TRAINED, cells("none", "kd", "cwd", "both", seeds=("seed2",)))
        | {"configure tiny", "tabulate"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_edit_reruns_exactly_what_it_touches(checkout: Checkout, name: str) -> None:
    change, expected = CASES[name]
    assert checkout.planned_after(change) == expected


def older_weights(checkout: Checkout) -> None:
    """Weights of one architecture are of one size."""
    file = checkout.folder / "models/best.pt"
    file.write_text("stehgiw")
    os.utime(file, (1, 1))


LEARNED = jobs(TRAINED, ["kd/seed0"]) | {"tabulate"}
TAKEN_OVER = LEARNED | jobs("train_teacher predict evaluate", [TEACHER])
ADOPTED_CASES: dict[str, tuple[Edit, set[str]]] = {
    "the weights": (lambda checkout: checkout.write("models/best.pt", "other"), TAKEN_OVER),
    "weights of an older date": (older_weights, TAKEN_OVER),
    "their date alone": (touch("models/best.pt"), set()),
    "how teachers are taken over": (
        edit("kdpipe/engine/adopt.py", "_SHOWN = 3", "_SHOWN = 4"),
        TAKEN_OVER,
    ),
    "the teacher's network": (
        edit("kdpipe/nets/segresnet.py", "check_", "check__"),
        TAKEN_OVER | {"profile segresnet"},
    ),
}


@pytest.mark.parametrize("name", ADOPTED_CASES)
def test_what_depends_on_a_teacher_that_is_trained_already(adopted: Checkout, name: str) -> None:
    change, expected = ADOPTED_CASES[name]
    assert adopted.planned_after(change) == expected


def test_a_teacher_that_has_gone_stops_the_run(adopted: Checkout) -> None:
    (adopted.folder / "models").rename(adopted.folder / "unmounted")
    try:
        with pytest.raises(AssertionError, match=r"teachers.segresnet: models/best.pt is not the"):
            adopted.snakemake()
    finally:
        (adopted.folder / "unmounted").rename(adopted.folder / "models")
    assert adopted.planned() == set()


def test_a_source_that_has_gone_stops_the_run_and_deletes_nothing(checkout: Checkout) -> None:
    files = [file for part in ("data", "results") for file in (checkout.folder / part).rglob("*")]
    (checkout.folder / "source").rename(checkout.folder / "unmounted")
    try:
        with pytest.raises(AssertionError, match="holds no dataset.json"):
            checkout.snakemake()
    finally:
        (checkout.folder / "unmounted").rename(checkout.folder / "source")
    assert all(file.exists() for file in files)
    assert checkout.planned() == set()
