"""Jobs on one machine with several GPUs: never two on one, and none lost to a job that died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdpipe.engine import slots
from kdpipe.engine.slots import Gpu, gpu_slot, parse_listing, visible_gpus
from kdpipe.errors import ConfigError

TWO = (Gpu("GPU-a", "GPU-a"), Gpu("GPU-b", "GPU-b"))
ROOT = Path(__file__).parent.parent.parent

# holds a slot until its standard input ends; notes when it began and ended, by a clock of the
# machine that all processes share
JOB = """
import logging, sys, time
from pathlib import Path
from kdpipe.engine.slots import Gpu, gpu_slot
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
folder, gpus, count, sharing, alone = sys.argv[1:6]
there = [Gpu(name, name) for name in gpus.split(",")]
with gpu_slot(int(count), bool(int(alone)), int(sharing), lambda: there, Path(folder)) as names:
    began = time.monotonic_ns()
    print(*names, flush=True)
    if len(sys.argv) > 6:
        time.sleep(float(sys.argv[6]))
    else:
        sys.stdin.read()
    print(began, time.monotonic_ns(), flush=True)
"""


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "LOCAL_RANK", slots.JOBS_PER_GPU):
        monkeypatch.delenv(name, raising=False)


class Jobs:
    """Processes that compete for the GPUs a and b."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self, count: int = 1, sharing: int = 1, alone: bool = False, seconds: float | None = None
    ) -> subprocess.Popen[str]:
        lasting = [] if seconds is None else [str(seconds)]
        arguments = [str(self.folder), "a,b", str(count), str(sharing), str(int(alone)), *lasting]
        process = subprocess.Popen(
            [sys.executable, "-c", JOB, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    found = Jobs(tmp_path / "slots")
    yield found
    for process in found.started:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def gpu_of(process: subprocess.Popen[str]) -> str:
    """Wait until the process holds a slot, and return what it holds."""
    while not (line := line_of(process)).startswith("using GPU "):
        assert line.startswith("waiting for"), line
    return line_of(process)


def waits(process: subprocess.Popen[str]) -> bool:
    """Whether the process has found no free slot."""
    return line_of(process).startswith("waiting for ")


def test_two_jobs_never_hold_one_gpu(jobs: Jobs) -> None:
    running = [jobs.start(seconds=0.3) for _ in range(8)]
    held: dict[str, list[tuple[int, int]]] = {}
    for process in running:
        gpu, times = process.communicate(timeout=60)[0].splitlines()[-2:]
        assert process.returncode == 0
        began, ended = map(int, times.split())
        held.setdefault(gpu, []).append((began, ended))
    assert held.keys() == {"a", "b"}
    for spans in held.values():
        spans.sort()
        assert all(one[1] <= other[0] for one, other in zip(spans[:-1], spans[1:], strict=True)), (
            spans
        )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_job_that_is_killed_gives_its_gpu_back(jobs: Jobs, number: int) -> None:
    holders = [jobs.start(), jobs.start()]
    assert {gpu_of(process) for process in holders} == {"a", "b"}
    third = jobs.start()
    assert waits(third)
    holders[0].send_signal(number)
    holders[0].wait()
    assert gpu_of(third) in {"a", "b"}


def test_jobs_share_where_they_are_asked_to_and_spread_first(jobs: Jobs) -> None:
    sharing = [jobs.start(sharing=2)]
    found = [gpu_of(sharing[0])]
    for _ in range(3):
        sharing.append(jobs.start(sharing=2))
        found.append(gpu_of(sharing[-1]))
    assert sorted(found) == ["a", "a", "b", "b"]
    assert set(found[:2]) == {"a", "b"}
    assert waits(jobs.start(sharing=2))


@pytest.mark.parametrize("alone", [{"sharing": 1}, {"sharing": 2, "alone": True}])
def test_who_asks_for_a_gpu_of_its_own_gets_no_company(
    jobs: Jobs, alone: dict[str, object]
) -> None:
    both = [jobs.start(**alone), jobs.start(**alone)]  # type: ignore[arg-type]
    assert {gpu_of(process) for process in both} == {"a", "b"}
    assert waits(jobs.start(sharing=2))


def test_a_job_takes_all_its_gpus_or_none(jobs: Jobs) -> None:
    one = jobs.start()
    assert gpu_of(one) == "a"
    two = jobs.start(count=2)
    assert waits(two)
    another = jobs.start()
    assert gpu_of(another) == "b"  # the one that waits holds nothing
    for process in (one, another):
        process.communicate(timeout=30)
    assert gpu_of(two) == "a b"


def test_the_gpu_is_the_only_visible_one_while_it_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with gpu_slot(gpus=lambda: TWO, folder=tmp_path) as held:
        assert held == ("GPU-a",)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-a"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.parametrize(
    ("variables", "count"),
    [
        ({"SLURM_JOB_ID": "7"}, 2),  # the allocation is what it needs
        ({"LOCAL_RANK": "1"}, 1),  # the launcher holds the slots
    ],
)
def test_no_slot_is_taken_where_gpus_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], count: int
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with gpu_slot(count, gpus=lambda: TWO, folder=tmp_path) as held:
        assert held == ()
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert not list(tmp_path.iterdir())


def test_local_jobs_within_an_allocation_share_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with gpu_slot(gpus=lambda: TWO, folder=tmp_path) as held:
        assert held == ("GPU-a",)
    assert (tmp_path / "slurm-7").is_dir()


def test_a_machine_without_gpus_needs_none(tmp_path: Path) -> None:
    with gpu_slot(2, gpus=lambda: [], folder=tmp_path) as held:
        assert held == ()


def test_more_gpus_than_there_are_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="3 GPUs are asked for and 2 are visible"),
        gpu_slot(3, gpus=lambda: TWO, folder=tmp_path),
    ):
        raise AssertionError("a slot was given")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match="KDPIPE_SLOTS"),
        gpu_slot(gpus=lambda: TWO, folder=tmp_path / "file" / "slots"),
    ):
        raise AssertionError("a slot was given")


LISTING = """\
GPU 0: NVIDIA A100 (UUID: GPU-11111111-aaaa)
GPU 1: NVIDIA A100 (UUID: GPU-22222222-bbbb)
  MIG 3g.20gb     Device  0: (UUID: MIG-33333333-cccc)
  MIG 3g.20gb     Device  1: (UUID: MIG-44444444-dddd)
"""


def test_a_listing_gives_whole_gpus_and_parts() -> None:
    assert parse_listing(LISTING) == {
        "0": "GPU-11111111-aaaa",
        "1:0": "MIG-33333333-cccc",
        "1:1": "MIG-44444444-dddd",
    }


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["GPU-11111111-aaaa", "MIG-33333333-cccc", "MIG-44444444-dddd"]),
        ("0", ["GPU-11111111-aaaa"]),
        ("GPU-1111", ["GPU-11111111-aaaa"]),
        ("MIG-44444444-dddd,0", ["MIG-44444444-dddd", "GPU-11111111-aaaa"]),
        ("0,-1,1", ["GPU-11111111-aaaa"]),
        ("", []),
        ("-1", []),
    ],
)
def test_what_is_visible_has_one_identity_however_it_is_named(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[str]
) -> None:
    monkeypatch.setattr(slots, "_listed", lambda: parse_listing(LISTING))
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.identity for gpu in visible_gpus()] == expected
