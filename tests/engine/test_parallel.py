"""Several processes train what one trains: the same curves, and the same files once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from blobs import CASES, make_job, make_run
from ranks import CELLS, job_of

from kdpipe import discover
from kdpipe.data.crops.sampler import StepSampler
from kdpipe.engine import parallel
from kdpipe.engine.train import train
from kdpipe.errors import ConfigError
from kdpipe.infer.model import load_model
from kdpipe.provenance import digest

HERE = Path(__file__).parent
COST = ["seconds", "energy_j"]


def environment() -> dict[str, str]:
    paths = [str(HERE.parent), str(HERE.parent.parent)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def history(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "train.csv").drop(columns=COST, errors="ignore")


@pytest.fixture(scope="module")
def teacher(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = make_job(store, tmp_path_factory.mktemp("teacher"), make_run())
    train(job)
    return Path(job.model)


@pytest.fixture(scope="module")
def together(store: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cells, trained by two processes under torchrun."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [str(HERE.parent / "ranks.py"), str(store), str(folder), str(teacher), *CELLS]
    ended = subprocess.run(
        [*command, *arguments], env=environment(), capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_two_processes_train_as_one_does(
    store: Path, tmp_path: Path, teacher: Path, together: Path, name: str
) -> None:
    alone = job_of(name, store, tmp_path, teacher)
    train(alone)
    ours, theirs = history(tmp_path / name), history(together / name)
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4, atol=1e-5)
    weights, others = (
        load_model(folder / name / "model.pt").network.state_dict()
        for folder in (tmp_path, together)
    )
    for key, value in weights.items():
        torch.testing.assert_close(value, others[key], rtol=1e-3, atol=1e-5, msg=key)
    assert not (together / name / "checkpoint").exists()


class Command:
    """``kdpipe train`` in a folder with everything that it reads; the network has dropout."""

    def __init__(self, store: Path, folder: Path):
        self.folder = folder
        (folder / "prepared").mkdir(parents=True)
        (folder / "prepared" / "cases").symlink_to(store)
        (folder / "prepared" / "run.json").write_text("{}")
        run = make_run(epochs=6, steps_per_epoch=4, validate_every=3)
        params = {"channels": [4, 8, 16], "dropout": [0.3, 0.3]}
        checked = discover.check_params("nets", "erfnet", params)
        run["network"] |= {"name": "erfnet", "params": checked}
        (folder / "run.json").write_text(json.dumps(run))
        split = {"train": CASES[:4], "val": CASES[4:5], "test": CASES[5:]}
        (folder / "split.json").write_text(json.dumps(split | {"sha256": digest(split)}))

    def start(self, processes: int) -> subprocess.Popen[str]:
        flags = "--run run.json --prepared prepared --split split.json --state state"
        more = f"--model model.pt --checkpoint-seconds 0 --processes {processes}"
        return subprocess.Popen(
            [sys.executable, "-m", "kdpipe", "train", *flags.split(), *more.split()],
            cwd=self.folder,
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, processes: int) -> str:
        """Train to the end and return the log."""
        started = self.start(processes)
        log = started.communicate(timeout=600)[1]
        assert started.returncode == 0, log
        return log

    def interrupt(self, processes: int, number: int) -> int:
        """Send a signal to the launcher once a state is saved, wait until all have ended."""
        state = self.folder / "state" / "state.pt"
        before = state.stat().st_mtime_ns if state.exists() else 0
        started = self.start(processes)
        while started.poll() is None:
            if state.exists() and state.stat().st_mtime_ns != before:
                started.send_signal(number)
                break
            time.sleep(0.005)
        started.communicate(timeout=600)  # until nobody has the pipe any more
        return started.returncode

    def weights(self) -> str:
        content = json.loads((self.folder / "model.json").read_text())
        return str(content["weights_sha256"])


@pytest.mark.soak
def test_stopped_together_and_resumed_by_as_many_to_the_bit_or_by_one(
    store: Path, tmp_path: Path
) -> None:
    undisturbed = Command(store, tmp_path / "undisturbed")
    undisturbed.finish(2)

    disturbed = Command(store, tmp_path / "disturbed")
    assert disturbed.interrupt(2, signal.SIGTERM) == 75
    first = step_of(disturbed.folder)

    fewer = Command(store, tmp_path / "fewer")
    shutil.copytree(disturbed.folder / "state", fewer.folder / "state")
    log = fewer.finish(1)
    assert f"going on after step {first} of 24" in log
    assert "the checkpoint is of 2 process(es), this training has 1" in log
    assert len(history(fewer.folder)) == 6

    # the launcher can tell nobody: its processes see that it is gone, and save
    assert disturbed.interrupt(2, signal.SIGKILL) == -signal.SIGKILL
    assert first < step_of(disturbed.folder) < 24
    assert not (disturbed.folder / "model.pt").exists()

    log = disturbed.finish(2)
    assert log.count("going on after step") == 1  # one of them tells
    assert disturbed.weights() == undisturbed.weights()
    pd.testing.assert_frame_equal(
        history(disturbed.folder), history(undisturbed.folder), check_exact=True
    )


def step_of(folder: Path) -> int:
    state: dict[str, Any] = torch.load(folder / "state" / "state.pt", weights_only=True)
    assert state["processes"] == 2
    step = state["step"]
    assert isinstance(step, int)
    return step


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_shares_of_a_step_are_its_crops_in_order(world: int) -> None:
    whole = list(StepSampler(3, 2, 3, 4))
    parts = [list(StepSampler(3, 2, 3, 4, rank, world)) for rank in range(world)]
    assert [sum(step, []) for step in zip(*parts, strict=True)] == whole


def test_a_batch_that_cannot_be_shared_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "world", lambda: 2)
    parallel.check_shares(4)
    with pytest.raises(ConfigError, match=r"batch_size of 3 .* 2 processes"):
        parallel.check_shares(3)


def test_one_process_needs_nothing() -> None:
    tensor = torch.ones(2, requires_grad=True)
    before = torch.get_rng_state()
    with parallel.processes(), parallel.own_draws(5):
        assert parallel.gather(tensor) is tensor
        assert parallel.summed([tensor])[0] is tensor
        assert parallel.in_turn([1, 2]) == [1, 2]
        assert parallel.agreed_stop("SIGTERM") == "SIGTERM"
        assert parallel.from_main(lambda: 3) == parallel.main_first(lambda: 3) == 3
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.distributed.is_initialized()
