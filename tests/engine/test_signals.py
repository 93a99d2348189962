"""What follows a signal: exit at once, or wait to be killed as a cluster wants it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from kdpipe.engine import signals
from kdpipe.engine.signals import StopRequest
from kdpipe.errors import Interrupted

TERM, USR1, INT = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_ECHO", 0.2)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def deferred(on_stop: str, longest: float = 60.0) -> StopRequest:
    stop = StopRequest(on_stop, longest)
    stop.defer()
    return stop


@pytest.mark.parametrize("number", [TERM, USR1, INT])
def test_a_signal_is_noted_once_there_is_something_to_save(number: signal.Signals) -> None:
    with deferred("exit") as stop:
        signal.raise_signal(number)
        assert stop.received == number.name
        stop.wait()  # returns at once


@pytest.mark.parametrize("number", [TERM, USR1, INT])
def test_before_that_it_ends_the_process_in_order(number: signal.Signals) -> None:
    message = f"stopped by {number.name} before the first step"
    with pytest.raises(Interrupted, match=message), StopRequest():
        signal.raise_signal(number)


def waited(stop: StopRequest, after: float, number: signal.Signals) -> float:
    """Seconds that `wait` lasts if `number` comes `after` seconds."""
    timer = threading.Timer(after, os.kill, (os.getpid(), number))
    timer.start()
    began = time.monotonic()
    stop.wait()
    timer.join()
    return time.monotonic() - began


@pytest.mark.parametrize("number", [TERM, USR1])
@pytest.mark.parametrize("variable", [True, False])
def test_in_a_slurm_job_it_waits_for_a_second_signal(
    number: signal.Signals, variable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv("SLURM_JOB_ID", "42")
    with deferred("auto" if variable else "wait") as stop:
        signal.raise_signal(number)
        assert waited(stop, 0.5, TERM) >= 0.4


def test_the_same_signal_from_two_senders_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_ECHO", 30.0)
    with deferred("wait", longest=0.6) as stop:
        signal.raise_signal(TERM)
        assert waited(stop, 0.1, TERM) >= 0.6


def test_the_wait_has_an_end() -> None:
    with deferred("wait", longest=0.3) as stop:
        signal.raise_signal(TERM)
        stop.wait()
        assert stop.received == "SIGTERM"


@pytest.mark.parametrize("first", [True, False])
def test_control_c_never_waits(first: bool) -> None:
    with deferred("wait") as stop:
        signal.raise_signal(INT if first else TERM)
        if not first:
            signal.raise_signal(INT)
        stop.wait()
        assert stop.received


def test_an_explicit_exit_holds_in_a_slurm_job_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    with deferred("exit") as stop:
        signal.raise_signal(TERM)
        stop.wait()
        assert stop.received


def test_handlers_are_put_back_also_when_nested() -> None:
    before = signal.getsignal(TERM)
    with StopRequest() as outer:
        within = signal.getsignal(TERM)
        with deferred("exit"), outer:
            assert signal.getsignal(TERM) == outer._note
        assert signal.getsignal(TERM) == within
    assert signal.getsignal(TERM) == before


def test_a_process_that_was_forked_ends_by_the_signal() -> None:
    with deferred("wait"):
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(told, b"x")
            time.sleep(60)
            os._exit(0)
        os.read(ready, 1)  # before that Python forgets signals
        os.kill(child, TERM)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -TERM


LOADER = """
import os, sys, time
from kdpipe.engine.signals import outlive_signals
child = os.fork()
if child == 0:
    outlive_signals(0)
    print("ready", os.getpid(), flush=True)
    time.sleep(60)
sys.stdin.readline()
os.kill(child, 15)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_loader_leaves_signals_to_the_training_but_obeys_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LOADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin and parent.stdout
        loader = int(parent.stdout.readline().split()[1])
        for number in (TERM, USR1, INT, TERM):
            os.kill(loader, number)
        time.sleep(0.3)
        os.kill(loader, 0)  # it is there
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "0\n"


KILLED = """
import multiprocessing, os, time
from torch.utils.data import DataLoader
from kdpipe.engine.signals import told_when_asked
batches = told_when_asked(DataLoader(range(1000), num_workers=1))
next(batches)
loader = multiprocessing.active_children()[0]
os.kill(loader.pid, 9)
os.waitid(os.P_PID, loader.pid, os.WEXITED | os.WNOWAIT)
for _ in range(100):  # torch's handler would raise here
    time.sleep(0.001)
print("not asked", flush=True)
try:
    list(batches)
except RuntimeError as error:
    print(error)
"""


def test_a_loader_that_was_killed_is_told_of_where_a_batch_is_asked_for() -> None:
    result = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True)
    asked, told = result.stdout.splitlines()
    assert asked == "not asked", result.stderr
    assert told.startswith("DataLoader worker") and "exited unexpectedly" in told
