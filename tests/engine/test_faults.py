"""A training as its own process, through what machines and clusters do to it.

Whatever happens, the results are those of a training that nothing happened to, to the bit.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from blobs import make_job, make_run
from trainings import PATIENCE, Command

from kdpipe.atomic import mark_of
from kdpipe.engine.meanwhile import trained_meanwhile
from kdpipe.engine.train import train
from kdpipe.errors import Busy, DataError, TrainingDiverged
from kdpipe.lock import FolderLock

New = Callable[..., Command]
Started = subprocess.Popen[bytes]
KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT


@pytest.fixture(scope="module")
def teacher(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = make_job(store, tmp_path_factory.mktemp("teacher"), make_run())
    train(job)
    return Path(job.model)


@pytest.fixture(scope="module")
def undisturbed(store: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    command = Command(store, tmp_path_factory.mktemp("faults") / "undisturbed", teacher)
    command.finish()
    return command


@pytest.fixture
def new(store: Path, teacher: Path, tmp_path: Path) -> New:
    return lambda **flags: Command(store, tmp_path / "disturbed", teacher, **flags)


def assert_same(disturbed: Command, undisturbed: Command) -> None:
    """Equal weights and history, every step in it once, and nothing left behind."""
    assert disturbed.weights() == undisturbed.weights()
    pd.testing.assert_frame_equal(disturbed.history(), undisturbed.history(), check_exact=True)
    assert disturbed.history()["step"].tolist() == list(range(4, 81, 4))
    assert sorted(os.listdir(disturbed.folder)) == sorted(os.listdir(undisturbed.folder))


def children(process: subprocess.Popen[bytes]) -> list[int]:
    """Process ids of those that load data."""
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(number) for number in text.split()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "numbers",
    [
        (KILL, TERM, INT),
        pytest.param((KILL, TERM, KILL, KILL, INT, KILL, KILL), marks=pytest.mark.soak),
    ],
    ids=["thrice", "seven times"],
)
def test_killed_at_random_points_it_goes_on_to_the_same_bits(
    new: New, undisturbed: Command, numbers: tuple[int, ...]
) -> None:
    disturbed = new()
    chance = random.Random(time.time_ns())
    codes = [disturbed.kill_while_training(number, chance.uniform(0, 0.1)) for number in numbers]
    assert not (disturbed.folder / "model.pt").exists()
    assert codes == [75 if number in (TERM, INT) else -KILL for number in numbers]
    disturbed.finish()
    assert_same(disturbed, undisturbed)


def test_in_a_slurm_job_it_saves_waits_to_be_killed_and_goes_on(
    new: New, undisturbed: Command
) -> None:
    disturbed = new()
    process = disturbed.start_and_train(SLURM_JOB_ID="42")
    process.send_signal(TERM)
    while "waiting to be ended" not in disturbed.log:
        assert process.poll() is None, disturbed.log
        time.sleep(0.01)
    state = (disturbed.folder / "state" / "state.pt").stat().st_mtime_ns
    time.sleep(1.0)
    assert process.poll() is None
    assert (disturbed.folder / "state" / "state.pt").stat().st_mtime_ns == state
    process.kill()
    assert process.wait() == -KILL
    disturbed.finish()
    assert_same(disturbed, undisturbed)


def test_in_a_slurm_job_it_exits_if_told_to(new: New) -> None:
    process = new(on_stop="exit").start_and_train(SLURM_JOB_ID="42")
    process.send_signal(TERM)
    assert process.wait(timeout=PATIENCE) == 75


def test_a_signal_to_all_processes_of_a_job_spares_those_that_load_data(
    new: New, undisturbed: Command
) -> None:
    disturbed = new(loaders=2)
    process = disturbed.start_and_train()
    loaders = children(process)
    os.killpg(process.pid, TERM)
    assert process.wait(timeout=PATIENCE) == 75, disturbed.log
    assert "stopped by SIGTERM after step" in disturbed.log
    assert loaders and not any(Path(f"/proc/{number}").exists() for number in loaders)
    disturbed.finish()
    assert_same(disturbed, undisturbed)


def test_a_loader_that_the_kernel_kills_is_named_and_the_training_can_go_on(
    new: New, undisturbed: Command
) -> None:
    disturbed = new(loaders=2)
    process = disturbed.start_and_train()
    os.kill(children(process)[0], KILL)
    assert process.wait(timeout=PATIENCE) == 75, disturbed.log
    message = disturbed.log.splitlines()[-1]
    assert "kdpipe distill: error: a process that loads data was lost" in message
    assert "ran out of memory" in message
    assert "the state after step" in message
    disturbed.finish()
    assert_same(disturbed, undisturbed)


def test_a_second_process_stops_and_disturbs_nothing(new: New, undisturbed: Command) -> None:
    disturbed = new()
    first = disturbed.start_and_train()
    first.send_signal(signal.SIGSTOP)  # or it could be done before the second one looks
    state = disturbed.folder / "state"
    before = {file.name: file.stat().st_mtime_ns for file in state.iterdir()}
    assert disturbed.start().wait(timeout=PATIENCE) == 5
    assert {file.name: file.stat().st_mtime_ns for file in state.iterdir()} == before
    first.send_signal(signal.SIGCONT)
    assert f"in use by process {first.pid}" in disturbed.log
    assert first.wait(timeout=PATIENCE) == 0
    assert_same(disturbed, undisturbed)


def one_waits_for_the_other(new: New) -> tuple[Command, Started, Started]:
    """The first of two processes stands still in the midst of the training."""
    disturbed = new(wait_minutes=5)
    first = disturbed.start_and_train()
    first.send_signal(signal.SIGSTOP)
    second = disturbed.start()
    while f"waiting for process {first.pid} on" not in disturbed.log:
        assert second.poll() is None, disturbed.log
        time.sleep(0.01)
    return disturbed, first, second


def test_a_second_process_that_waits_takes_what_the_first_has_trained(
    new: New, undisturbed: Command
) -> None:
    disturbed, first, second = one_waits_for_the_other(new)
    first.send_signal(signal.SIGCONT)
    assert (first.wait(timeout=PATIENCE), second.wait(timeout=PATIENCE)) == (0, 0), disturbed.log
    assert "has finished this training meanwhile; its results are kept" in disturbed.log
    assert_same(disturbed, undisturbed)


def test_a_second_process_that_waited_goes_on_if_the_first_is_killed(
    new: New, undisturbed: Command
) -> None:
    disturbed, first, second = one_waits_for_the_other(new)
    first.kill()
    assert first.wait() == -KILL
    assert second.wait(timeout=PATIENCE) == 0, disturbed.log
    assert "meanwhile" not in disturbed.log
    assert_same(disturbed, undisturbed)


def test_what_another_has_trained_is_not_taken_if_it_is_something_else(
    store: Path, tmp_path: Path
) -> None:
    job = make_job(store, tmp_path, make_run())
    train(job)
    before = mark_of(job.model)
    waiting = replace(job, wait=1.0, before=before)
    assert not trained_meanwhile(waiting)  # it was there before
    assert trained_meanwhile(replace(waiting, before=None))
    assert not trained_meanwhile(replace(waiting, before=None, wait=0.0))
    assert not trained_meanwhile(replace(waiting, before=None, code="other"))
    renamed = make_run() | {"cell": {**make_run()["cell"], "dataset": "another"}}
    assert not trained_meanwhile(replace(waiting, before=None, run=renamed))
    os.truncate(job.model, 1000)
    assert not trained_meanwhile(replace(waiting, before=None))


def test_a_cut_checkpoint_falls_back_to_the_one_before(new: New, undisturbed: Command) -> None:
    disturbed = new()
    assert disturbed.kill_while_training(TERM, 0) == 75  # after a second state
    os.truncate(disturbed.folder / "state" / "state.pt", 1000)
    disturbed.finish()
    assert "state.pt is damaged" in disturbed.log
    assert "going on from the state before" in disturbed.log
    assert_same(disturbed, undisturbed)


def test_results_that_cannot_be_written_stop_with_the_state_kept(
    store: Path, tmp_path: Path
) -> None:
    job = replace(make_job(store, tmp_path, make_run()), checkpoint_seconds=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # half of a model: as a full disk
    try:
        with pytest.raises(DataError, match=r"model\.pt: the results cannot be written .* MB are"):
            train(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not job.model.exists()
    train(job)
    assert job.model.exists()


def test_a_training_that_finishes_removes_the_batch_of_one_that_diverged(
    store: Path, tmp_path: Path
) -> None:
    job = make_job(store, tmp_path, make_run(learning_rate=1e30, gradient_clip=None))
    with pytest.raises(TrainingDiverged, match=r"kept in .*diverged\.pt"):
        train(job)
    assert (tmp_path / "diverged.pt").exists()
    train(make_job(store, tmp_path, make_run()))
    assert sorted(os.listdir(tmp_path)) == ["model.json", "model.pt", "train.csv"]


def test_a_cell_that_is_being_trained_is_not_trained_here(store: Path, tmp_path: Path) -> None:
    job = make_job(store, tmp_path, make_run())
    with FolderLock(job.state), pytest.raises(Busy):
        train(job)
    assert os.listdir(tmp_path) == []
