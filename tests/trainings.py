"""``kdpipe distill`` as its own process, to be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
from blobs import CASES, make_run

from kdpipe.provenance import digest

COST = ["seconds", "energy_j"]
PATIENCE = 300.0  # seconds, for a busy machine


class Command:
    """A training in a folder with everything that it reads; it saves after every step."""

    def __init__(self, store: Path, folder: Path, teacher: Path, **flags: Any):
        self.folder = folder
        folder.mkdir()
        (folder / "prepared").mkdir()
        (folder / "prepared" / "cases").symlink_to(store)
        (folder / "prepared" / "run.json").write_text("{}")
        run = make_run("kd", epochs=20, steps_per_epoch=4, validate_every=5)
        (folder / "run.json").write_text(json.dumps(run))
        split = {"train": CASES[:4], "val": CASES[4:5], "test": CASES[5:]}
        (folder / "split.json").write_text(json.dumps(split | {"sha256": digest(split)}))
        values = {
            "run": "run.json",
            "prepared": "prepared",
            "split": "split.json",
            "state": "state",
            "model": "model.pt",
            "teacher": str(teacher),
            "checkpoint-seconds": "0",
        } | {name.replace("_", "-"): str(value) for name, value in flags.items()}
        pairs = [text for flag, value in values.items() for text in (f"--{flag}", value)]
        self.arguments = [sys.executable, "-m", "kdpipe", "distill", *pairs]

    @property
    def log(self) -> str:
        """What all processes in the folder have said."""
        return (self.folder / "log.txt").read_text()

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start it as the leader of a process group, outside of any SLURM job."""
        variables = {key: text for key, text in os.environ.items() if key != "SLURM_JOB_ID"}
        with (self.folder / "log.txt").open("a") as log:
            return subprocess.Popen(
                self.arguments,
                cwd=self.folder,
                stderr=log,
                env=variables | environment,
                start_new_session=True,
            )

    def start_and_train(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start it and return once this process has saved a state."""
        state = self.folder / "state" / "state.pt"
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = self.start(**environment)
        while process.poll() is None:
            try:
                if state.stat().st_mtime_ns != before:
                    return process
            except FileNotFoundError:
                pass
            time.sleep(0.002)
        raise AssertionError(f"ended with {process.returncode} before it saved: {self.log}")

    def kill_while_training(self, number: int, wait: float) -> int:
        """Start, wait for a state of this process and then `wait` seconds, send a signal."""
        process = self.start_and_train()
        time.sleep(wait)
        process.send_signal(number)
        return process.wait(timeout=PATIENCE)

    def finish(self) -> None:
        """Run it to its end."""
        assert self.start().wait(timeout=PATIENCE) == 0, self.log

    def weights(self) -> str:
        content = json.loads((self.folder / "model.json").read_text())
        return str(content["weights_sha256"])

    def history(self) -> pd.DataFrame:
        """``train.csv`` without what differs from run to run."""
        return pd.read_csv(self.folder / "train.csv").drop(columns=COST, errors="ignore")
