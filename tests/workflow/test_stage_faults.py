"""Every stage but the training, through what machines and clusters do to it.

Whatever happens, no result is there that is not whole, and a rerun gives the bytes of a study that
nothing happened to.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import pytest
from stages import PATIENCE, STAGES, STOPPED, Fault, Study

pytestmark = pytest.mark.slow  # the study that they share takes half a minute
KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The finished study; nobody changes it."""
    study = Study(tmp_path_factory.mktemp("stages") / "undisturbed")
    study.finish()
    return study


@pytest.fixture
def study(undisturbed: Study, tmp_path: Path) -> Iterator[Study]:
    """A copy, to be disturbed."""
    copy = undisturbed.copy(tmp_path / "study")
    yield copy
    for process in copy.started:
        process.kill()


def assert_whole(study: Study, undisturbed: Study, stage: str) -> None:
    """What is there of the stage is there as a whole: a file, a folder, a prepared case."""
    expected, found = undisturbed.contents(), study.contents()
    for product in study.products(stage):
        parts = product.iterdir() if product.name == "cases" and product.is_dir() else [product]
        for part in parts:
            if part.name.startswith(".tmp-") or not part.exists():
                continue
            name = str(part.relative_to(study.folder))
            inside = {file for file in found if f"{file}/".startswith(f"{name}/")}
            wanted = {file for file in expected if f"{file}/".startswith(f"{name}/")}
            assert {f: found[f] for f in inside} == {f: expected[f] for f in wanted}


def strays(study: Study) -> list[str]:
    return [file for file in study.contents() if ".tmp-" in file or file.endswith(".lock")]


