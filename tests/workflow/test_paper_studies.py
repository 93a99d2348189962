"""The studies of the five papers: their graph, their networks and methods, without their data."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mock_data import IMAGES, mock_dataset

from kdpipe import discover
from kdpipe.commands.forecast import case_counts, forecast_cost, n_comparisons
from kdpipe.composition import needs_teacher
from kdpipe.config import read_study
from kdpipe.engine.taps import probe
from kdpipe.methods.base import Context, Distiller
from kdpipe.nets.base import check_patch, network_of, network_stages
from kdpipe.plan import Plan
from kdpipe.runs import run_files
from kdpipe.terms.segmentation import SEGMENTATION_LOSSES

#: study -> distilled or undistilled students: splits, (teachers x taught + untaught) methods, seeds
STUDIES = {
    "acf_bckd_btcv": 2 * (2 * 11 + 1) * 3,
    "acf_bckd_word": 2 * (2 * 11 + 1) * 3,
    "acf_bckd_brats": 2 * (2 * 5 + 1) * 3,
    "hlfd_kits19": 2 * (8 + 1) * 3,
    "hlfd_lits": 2 * (8 + 1) * 3,
    "mskd_synapse": 2 * 2 * (8 + 1) * 3,
    "mskd_kits": 2 * (8 + 1) * 3,
    "cpkd_synapse": 2 * 2 * (8 + 1) * 3,
    "acw_skd_synapse": 2 * 11 * 3,
    "acw_skd_flare22": 2 * 11 * 3,
    "acw_skd_m2caiseg": 11 * 3,
}
#: what the papers' splits train on and report
PUBLISHED = {
    ("acf_bckd_btcv", "monai_24_6"): (24, 6),
    ("acf_bckd_word", "acf_100_20"): (None, None),  # folders: known when they are there
    ("acf_bckd_brats", "acf_1001_250"): (1001, 250),
    ("hlfd_kits19", "every_fifth"): (168, 42),
    ("mskd_synapse", "transunet_18_12"): (18, 12),
    ("acw_skd_flare22", "mmseg_kd_40_10"): (40, 10),
}


def plan_of(study: str, root: Path) -> Plan:
    return Plan(read_study(root / "config.yaml", root / f"workflow/studies/{study}.yaml"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("published")
    return {name: mock_dataset(name, folder / name) for name in IMAGES}


@pytest.mark.parametrize("study", STUDIES)
def test_the_graph_of_a_study_is_built_from_its_data(
    study: str, sources: dict[str, Path], root: Path, tmp_path: Path
) -> None:
    plan = plan_of(study, root)
    shutil.copy(root / "config.yaml", tmp_path)
    wanted = ", ".join(f"{name}: {sources[name]}" for name in plan.cards)
    accepted = ", ".join(plan.cards)
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "-q", "rules", "--cores", "2"]
        + ["-s", root / "Snakefile", "--configfile", root / f"workflow/studies/{study}.yaml"]
        + ["--config", f"data_source={{{wanted}}}", f"accept_licence=[{accepted}]"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout, re.M))
    assert int(jobs["distill"]) == STUDIES[study]
    assert int(jobs["evaluate"]) == int(jobs["distill"]) + int(jobs["train_teacher"])
    assert jobs["report"] == "1"
    for name in plan.cards:
        assert f"kdpipe: {name}, split default: " in done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("study", STUDIES)
def test_every_method_of_a_study_fits_its_networks(study: str, root: Path) -> None:
    """Taps, dimensions and patches: what would else be found when a job starts, on a cluster."""
    plan = plan_of(study, root)
    runs = run_files(plan)
    seen: dict[str, Any] = {}
    tried = set()
    for folder, cell in plan.cells.items():
        run = runs[f"{folder}/run.json"]
        if cell.student is None or cell.seed or cell.split != "default":
            continue
        teacher = plan.teacher_folder(cell)
        student_taps = _stages(run, seen)
        name, params = run["method"]["name"], run["method"]["params"]
        taught = student_taps
        if needs_teacher(name, params):
            taught = _stages(runs[f"{teacher}/run.json"], seen)
        loss = SEGMENTATION_LOSSES[run["training"]["segmentation_loss"]]
        kind = "regions" if run["targets"]["regions"] else "classes"
        out, dims = run["network"]["out_channels"], len(run["patch"])
        context = Context(out, dims, student_taps, taught, kind, loss)
        module = discover.load("methods", name)
        method = module.Method(module.Params(**params), context)
        assert isinstance(method, Distiller)
        assert set(method.student_taps()) <= set(student_taps)
        assert set(method.teacher_taps()) <= set(taught)
        tried.add(cell.keys["method"])
    assert tried == {method.label for method in plan.study.methods}


def _stages(run: dict[str, Any], seen: dict[str, Any]) -> Any:
    spec, patch = run["network"], tuple(run["patch"])
    key = str(spec)
    if key not in seen:
        check_patch(spec["name"], spec["params"], patch)
        shape = (1, spec["in_channels"], *patch)
        seen[key] = probe(network_of(run), network_stages(spec["name"], spec["params"]), shape)
    return seen[key]


@pytest.mark.parametrize(("study", "split"), PUBLISHED)
def test_the_published_divisions_are_what_is_counted(study: str, split: str, root: Path) -> None:
    plan = plan_of(study, root)
    counts = case_counts(plan, plan.study.datasets[0], split, 0)
    assert (counts.train, counts.test) == PUBLISHED[study, split]


@pytest.mark.parametrize("study", STUDIES)
def test_papers_protocols_stand_beside_the_default(study: str, root: Path) -> None:
    plan = plan_of(study, root)
    assert plan.study.evaluation.protocols[0] == "strict_mm"
    splits = plan.study.datasets[0].splits
    assert splits[0] == "default"
    card = next(iter(plan.cards.values()))
    assert not card.split("default").selects_on_test
    assert all(card.split(split).selects_on_test for split in splits[1:])


def test_forecast_of_the_main_table(root: Path) -> None:
    """Steps times operations: 2 teachers a split, and 69 students, of 24,000 steps of 4 crops."""
    plan = plan_of("acf_bckd_btcv", root)
    assert n_comparisons(plan) == 22
    first, assumed, disk = forecast_cost(plan, tflops=10)
    teachers = 24_000 * 4 * 3 * (88.61e9 + 61.45e9) * 2 * 2 / 1e13 * 4 / 3 / 3600
    assert first.startswith("Trainings: 4 teachers, about ")
    assert ", and 138 students, about " in first
    assert float(re.findall(r"about ([\d.]+) h", first)[0]) == pytest.approx(teachers, rel=0.05)
    assert "10 TFLOP/s" in assumed
    assert "archives of btcv: nobody recorded" in disk
    (faster, *_) = forecast_cost(plan, tflops=20)
    half = float(re.findall(r"about ([\d.]+) h", faster)[0])
    assert half == pytest.approx(teachers / 2, rel=0.05)
