"""A study on a real SLURM, through preemption, dead nodes, time limits and a killed Snakemake.

`make test-slurm` starts the cluster (tests/slurm/lab.sh); without one these tests are skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from slurm.campaign import Outcome, run_campaign
from slurm.study import BASELINES, EPOCHS, ORPHAN, STARVED, STEPS, TAUGHT, TEACHERS

CELLS = [*TEACHERS, *BASELINES, *TAUGHT]
pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def _lab_is_up() -> bool:
    if not shutil.which("scontrol") or not os.path.exists("/etc/slurm/slurm.conf"):
        return False
    if "ClusterName=kdlab" not in Path("/etc/slurm/slurm.conf").read_text():
        return False
    return subprocess.run(["scontrol", "ping"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def outcome(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    if not _lab_is_up():
        pytest.skip("needs a SLURM to break: sudo tests/slurm/lab.sh start, or make test-slurm")
    place = tmp_path_factory.mktemp("slurm")
    found = run_campaign(root, place)
    if target := os.environ.get("KDPIPE_TIMELINE"):
        shutil.copy(place / "timeline.txt", target)
    return found


def _hit(outcome: Outcome) -> dict[str, int]:
    return {cell: step for cells in outcome.hit.values() for cell, step in cells.items()}


def _jobs_of(outcome: Outcome, cell: str) -> list[str]:
    short = cell.replace("students/", "").replace("student/", "").replace("/", "_")
    return [
        number
        for number, job in outcome.watch.jobs.items()
        if job.name.split()[-1] == short and job.name.split()[0] in ("distill", "train_teacher")
    ]


def test_the_study_completes(outcome: Outcome) -> None:
    assert outcome.codes == {"undisturbed": 0, "killed": -9, "second": 0}
    assert (outcome.faulted.path / "results/reports/lab.html").stat().st_size > 10_000


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_has_the_weights_of_an_undisturbed_run(outcome: Outcome, cell: str) -> None:
    facts = [
        json.loads(folder.cell(cell, "model.json").read_text())
        for folder in (outcome.calm, outcome.faulted)
    ]
    assert facts[0]["weights_sha256"] == facts[1]["weights_sha256"]


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_is_trained_once_in_total_steps(outcome: Outcome, cell: str) -> None:
    history = pd.read_csv(outcome.faulted.cell(cell, "train.csv"))
    assert history["step"].tolist() == [STEPS * epoch for epoch in range(1, EPOCHS + 1)]
    # what nothing happened to started at 0, all others went on
    resumed = re.findall(r"going on after step (\d+) of", outcome.faulted.log_of(cell))
    hit = _hit(outcome)
    if cell in hit:
        assert len(resumed) == 1
        assert hit[cell] <= int(resumed[0]) <= hit[cell] + 2  # it may have been about to save
    else:
        assert resumed == []
    assert not outcome.faulted.cell(cell, "checkpoint").exists()


def test_two_jobs_never_share_a_gpu(outcome: Outcome) -> None:
    assert outcome.watch.shared == []
    together = outcome.together
    assert len({(process.node, process.gpu) for process in together}) == len(together) == 6
    assert {process.gpu for process in together} == {"0", "1"}


def test_jobs_go_to_the_partition_that_fits(outcome: Outcome) -> None:
    found = {job.name.split()[0]: job.partition for job in outcome.watch.jobs.values()}
    wanted = {"train_teacher": "gpu", "distill": "gpu", "predict": "gpu", "profile": "gpu"}
    wanted |= {"prepare": "cpu", "fetch": "cpu", "evaluate_evaluate": "cpu", "overlays": "cpu"}
    assert wanted.items() <= found.items()


@pytest.mark.parametrize("fault", ["preempted", "node died"])
def test_slurm_itself_queues_a_training_again(outcome: Outcome, fault: str) -> None:
    for cell in outcome.hit[fault]:
        *before, job = _jobs_of(outcome, cell)
        assert outcome.watch.jobs[job].states.count("RUNNING") == 2
        assert outcome.watch.jobs[job].states[-1] == "COMPLETED"
        assert len(before) == (cell == STARVED)


def test_a_training_over_its_time_gets_more(outcome: Outcome) -> None:
    ((cell, _),) = outcome.hit["time limit"].items()
    jobs = [outcome.watch.jobs[number] for number in _jobs_of(outcome, cell)]
    assert [job.states[-1] for job in jobs[-2:]] == ["TIMEOUT", "COMPLETED"]
    hours, minutes, _ = map(int, f"0:{jobs[-1].limit}".split(":")[-3:])
    assert 60 * hours + minutes == 30 * len(jobs)  # half an hour more in each attempt


def test_a_cancelled_training_is_submitted_again(outcome: Outcome) -> None:
    ((cell, _),) = outcome.hit["cancelled"].items()
    states = [outcome.watch.jobs[number].states[-1] for number in _jobs_of(outcome, cell)]
    assert states[-2:] == ["CANCELLED", "COMPLETED"]


def test_a_training_without_enough_memory_gets_more(outcome: Outcome) -> None:
    jobs = [outcome.watch.jobs[number] for number in _jobs_of(outcome, STARVED)]
    memory = [job.memory for job in jobs]
    assert memory[0] == "700M"
    assert jobs[0].states[-1] in ("FAILED", "OUT_OF_MEMORY")
    assert "1400M" in memory


def test_what_was_done_without_snakemake_is_not_done_again(outcome: Outcome) -> None:
    told = (outcome.faulted.path / "second.log").read_text()
    trained = set(re.findall(r"output: results/tiny/default/fold0/(\S+)/model.pt", told))
    assert ORPHAN in trained
    assert not trained & {*TEACHERS, *BASELINES}
    for cell in set(TAUGHT) - trained:
        assert [outcome.watch.jobs[job].states[-1] for job in _jobs_of(outcome, cell)] == [
            "COMPLETED"
        ]


def test_programs_of_slurm_that_failed_for_a_while_were_asked_again(outcome: Outcome) -> None:
    assert [outcome.faulted.still_to_fail(name) for name in ("sbatch", "squeue")] == [0, 0]
    told = (outcome.faulted.path / "first.log").read_text()
    assert "SLURM sbatch failed" in told


def test_short_jobs_are_grouped(outcome: Outcome) -> None:
    grouped = [job for job in outcome.watch.jobs.values() if job.name.startswith("evaluate")]
    assert len(grouped) == 4  # fourteen cells, four in a group


def test_there_is_an_efficiency_report(outcome: Outcome) -> None:
    (report,) = (outcome.faulted.path / "logs/slurm").rglob("efficiency_report*.csv")
    assert "predict" in report.read_text()