@pytest.mark.parametrize("stage", STAGES)
def test_stopped_before_random_writes_a_stage_goes_on_to_the_same_bytes(
    stage: str, study: Study, undisturbed: Study
) -> None:
    study.remove(study.products(stage))
    chance = random.Random(seed := time.time_ns())
    writes = study.writes(stage)
    study.remove(study.products(stage))
    for number in (KILL, TERM, KILL, INT):
        at, left = chance.randint(1, writes), set(strays(study))  # of an earlier kill -9
        code = study.run(stage, fault=Fault(number, at))
        assert code in (STOPPED[number], 0), (seed, at, study.log)  # less is to do than at first
        assert_whole(study, undisturbed, stage)
        if code != 0:
            assert number == KILL or set(strays(study)) <= left, (seed, at)
            study.remove(study.outputs(stage))  # as Snakemake does
        writes = max(1, writes // 2)
    assert study.run(stage) == 0, (seed, study.log)
    assert study.contents() == undisturbed.contents(), seed


def test_a_stage_that_is_stopped_in_a_slurm_job_cleans_up_and_waits_to_be_killed(
    study: Study, undisturbed: Study
) -> None:
    """A job that ends in the grace time has failed; one that is killed is queued again."""
    study.remove(study.products("report"))
    before = study.contents()
    process = study.start("report", fault=Fault(TERM, 4), SLURM_JOB_ID="42")
    while "SIGTERM: waiting to be ended" not in study.log:
        assert process.exitcode is None, study.log
        time.sleep(0.01)
    assert study.contents() == before
    process.join(0.5)
    assert process.exitcode is None
    process.kill()
    process.join()
    assert study.run("report") == 0
    assert study.contents() == undisturbed.contents()


def children(process: int) -> set[int]:
    files = Path(f"/proc/{process}/task").glob("*/children")
    return {int(number) for file in files for number in file.read_text().split()}


def wait_until_stopped(process: int | None) -> None:
    stat = Path(f"/proc/{process}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)


def wait_for_end(processes: set[int]) -> None:
    end = time.monotonic() + PATIENCE
    while any(Path(f"/proc/{number}").exists() for number in processes):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_processes_that_prepare_end_with_the_one_that_started_them(
    study: Study, undisturbed: Study
) -> None:
    study.remove(study.products("prepare"))
    store = study.folder / "data/prepared/tiny/default/cases"
    command = [sys.executable, "-m", "kdpipe", *study.arguments("prepare", workers=2)]
    for number in (TERM, KILL):
        with (study.folder / "log.txt").open("a") as log:
            process = subprocess.Popen(command, cwd=study.folder, stderr=log)
        while not (store.is_dir() and any(store.glob(".tmp-*"))):
            assert process.poll() is None, study.log
            time.sleep(0.001)
        workers = children(process.pid)
        process.send_signal(number)
        assert process.wait(PATIENCE) == STOPPED[number], study.log
        wait_for_end(workers)
        assert len(workers) >= 2
        assert_whole(study, undisturbed, "prepare")
        assert number == KILL or not strays(study)
        shutil.rmtree(store)
    assert study.run("prepare") == 0
    assert study.contents() == undisturbed.contents()


def test_a_worker_that_the_kernel_kills_is_told_of_and_finished_cases_are_kept(
    study: Study, undisturbed: Study
) -> None:
    study.remove(study.products("prepare"))
    store = study.folder / "data/prepared/tiny/default/cases"
    command = [sys.executable, "-m", "kdpipe", *study.arguments("prepare", workers=2)]
    with (study.folder / "log.txt").open("a") as log:
        process = subprocess.Popen(command, cwd=study.folder, stderr=log)
    while not (store.is_dir() and any(store.glob("phantom_*"))):
        assert process.poll() is None, study.log
        time.sleep(0.001)
    for number in children(process.pid):
        os.kill(number, KILL)
    assert process.wait(PATIENCE) == 75, study.log
    assert "a worker process was killed, most likely" in study.log
    kept = {file.name for file in store.glob("phantom_*")}
    assert kept and not strays(study)
    assert study.run("prepare") == 0
    assert f"{len(kept)} of 4 cases are prepared already" in study.log
    assert study.contents() == undisturbed.contents()


def test_a_writer_whose_work_was_taken_for_abandoned_puts_nothing_in_its_place(
    study: Study, undisturbed: Study
) -> None:
    """Two Snakemakes, one of which was killed and left its job running."""
    study.remove(study.outputs("predict"))
    first = study.start("predict", fault=Fault(signal.SIGSTOP, 7))
    wait_until_stopped(first.pid)
    assert any(".tmp-predictions-" in file and "nii" in file for file in study.contents())
    assert study.run("predict") == 0, study.log
    os.kill(first.pid or 0, signal.SIGCONT)
    first.join(PATIENCE)
    assert first.exitcode == 5, study.log
    assert "another process has begun to write it anew" in study.log
    assert study.contents() == undisturbed.contents()


def test_a_second_preparation_waits_and_uses_the_cases_of_the_first(
    study: Study, undisturbed: Study
) -> None:
    study.remove(study.products("prepare"))
    first = study.start("prepare", fault=Fault(signal.SIGSTOP, 25))
    wait_until_stopped(first.pid)
    assert study.run("prepare") == 5
    second = study.start("prepare", wait_minutes=5)
    while f"waiting for process {first.pid} on" not in study.log:
        assert second.exitcode is None, study.log
        time.sleep(0.01)
    os.kill(first.pid or 0, signal.SIGCONT)
    for process in (first, second):
        process.join(PATIENCE)
        assert process.exitcode == 0, study.log
    assert "4 of 4 cases are prepared already" in study.log
    assert study.contents() == undisturbed.contents()


# disks


@contextmanager
def disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A disk of its own; needs root."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a disk of its own (root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def written(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


ON_A_DISK = ["prepare", "predict", "evaluate", "overlays", "report"]


@pytest.mark.parametrize("stage", ON_A_DISK)
def test_a_full_disk_is_named_and_nothing_is_left_half_written(stage: str, study: Study) -> None:
    with disk(study.folder / "small", 8000) as small:
        assert study.run(stage, elsewhere="small") == 0, study.log
        wanted = written(small)
        used = shutil.disk_usage(small).used
        study.remove(list(small.iterdir()))
        filler = small / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(small).free - used // 2 // 4096 * 4096))
        assert study.run(stage, elsewhere="small") == 3, study.log
        message = study.log[study.log.rindex(f"kdpipe {stage}: error: ") :]
        assert "the disk is full" in message and "make room" in message
        assert "Traceback" not in study.log
        found = written(small)
        del found["filler"]
        assert {file: found[file] for file in found} == {file: wanted[file] for file in found}
        assert not [file for file in found if file in _LAST[stage]]
        filler.unlink()
        assert study.run(stage, elsewhere="small") == 0, study.log
        assert written(small) == wanted


#: by stage, what says that it is done
_LAST = {
    "prepare": {"cases.tsv"},
    "predict": {"predictions/phantom_000.nii.gz"},
    "evaluate": {"metrics.csv"},
    "overlays": {"tiny/overlays.json"},
    "report": {"tiny.html"},
}


@pytest.mark.parametrize("stage", ON_A_DISK)
def test_a_disk_that_cannot_be_written_is_named(stage: str, study: Study) -> None:
    with disk(study.folder / "small", 100) as small:
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        assert study.run(stage, elsewhere="small") == 3, study.log
        message = study.log[study.log.rindex(f"kdpipe {stage}: error: ") :]
        assert "cannot be written (Read-only file system)" in message and "writable" in message
        assert "Traceback" not in study.log
        assert not written(small)


# Snakemake


def snakemake(study: Study, root: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile")]
    # what was made by hand is not recorded, so dates decide
    command += ["--rerun-triggers", "mtime", "--configfile", "config.yaml", "--cores", "1"]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=study.folder,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, KILL)


def with_longer_training(study: Study) -> Path:
    """Ask for more steps of the first cell, and for a checkpoint after each; return its folder."""
    cell = study.folder / study.cells[0]
    config = study.folder / "config.yaml"
    longer = config.read_text().replace("epochs: 1,", "epochs: 30,")
    config.write_text(f"{longer}resources: {{train: {{checkpoint_seconds: 0}}}}\n")
    date = (cell / "run.json").stat().st_mtime
    (cell / "run.json").write_text(study.settings(f"{study.cells[0]}/run.json"))
    os.utime(cell / "run.json", (date, date))
    study.remove([cell / name for name in ("model.pt", "model.json", "train.csv")])
    return cell


def test_of_two_snakemakes_one_works_and_what_a_killed_one_left_running_is_used(
    study: Study, root: Path, request: pytest.FixtureRequest
) -> None:
    cell = with_longer_training(study)
    target = f"{study.cells[0]}/model.pt"
    log = study.folder / "logs/train" / f"{study.cells[0]}.log"
    first = snakemake(study, root, target)
    while not (cell / "checkpoint" / "state.pt").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.005)
    trainer = json.loads((cell / "checkpoint.lock").read_text())["pid"]
    os.kill(trainer, signal.SIGSTOP)  # it shall not be done before the others have looked
    request.addfinalizer(lambda: kill(trainer))
    second = snakemake(study, root, target)
    told, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode != 0 and "LockException" in told
    assert (cell / "checkpoint" / "state.pt").exists() and not (cell / "model.pt").exists()

    first.kill()
    first.wait()
    assert snakemake(study, root, target, "--unlock").wait(PATIENCE) == 0
    third = snakemake(study, root, target, "--rerun-incomplete")
    while not log.exists() or f"waiting for process {trainer} on" not in log.read_text():
        assert third.poll() is None, third.communicate()
        time.sleep(0.05)
    os.kill(trainer, signal.SIGCONT)
    told, _ = third.communicate(timeout=PATIENCE)
    assert third.returncode == 0, told
    assert "its results are kept" in log.read_text()
    assert "restart" not in told.lower()
    steps = pd.read_csv(cell / "train.csv")["step"].tolist()
    assert steps == sorted(set(steps)) and steps[-1] == 30
    assert not (cell / "checkpoint").exists() and not (cell / "checkpoint.lock").exists()
