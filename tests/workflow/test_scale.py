"""A study of hundreds of jobs: Snakemake's process keeps its memory and its file handles."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from checkouts import Checkout

#: 51 cells, four jobs each: run.json, training, prediction, scores
CONFIG = """
study: scale
datasets: [phantom_ct]
teachers: [res_unet]
students: [unet_tiny]
methods: [{{kd: {{tau: 2}}, as: kd0}}{more}]
seeds: [0, 1]
resources: {{profile: {{threads: 1}}}}
"""
N_METHODS = 24
MIB = 2**20


class Watch(threading.Thread):
    """Looks at a process and its finished jobs until it ends: (jobs, resident bytes, handles)."""

    def __init__(self, pid: int, folder: Path):
        super().__init__(daemon=True)
        self.pid, self.folder = pid, folder
        self.seen: list[tuple[int, int, int]] = []

    def run(self) -> None:
        while True:
            try:
                pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
                handles = len(os.listdir(f"/proc/{self.pid}/fd"))
            except (OSError, IndexError):
                return
            done = sum(1 for _ in (self.folder / "benchmarks").rglob("*.tsv"))
            self.seen.append((done, pages * os.sysconf("SC_PAGE_SIZE"), handles))
            time.sleep(0.2)


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks into /proc")
def test_two_hundred_jobs_leak_nothing(tmp_path: Path, root: Path) -> None:
    more = "".join(f", {{kd: {{tau: {2 + i}}}, as: kd{i}}}" for i in range(1, N_METHODS))
    checkout = Checkout(tmp_path / "study", root, CONFIG.format(more=more))
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--quiet", "all"]
    environment = os.environ | {
        "PYTHONPATH": str(checkout.folder),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=checkout.folder, env=environment, stdout=log, stderr=log
        )
        watch = Watch(process.pid, checkout.folder)
        watch.start()
        assert process.wait() == 0, (tmp_path / "log").read_text()[-3000:]
        watch.join()
    jobs = watch.seen[-1][0]
    assert jobs > 150  # and as many run.json as cells, which have no benchmark

    def between(first: float, last: float) -> list[tuple[int, int, int]]:
        return [seen for seen in watch.seen if first * jobs <= seen[0] <= last * jobs]

    early, late = between(0.2, 0.4), between(0.8, 1.0)
    assert early and late
    handles = [max(seen[2] for seen in part) for part in (early, late)]
    assert handles[1] <= handles[0] + 2, watch.seen
    memory = [max(seen[1] for seen in part) / MIB for part in (early, late)]
    # a leak of a job's log and outputs would be 0.1 MiB a job, over a hundred jobs
    assert memory[1] - memory[0] < 12, memory
    print(f"{jobs} jobs, handles {handles}, MiB {memory}")


def test_what_a_job_imports(root: Path) -> None:
    """The start of a job is paid thousands of times: no stage waits for what it does not need."""
    code = (
        "import sys\n"
        "from kdpipe.cli import build_parser\n"
        "build_parser().format_help()\n"
        "early = set(sys.modules)\n"
        "import kdpipe.metrics.folders, kdpipe.data.manifest, kdpipe.data.splits.split\n"
        "late = set(sys.modules)\n"
        "print([n for n in ('torch', 'numpy', 'pandas', 'yaml', 'scipy') if n in early])\n"
        "print([n for n in ('torch', 'monai', 'matplotlib', 'jinja2') if n in late])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


def test_planning_needs_neither_torch_nor_scipy(root: Path) -> None:
    code = (
        "import sys, yaml\n"
        "from kdpipe.config import load_study\n"
        "from kdpipe.plan import Plan\n"
        "from kdpipe.runs import run_files\n"
        "plan = Plan(load_study(yaml.safe_load(open('config.yaml'))))\n"
        "run_files(plan)\n"
        "print([n for n in ('torch', 'monai', 'scipy', 'pandas') if n in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
