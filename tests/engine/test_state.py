"""Checkpoints on a disk that fills up, tears files or turns bits."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from kdpipe.engine.signals import StopRequest
from kdpipe.engine.state import Checkpoint
from kdpipe.errors import Interrupted

SIZE = 50_000  # floats: most of the file


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((SIZE,), float(step))}


def saved(folder: Path, *steps: int, digest: str = "d") -> Checkpoint:
    checkpoint = Checkpoint(folder, digest)
    for step in steps:
        checkpoint.save(state(step))
    return checkpoint


def loaded_step(folder: Path, digest: str = "d") -> int | None:
    found = Checkpoint(folder, digest).load()
    assert found is None or torch.equal(found["weights"], state(found["step"])["weights"])
    return None if found is None else int(found["step"])


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def turn_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1  # in the middle of the weights: still a readable archive
    file.write_bytes(content)


def something_else(file: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, file)


HARM = [cut, empty, zeros, turn_a_bit, something_else]


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """What a full disk does to a file that is larger, without the rights to mount one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_newest_and_the_one_before_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    assert sorted(os.listdir(tmp_path)) == ["previous.pt", "state.pt"]
    assert loaded_step(tmp_path) == 3
    (tmp_path / "state.pt").unlink()
    assert loaded_step(tmp_path) == 2


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_newest_falls_back_and_says_so(
    tmp_path: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 1, 2)
    harm(tmp_path / "state.pt")
    assert loaded_step(tmp_path) == 1
    assert "state.pt is damaged" in caplog.text
    assert "going on from the state before, after step 1" in caplog.text


@pytest.mark.parametrize("harm", HARM)
def test_with_both_damaged_it_starts_afresh_and_says_so(
    tmp_path: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 1, 2)
    for name in ("state.pt", "previous.pt"):
        harm(tmp_path / name)
    assert loaded_step(tmp_path) is None
    assert "previous.pt is damaged" in caplog.text
    assert "starting afresh" in caplog.text


def test_a_damaged_state_never_takes_the_place_of_a_whole_one(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    cut(tmp_path / "state.pt")
    going_on = Checkpoint(tmp_path, "d")
    going_on.load()
    going_on.save(state(5))
    cut(tmp_path / "state.pt")
    assert loaded_step(tmp_path) == 1


def test_a_state_of_something_else_is_not_replaced_by_an_older_one_of_it(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    assert loaded_step(tmp_path, "other") is None
    saved(tmp_path, 9, digest="other")
    assert loaded_step(tmp_path, "other") == 9
    cut(tmp_path / "state.pt")
    assert loaded_step(tmp_path, "other") is None


def test_a_full_disk_keeps_what_was_saved_and_warns_once_a_minute(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = saved(tmp_path, 1, 2)
    with files_no_larger_than(SIZE):
        for step in (3, 4, 5):
            checkpoint.save(state(step))
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "the state after step 3 is not saved"
    ]
    assert "MB are free" in caplog.text
    assert checkpoint.told() == f"the state after step 2 is in {tmp_path}"
    assert sorted(os.listdir(tmp_path)) == ["previous.pt", "state.pt"]
    assert loaded_step(tmp_path) == 2
    checkpoint.save(state(6))  # there is space again
    assert loaded_step(tmp_path) == 6


def test_a_signal_while_a_state_is_read_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 1)
    monkeypatch.setattr(torch, "load", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match="before the first step"), StopRequest():
        Checkpoint(tmp_path, "d").load()
    monkeypatch.undo()
    assert loaded_step(tmp_path) == 1


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, "d")

    class Broken:
        def __reduce__(self) -> Any:
            raise RuntimeError("device-side assert")

    with pytest.raises(RuntimeError, match="device-side assert"):
        checkpoint.save({"step": 1, "part": Broken()})


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / ".tmp-abc-state.pt").write_bytes(bytes(1000))
    assert loaded_step(tmp_path) == 1
    assert os.listdir(tmp_path) == ["state.pt"]


def test_content_is_on_the_disk_before_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut between any two of these leaves a whole state."""
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(handle: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{handle}")).name
        events.append(f"flush {'folder' if name == tmp_path.name else 'content'}")
        fsync(handle)

    def noted_replace(self: Path, target: Path) -> Path:
        events.append(f"name {target.name}")
        return replace(self, target)

    checkpoint = saved(tmp_path, 1)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    checkpoint.save(state(2))
    assert events[0] == "flush content"
    assert events.index("name previous.pt") < events.index("name state.pt")
    assert events[-1] == "flush folder"


def test_nothing_is_written_to_a_folder_that_another_process_has_taken_over(
    tmp_path: Path,
) -> None:
    class Lost(Exception):
        pass

    def check() -> None:
        raise Lost

    saved(tmp_path, 1)
    with pytest.raises(Lost):
        Checkpoint(tmp_path, "d", check=check).save(state(2))
    assert loaded_step(tmp_path) == 1
