"""What happens on the cluster, twice a second; and trainings that stand still on demand."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from slurm.study import CELLS, Folder


@dataclass(frozen=True)
class Process:
    """A process of a job that asked for a GPU."""

    pid: int
    stage: str
    cell: str
    job: str
    node: str
    gpu: str


#: by cell: a training that stands still, and the step that it had saved
Held = dict[str, tuple[Process, int]]


@dataclass
class Job:
    """A job of SLURM as it was last seen, and what it went through."""

    name: str
    partition: str
    memory: str
    limit: str
    states: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)


class Watch(threading.Thread):
    """Looks twice a second at the cluster's jobs and processes; stops trainings on demand."""

    def __init__(self, folder: Folder):
        super().__init__(daemon=True)
        self.folder = folder
        self.jobs: dict[str, Job] = {}
        self.to_freeze: set[str] = set()
        self.frozen: Held = {}
        self._awaited: list[Process] = []
        self.shared: list[tuple[Process, Process]] = []
        self.most_gpus = 0
        self.timeline: list[str] = []
        self._start_time = time.monotonic()
        self._earlier = set(slurm("squeue", "--states=all", "--noheader", "--format=%i"))
        self._ended = threading.Event()
        self.trouble: BaseException | None = None

    def note(self, text: str) -> None:
        self.timeline.append(f"{time.monotonic() - self._start_time:6.1f} s  {text}")

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        threading.Thread(target=self._freeze, daemon=True).start()
        try:
            while not self._ended.wait(0.5):
                self._look_at_jobs()
                self._look_at_processes()
        except BaseException as error:  # shown by whoever waits
            self.trouble = error

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 900) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if self.trouble:
                raise self.trouble
            assert time.monotonic() < deadline, f"no sign of: {what}\n" + "\n".join(self.timeline)
            time.sleep(0.2)

    def _look_at_jobs(self) -> None:
        fields = "%i|%T|%P|%m|%l|%N|%k"
        for line in slurm("squeue", "--states=all", "--noheader", f"--format={fields}"):
            number, state, partition, memory, limit, node, comment = line.split("|", 6)
            if number in self._earlier:
                continue
            job = self.jobs.setdefault(number, Job(_short(comment), partition, memory, limit))
            job.limit = limit
            if job.states[-1:] != [state]:
                job.states.append(state)
                self.note(f"job {number:>3} {job.name:<28} {state.lower():<11} {node}")
            if node and job.nodes[-1:] != [node]:
                job.nodes.append(node)

    def _look_at_processes(self) -> None:
        found = list(self.processes())
        held: dict[tuple[str, str], Process] = {}
        for process in found:
            other = held.setdefault((process.node, process.gpu), process)
            if other.job != process.job:
                self.shared.append((other, process))
        self.most_gpus = max(self.most_gpus, len(held))
        self._awaited = [process for process in found if process.cell in self.to_freeze]

    def _freeze(self) -> None:
        """Stop trainings that have just saved something; a small one takes few seconds."""
        try:
            while not self._ended.wait(0.02):
                for process in list(self._awaited):
                    folder = self.folder.cell(process.cell, "checkpoint")
                    saved = any((folder / name).exists() for name in ("state.pt", "previous.pt"))
                    if process.cell in self.to_freeze and saved and _stopped(process.pid):
                        self.frozen[process.cell] = (process, saved_step(folder))
                        self.to_freeze.discard(process.cell)
        except BaseException as error:
            self.trouble = error

    def processes(self) -> Iterator[Process]:
        """Trainings of this study that run, in jobs."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if "kdpipe" not in words or Path(os.readlink(entry / "cwd")) != self.folder.path:
                    continue
                variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            known = dict(variable.partition("=")[::2] for variable in variables)
            model = re.search(rf"--model {CELLS}(\S+)/model\.pt", " ".join(words))
            if model and "SLURM_JOB_ID" in known:
                yield Process(
                    int(entry.name),
                    words[words.index("kdpipe") + 1],
                    model[1],
                    known["SLURM_JOB_ID"],
                    known["SLURMD_NODENAME"],
                    known.get("CUDA_VISIBLE_DEVICES", "none"),
                )

    def active(self) -> set[str]:
        """Jobs that wait or run."""
        waiting = {"PENDING", "RUNNING", "COMPLETING", "REQUEUED"}
        return {number for number, job in self.jobs.items() if job.states[-1] in waiting}

    def was_requeued(self, job: str) -> bool:
        states = self.jobs[job].states
        return "RUNNING" in states and states[-1] == "PENDING" or states.count("RUNNING") > 1

    def hold(self, cells: list[str]) -> Held:
        """Wait until trainings of all these cells stand still with a saved state."""

        def held() -> bool:
            for cell in cells:
                if cell not in self.frozen or not _stands(self.frozen[cell][0].pid):
                    self.to_freeze.add(cell)  # not begun, or ended meanwhile
            return not self.to_freeze.intersection(cells)

        self.until(held, f"trainings of {cells}")
        return {cell: self.frozen[cell] for cell in cells}


def _stopped(pid: int) -> bool:
    """Stop a process; False if it has just ended."""
    try:
        os.kill(pid, signal.SIGSTOP)
    except ProcessLookupError:
        return False
    for _ in range(200):
        if _stands(pid):
            return True
        time.sleep(0.01)
    return False


def _stands(pid: int) -> bool:
    try:
        return " T " in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:4]
    except OSError:
        return False


def _short(comment: str) -> str:
    rule = re.match(r"(?:rule|group)_([a-z_]+?)(?:_wildcards|$)", comment)
    cell = re.search(r"fold0_(.+)$", comment)
    name = cell[1].replace("students_", "").replace("student_", "") if cell else ""
    return f"{rule[1] if rule else comment} {name}".strip()


def saved_step(folder: Path) -> int:
    steps = [
        torch.load(file, map_location="cpu", weights_only=True)["step"]
        for file in (folder / "state.pt", folder / "previous.pt")
        if file.exists()
    ]
    return max(steps)


def slurm(program: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [f"/usr/bin/{program}", *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()
