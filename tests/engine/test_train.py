"""A cell from prepared images to its files, also when the process is killed on the way."""

from __future__ import annotations

import json
import random
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

from kdpipe.engine.state import weights_digest
from kdpipe.engine.train import Job, train
from kdpipe.errors import ConfigError, DataError
from kdpipe.infer.model import load_model
from kdpipe.provenance import digest

COST = ["seconds", "energy_j"]


@pytest.fixture(scope="module")
def teacher(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = make_job(store, tmp_path_factory.mktemp("teacher"), make_run())
    train(job)
    return Path(job.model)


def facts(job: Job) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(job.model.with_name("model.json").read_text())
    return content


def test_a_cell_leaves_model_facts_and_history(store: Path, tmp_path: Path, teacher: Path) -> None:
    job = make_job(store, tmp_path, make_run("cwd"), teacher)
    train(job)
    found = facts(job)
    model = load_model(job.model)
    assert weights_digest(model.network.state_dict()) == found["weights_sha256"]
    assert model.run == job.run
    history = pd.read_csv(tmp_path / "train.csv")
    assert {"segmentation", "cwd", "gradient_norm_cwd", "validation_dice"} <= set(history)
    assert found["validation_dice"] == history["validation_dice"].max()
    assert found["seconds"] == pytest.approx(history["seconds"].sum(), abs=0.1)
    assert found["hardware"]["cpu"] and "energy_j" in found
    assert not job.state.exists()


def test_methods_of_one_seed_start_alike_and_see_the_same_crops(
    store: Path, tmp_path: Path, teacher: Path
) -> None:
    first = {}
    for name in ("none", "kd", "cwd"):
        job = make_job(store, tmp_path / name, make_run(name, epochs=1, steps_per_epoch=1), teacher)
        train(job)
        first[name] = pd.read_csv(tmp_path / name / "train.csv")["segmentation"][0]
    assert first["none"] == first["kd"] == first["cwd"]


def test_a_second_run_gives_the_same_bits_and_another_seed_does_not(
    store: Path, tmp_path: Path
) -> None:
    digests = []
    for number, seed in enumerate((5, 5, 6)):
        run = make_run()
        run["cell"]["seed"] = seed
        job = make_job(store, tmp_path / str(number), run)
        train(job)
        digests.append(facts(job)["weights_sha256"])
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_weights_stay_in_float32_whatever_the_precision(
    store: Path, tmp_path: Path, precision: str
) -> None:
    job = make_job(store, tmp_path, make_run(precision=precision, epochs=1, ema_decay=0.9))
    train(job)
    weights = load_model(job.model).network.state_dict()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_distilling_without_a_teacher_is_an_error(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'kd' learns from a teacher"):
        train(make_job(store, tmp_path, make_run("kd")))


def test_a_teacher_of_other_targets_is_an_error(store: Path, tmp_path: Path, teacher: Path) -> None:
    run = make_run("kd")
    run["network"]["out_channels"] = 2
    run["targets"] = {"n_labels": 3, "regions": [[1, 2], [2]]}
    with pytest.raises(ConfigError, match=r"regions None, the student \[\[1, 2\], \[2\]\]"):
        train(make_job(store, tmp_path, run, teacher))


def test_a_patch_that_does_not_fit_is_an_error(store: Path, tmp_path: Path) -> None:
    run = make_run() | {"patch": [16, 18, 16]}
    with pytest.raises(ConfigError, match="multiples of"):
        train(make_job(store, tmp_path, run))


def test_a_damaged_teacher_is_named(store: Path, tmp_path: Path, teacher: Path) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(teacher.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"broken.pt: not a usable kdpipe model"):
        train(make_job(store, tmp_path, make_run("kd"), broken))


def test_a_model_file_cannot_run_code(tmp_path: Path) -> None:
    file = tmp_path / "evil.pt"
    torch.save({"format": 1, "run": print}, file)
    with pytest.raises(DataError, match="not a usable kdpipe model"):
        load_model(file)


class Command:
    """``kdpipe distill`` as its own process, in a folder with everything that it reads."""

    def __init__(self, store: Path, folder: Path, teacher: Path):
        self.folder = folder
        folder.mkdir()
        (folder / "prepared").mkdir()
        (folder / "prepared" / "cases").symlink_to(store)
        (folder / "prepared" / "run.json").write_text("{}")
        run = make_run("kd", epochs=20, steps_per_epoch=4, validate_every=5)
        (folder / "run.json").write_text(json.dumps(run))
        split = {"train": CASES[:4], "val": CASES[4:5], "test": CASES[5:]}
        (folder / "split.json").write_text(json.dumps(split | {"sha256": digest(split)}))
        flags = {
            "run": "run.json",
            "prepared": "prepared",
            "split": "split.json",
            "state": "state",
            "model": "model.pt",
            "teacher": str(teacher),
            "checkpoint-seconds": "0",
        }
        pairs = [text for flag, value in flags.items() for text in (f"--{flag}", value)]
        self.arguments = [sys.executable, "-m", "kdpipe", "distill", *pairs]

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.arguments, cwd=self.folder, stderr=subprocess.DEVNULL)

    def kill_while_training(self, number: int, wait: float) -> int:
        """Start, wait for a checkpoint of this process and then `wait` seconds, send a signal."""
        state = self.folder / "state" / "state.pt"
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = self.start()
        while process.poll() is None:
            if state.exists() and state.stat().st_mtime_ns != before:
                time.sleep(wait)
                process.send_signal(number)
                break
            time.sleep(0.002)
        return process.wait(timeout=60)

    def weights(self) -> str:
        content = json.loads((self.folder / "model.json").read_text())
        return str(content["weights_sha256"])


@pytest.mark.slow
def test_killed_at_random_points_it_goes_on_to_the_same_bits(
    store: Path, tmp_path: Path, teacher: Path
) -> None:
    undisturbed = Command(store, tmp_path / "undisturbed", teacher)
    assert undisturbed.start().wait(timeout=120) == 0

    disturbed = Command(store, tmp_path / "disturbed", teacher)
    chance = random.Random(time.time_ns())
    codes = [
        disturbed.kill_while_training(number, chance.uniform(0, 0.15))
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM)
    ]
    assert not (disturbed.folder / "model.pt").exists()
    assert codes == [-signal.SIGKILL, 75, -signal.SIGKILL, 75]
    assert disturbed.start().wait(timeout=120) == 0

    assert disturbed.weights() == undisturbed.weights()
    histories = [
        pd.read_csv(command.folder / "train.csv").drop(
            columns=["seconds", "energy_j"], errors="ignore"
        )
        for command in (disturbed, undisturbed)
    ]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
