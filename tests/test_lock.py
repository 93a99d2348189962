"""The lock on a folder: held by one, taken over from the dead only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kdpipe import lock
from kdpipe.errors import Busy, DataError
from kdpipe.lock import FolderLock

HOLD = """
import sys, time
from pathlib import Path
from kdpipe.lock import FolderLock
with FolderLock(Path(sys.argv[1]), beat=0.05):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_LOOK_EVERY", 0.05)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint"


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def lock_file(folder: Path) -> Path:
    return folder.with_name("checkpoint.lock")


def written_by(folder: Path, **changes: Any) -> None:
    """Leave a lock as this process would, but for `changes`."""
    with FolderLock(folder):
        content = json.loads(lock_file(folder).read_text())
    lock_file(folder).write_text(json.dumps(content | {"token": "other"} | changes))


def aged(folder: Path, seconds: float) -> None:
    date = time.time() - seconds
    os.utime(lock_file(folder), (date, date))


def test_it_is_there_while_held_and_gone_afterwards(folder: Path) -> None:
    with FolderLock(folder) as held:
        assert lock_file(folder).exists()
        held.check()
    assert os.listdir(folder.parent) == []


def test_a_living_process_keeps_it_and_the_loser_touches_nothing(folder: Path) -> None:
    process = holder(folder)
    try:
        before = lock_file(folder).read_text()
        with pytest.raises(Busy, match=rf"in use by process {process.pid} on .*; wait"):
            FolderLock(folder).__enter__()
        assert lock_file(folder).read_text() == before
        assert os.listdir(folder.parent) == ["checkpoint.lock"]
        assert Busy.exit_code == 5
    finally:
        process.kill()
        process.wait()


def test_who_waits_has_it_once_the_holder_has_ended(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = holder(folder)
    caplog.set_level("INFO")
    threading.Timer(0.5, process.kill).start()
    with FolderLock(folder, wait=60) as held:
        assert process.wait(timeout=0) == -signal.SIGKILL
        held.check()
    assert caplog.text.count(f"waiting for process {process.pid} on") == 1


def test_who_waits_does_so_for_a_while(folder: Path) -> None:
    process = holder(folder)
    try:
        with pytest.raises(Busy, match="in use"):
            FolderLock(folder, wait=0.3).__enter__()
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_a_killed_process_loses_it_at_once_even_as_a_zombie(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = holder(folder)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped
    with FolderLock(folder):
        assert f"left behind by process {process.pid}" in caplog.text
    process.wait()


def test_what_a_process_left_that_was_killed_while_it_took_over_is_removed(folder: Path) -> None:
    written_by(folder, started="1")
    killed = FolderLock(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: None)
        killed._overwrite()
    assert len(list(folder.parent.iterdir())) == 2
    with FolderLock(folder):
        assert list(folder.parent.iterdir()) == [lock_file(folder)]


def test_a_process_id_that_was_given_out_again_is_no_holder(folder: Path) -> None:
    written_by(folder, started="1")  # this very process, but started at another time
    with FolderLock(folder) as held:
        held.check()


def test_on_another_machine_it_is_gone_when_the_date_is_old(folder: Path) -> None:
    written_by(folder, machine="another", host="node7", job="42")
    aged(folder, 301)
    with FolderLock(folder) as held:
        held.check()


def test_on_another_machine_it_lives_while_the_date_is_renewed(folder: Path) -> None:
    written_by(folder, machine="another", host="node7", job="42")
    aged(folder, 100)
    renewal = threading.Timer(0.2, aged, (folder, 0))
    renewal.start()
    with pytest.raises(Busy, match="on node7, SLURM job 42"):
        FolderLock(folder, stale_after=101).__enter__()
    renewal.join()


@pytest.mark.parametrize(("job", "taken"), [("42", True), ("43", False), ("", False)])
def test_a_job_that_was_queued_again_waits_less_for_itself(
    folder: Path, job: str, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", job)
    written_by(folder, machine="another", job="42")
    aged(folder, 100)
    if taken:
        with FolderLock(folder) as held:
            held.check()
        return
    threading.Timer(0.2, os.utime, (lock_file(folder),)).start()
    with pytest.raises(Busy):
        FolderLock(folder).__enter__()


def test_a_young_date_is_watched_until_it_is_old(folder: Path) -> None:
    written_by(folder, machine="another")
    began = time.monotonic()
    with FolderLock(folder, stale_after=0.5):
        assert time.monotonic() - began > 0.3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}'])
def test_a_lock_that_a_power_cut_emptied_is_replaced_when_old(folder: Path, content: str) -> None:
    lock_file(folder).write_text(content)
    aged(folder, 301)
    with FolderLock(folder) as held:
        held.check()


def test_a_clock_that_is_wrong_decides_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_by(folder, machine="another")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86400.0)
    threading.Timer(0.2, os.utime, (lock_file(folder),)).start()
    with pytest.raises(Busy):
        FolderLock(folder).__enter__()


def test_the_holder_renews_it(folder: Path) -> None:
    with FolderLock(folder, beat=0.02):
        aged(folder, 100)
        old = lock_file(folder).stat().st_mtime
        for _ in range(500):
            if lock_file(folder).stat().st_mtime != old:
                break
            time.sleep(0.01)
        assert lock_file(folder).stat().st_mtime > old


def test_a_holder_that_slept_finds_out_and_leaves_the_other_alone(folder: Path) -> None:
    with FolderLock(folder) as held:
        lock_file(folder).write_text(json.dumps({"pid": 1, "host": "node8"}))
        with pytest.raises(Busy, match="taken over by process 1 on node8"):
            held.check()
    assert "node8" in lock_file(folder).read_text()


def test_a_lock_that_was_deleted_by_hand_is_made_again(folder: Path) -> None:
    with FolderLock(folder) as held:
        lock_file(folder).unlink()
        held.check()
        assert lock_file(folder).exists()


def test_of_many_that_take_it_over_one_has_it(folder: Path) -> None:
    """Everyone sees a dead holder at the same moment."""
    process = holder(folder)
    process.send_signal(signal.SIGKILL)
    process.wait()
    barrier, kept, busy = threading.Barrier(8), [], []
    leave = threading.Event()

    def contend() -> None:
        barrier.wait()
        try:
            with FolderLock(folder) as held:
                kept.append(held)
                leave.wait(30)
        except Busy:
            busy.append(1)
            if len(busy) == 7:
                leave.set()

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(kept), len(busy)) == (1, 7)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"checkpoint\.lock: cannot be written"):
        FolderLock(tmp_path / "file" / "checkpoint").__enter__()
