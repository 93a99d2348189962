"""After one edit, a dry run plans exactly the jobs that the edit touches."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from checkouts import Checkout

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
#: what is made of all scores
REPORTED = {"tabulate", "compare", "figures", "overlays", "report"}
EVERYTHING = (
    {f"train_teacher {TEACHER}"}
    | REPORTED
    | jobs("distill", cells("none", "kd", "cwd", "both"))
    | jobs("predict evaluate", ALL)
)
Edit = Callable[[Checkout], None]


def edit(file: str, old: str, new: str) -> Edit:
    return lambda checkout: checkout.replace(file, old, new)


def touch(*files: str) -> Edit:
    return lambda checkout: [os.utime(checkout.folder / file) for file in files] and None


def together(*edits: Edit) -> Edit:
    return lambda checkout: [change(checkout) for change in edits] and None


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
    "a comment, a docstring, the order of keys and what the study does not use": (
        together(
            edit("kdpipe/methods/cwd.py", "from __future__", "# why\nfrom __future__"),
            edit("kdpipe/engine/loop.py", '"""The training loop', '"""A loop'),
            edit("config.yaml", "study: tiny\ncards: [cards]", "cards: [cards]\nstudy: tiny"),
            edit("kdpipe/metrics/protocols/word.yaml", "empty: 50", "empty: 60"),
            edit("kdpipe/cli.py", "return 0", "return 0 + 0"),
            new_method,
        ),
        set(),
    ),
    "a method": (
        edit("kdpipe/methods/cwd.py", "dim=2).mean()", "dim=2).sum()"),
        jobs(TRAINED, cells("cwd")) | REPORTED,
    ),
    "what methods share": (
        edit("kdpipe/terms/divergences.py", 'reduction="none"', 'reduction="sum"'),
        jobs(TRAINED, cells("kd", "cwd", "both")) | REPORTED,
    ),
    "a part of a sum": (
        edit("kdpipe/methods/at.py", "return loss / ", "return 2 * loss / "),
        jobs(TRAINED, cells("both")) | REPORTED,
    ),
    "the engine": (edit("kdpipe/engine/loop.py", "self.step += 1", "self.step += 2"), EVERYTHING),
    "the student's network": (
        edit("kdpipe/nets/unet_tiny.py", "        0,\n", "        1,\n"),
        jobs(TRAINED, cells("none", "kd", "cwd", "both")) | {"profile unet_tiny"} | REPORTED,
    ),
    "the teacher's network": (
        edit("kdpipe/nets/segresnet.py", "check_", "check__"),
        EVERYTHING - jobs(TRAINED, cells("none")) | {"profile segresnet"},
    ),
    "how costs are measured": (
        edit("kdpipe/engine/profile.py", "statistics.median(", "min("),
        {"profile segresnet", "profile unet_tiny"} | REPORTED,
    ),
    "how often a cost is measured": (
        lambda checkout: checkout.write("config.yaml", CONFIG + "profile: {repeats: 9}\n"),
        jobs("configure profile", ["segresnet", "unet_tiny"]) | REPORTED,
    ),
    "the metrics": (
        edit(
            "kdpipe/metrics/surface.py",
            "def pooled_hausdorff",
            "def _x(): ...\ndef pooled_hausdorff",
        ),
        jobs("evaluate", ALL) | REPORTED,
    ),
    "a rule of a protocol": (
        edit("kdpipe/metrics/protocols/strict_mm.yaml", "version: 2", "version: 3"),
        jobs("evaluate", ALL) | {"configure evaluate", "configure tiny"} | REPORTED,
    ),
    "an explanation of a protocol": (
        edit("kdpipe/metrics/protocols/strict_mm.yaml", "source: kdpipe", "source: ours"),
        {"configure tiny"} | REPORTED,
    ),
    "a protocol on the prepared grid": (
        lambda checkout: checkout.write(
            "config.yaml", CONFIG + "evaluation: {protocols: [strict_mm, acf_bckd]}\n"
        ),
        jobs("predict evaluate", ALL)
        | {"configure predict", "configure evaluate", "configure tiny"}
        | REPORTED,
    ),
    "the way back": (
        edit("kdpipe/infer/restore.py", "np.uint8", "np.uint16"),
        jobs("predict evaluate", ALL) | REPORTED,
    ),
    "the preparation": (
        edit(
            "kdpipe/data/preparation/preprocess.py",
            "import annotations\n",
            "import annotations\nX = 1\n",
        ),
        EVERYTHING | {"prepare", "split"},
    ),
    "the tables": (edit("kdpipe/report/tables.py", '"cpu_ms"', '"ms"'), REPORTED),
    "the statistics": (
        edit("kdpipe/stats/write.py", "from __future__", "import os\nfrom __future__"),
        REPORTED - {"tabulate", "overlays"},
    ),
    "a figure": (
        edit("kdpipe/figures/write.py", "from __future__", "import os\nfrom __future__"),
        {"figures", "report"},
    ),
    "an overlay": (
        edit("kdpipe/overlays/outlines.py", "from __future__", "import os\nfrom __future__"),
        {"overlays", "report"},
    ),
    "the report": (
        edit("kdpipe/report/page/write.py", "from __future__", "import os\nfrom __future__"),
        {"report"},
    ),
    "a method's weight": (
        edit("config.yaml", "weight: 1.0", "weight: 2.0"),
        jobs("configure " + TRAINED, cells("kd")) | {"configure tiny"} | REPORTED,
    ),
    "a name of a label": (
        edit("cards/mine.yaml", "liver", "hepar"),
        jobs("evaluate", ALL)
        | {"configure evaluate", "configure names", "configure tiny"}
        | REPORTED,
    ),
    "a window": (
        edit("cards/mine.yaml", "high: 200", "high: 250"),
        EVERYTHING | {"configure default", "configure tiny", "prepare", "split"},
    ),
    "the overlap of windows": (
        lambda checkout: checkout.write("config.yaml", CONFIG + "inference: {overlap: 0.25}\n"),
        jobs("predict evaluate", ALL) | {"configure predict"} | REPORTED,
    ),
    "the teacher's recipe": (
        lambda checkout: checkout.write(
            "config.yaml", CONFIG + "training: {teacher: {epochs: 5}}\n"
        ),
        EVERYTHING - jobs(TRAINED, cells("none")) | {f"configure {TEACHER}", "configure tiny"},
    ),
    "resources": (
        lambda checkout: checkout.write(
            "config.yaml",
            CONFIG + "resources: {train: {mem_mb: 9, checkpoint_seconds: 5, loaders: 2}}\n",
        ),
        set(),
    ),
    "the teacher's seed": (
        lambda checkout: checkout.write("config.yaml", CONFIG + "teacher_seed: 1\n"),
        jobs("configure train_teacher predict evaluate", ["segresnet/seed1"])
        | jobs(TRAINED, cells("kd", "cwd", "both"))
        | {"configure tiny"}
        | REPORTED,
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
    "a method that the study uses": (
        new_method_used,
        jobs("configure " + TRAINED, cells("mine")) | {"configure tiny"} | REPORTED,
    ),
    "a seed": (
        edit("config.yaml", "seeds: [0, 1]", "seeds: [0, 1, 2]"),
        jobs("configure " + TRAINED, cells("none", "kd", "cwd", "both", seeds=("seed2",)))
        | {"configure tiny"}
        | REPORTED,
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


LEARNED = jobs(TRAINED, ["kd/seed0"]) | REPORTED
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


#: a folder has no checksum: scores that are older than theirs of predictions are computed again
OLD_SCORES = {"evaluate kd/seed0"} | REPORTED


@pytest.mark.parametrize(
    ("date", "again"),
    [(1.0, OLD_SCORES), (time.time() + 1e6, set())],
    ids=["the past", "the future"],
)
def test_a_clock_that_is_wrong_hides_no_edit_and_trains_nothing_again(
    checkout: Checkout, date: float, again: set[str]
) -> None:
    """Of settings, inputs and outputs; machines whose clocks differ give such dates."""
    cell = "results/mine/default/fold0/students/segresnet/unet_tiny/kd/seed0"
    names = ("cases.tsv", "fingerprint.json", "run.json")
    files = [checkout.folder / "data/prepared/mine/default" / name for name in names]
    files += [checkout.folder / cell / name for name in ("run.json", "model.pt", "metrics.csv")]
    before = {file: file.stat() for file in files}
    for file in files:
        os.utime(file, (date, date))
    try:
        assert checkout.planned() == again
        change, expected = CASES["a method's weight"]
        assert checkout.planned_after(change) == expected
    finally:
        for file, stat in before.items():
            os.utime(file, (stat.st_atime, stat.st_mtime))
