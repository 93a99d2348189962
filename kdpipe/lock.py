"""A lock on a folder: two processes never train one cell at once, on one machine or on several.

The lock is a small file beside the folder. It is made with O_EXCL, which NFS keeps its word about;
``flock`` and ``lockf`` depend on how a share is mounted. A holder renews the file's date as long as
it lives. One that is gone is replaced:

- on the same machine at once, if its process has ended (a process id that was given out again has
  another start time);
- on another machine once the date has stood still for `STALE_AFTER` seconds, or less if it was of
  the same SLURM job. Ages are compared with a file that was written just now, so clocks may differ.

That leaves one gap: a holder that slept for minutes (a suspended machine, a share that hung) does
not know that it was replaced. It calls `check` before it writes anything.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import secrets
import socket
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from kdpipe.errors import Busy, DataError

log = logging.getLogger(__name__)
BEAT_EVERY = 20.0
STALE_AFTER = 300.0  # several beats, and the minute for which NFS may show an old date
_SAME_JOB = 90.0  # a job that is queued again runs once SLURM has ended its former processes
_LOOK_EVERY = 2.0
_TELL_EVERY = 60.0
_SETTLE = 0.3


class FolderLock:
    """Holds `folder` for this process, as a context manager.

    Args:
        folder: need not exist.
        stale_after: seconds after which a holder on another machine is taken for dead.
        beat: seconds between renewals.
        wait: seconds to wait for a living holder.

    Raises:
        Busy: on entering, if a living process holds it. Nothing was touched.
        DataError: if the lock cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        stale_after: float = STALE_AFTER,
        beat: float = BEAT_EVERY,
        wait: float = 0.0,
    ):
        self.folder, self.stale_after, self.beat, self.wait = folder, stale_after, beat, wait
        self.file = folder.with_name(f"{folder.name}.lock")
        self._mine = json.dumps(_this_process())
        self._ended = threading.Event()

    def __enter__(self) -> FolderLock:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except OSError as error:
            raise DataError(
                f"{self.file}: cannot be written ({error.strerror}); make the folder writable, or "
                "free space"
            ) from None
        threading.Thread(target=self._keep_alive, name="lock", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._content() == self._mine:
            self.file.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise Busy if another process has taken over, because this one seemed to be gone."""
        content = self._content()
        if content == self._mine or (content is None and self._create()):  # deleted by hand
            return
        raise Busy(
            f"{self.folder} has been taken over by {_described(content)}; this process stops and "
            "leaves the work to that one"
        )

    def _acquire(self) -> None:
        end, told = time.monotonic() + self.wait, float("-inf")
        while True:
            try:
                if self._create() or self._replace_if_gone():
                    return
            except Busy:
                now = time.monotonic()
                if now >= end:
                    raise
                if now - told >= _TELL_EVERY:
                    told = now
                    holder = _described(self._content())
                    log.info("waiting for %s, which works on %s", holder, self.folder)
                time.sleep(min(_LOOK_EVERY, end - now))

    def _create(self) -> bool:
        """Make the file; False where there is one."""
        try:
            handle = os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(self._mine)
        return True

    def _replace_if_gone(self) -> bool:
        """Take the lock of a holder that is gone; False where the file itself is gone.

        Raises:
            Busy: the holder lives.
        """
        content = self._content()
        if content is None:
            return False
        alive = _alive(content)
        if alive is None:  # on another machine, or the file is not written yet
            alive = self._is_renewed(content)
        if alive:
            raise Busy(
                f"{self.folder} is in use by {_described(content)}; wait until it has ended and "
                f"run the same command again. If it does not run any more, delete {self.file}"
            )
        if self._content() != content:
            return False
        log.warning("the lock %s was left behind by %s: taken over", self.file, _described(content))
        self._overwrite()
        time.sleep(_SETTLE)  # of several that take it over, the last one has it
        self.check()
        self._tidy_up()
        return True

    def _is_renewed(self, content: str) -> bool:
        """Watch until the file's date moves (True) or is too old, or the holder changes."""
        first = self._date()
        same_job = os.environ.get("SLURM_JOB_ID", "") == _parsed(content).get("job") != ""
        limit = min(_SAME_JOB, self.stale_after) if same_job else self.stale_after
        told = False
        while (date := self._date()) is not None and self._content() == content:
            if date != first:
                return True
            if self._now() - date > limit:
                return False
            if not told:
                log.info("waiting to see whether %s still runs", _described(content))
                told = True
            time.sleep(min(_LOOK_EVERY, self.stale_after / 4))
        return False

    def _overwrite(self) -> None:
        handle, name = tempfile.mkstemp(
            prefix=".tmp-", suffix=f"-{self.file.name}", dir=self.file.parent
        )
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(self._mine)
        with suppress(FileNotFoundError):  # who has the lock has tidied up
            os.replace(name, self.file)

    def _tidy_up(self) -> None:
        """Remove what others have left that were killed while they took the lock over."""
        for left in self.file.parent.glob(f".tmp-*-{glob.escape(self.file.name)}"):
            left.unlink(missing_ok=True)

    def _keep_alive(self) -> None:
        while not self._ended.wait(self.beat):
            try:
                if self._content() == self._mine:
                    os.utime(self.file)
            except OSError:  # a share that hangs for a while; `check` settles what came of it
                continue

    def _content(self) -> str | None:
        try:
            return self.file.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def _date(self) -> float | None:
        try:
            return self.file.stat().st_mtime
        except FileNotFoundError:
            return None

    def _now(self) -> float:
        """The time by the clock that dates the lock: of the file server, not of this machine."""
        with tempfile.TemporaryFile(dir=self.file.parent) as probe:
            return os.fstat(probe.fileno()).st_mtime


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _start_of(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "token": secrets.token_hex(8),
    }


def _machine() -> str:
    """What tells machines apart, each start of one and containers too; host names may be equal."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _start_of(pid: int) -> str | None:
    """When a process started, in ticks since the machine did; None if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "" if _exists(pid) else None  # "": not Linux, nothing is known of its start
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return None if fields[0] in "ZX" else fields[19]  # a zombie has ended


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _parsed(content: str | None) -> dict[str, Any]:
    try:
        value = json.loads(content or "")
    except ValueError:  # being written, or lost in a power cut
        return {}
    return value if isinstance(value, dict) else {}


def _alive(content: str) -> bool | None:
    """Whether the holder lives; None where that cannot be seen from here."""
    holder = _parsed(content)
    if holder.get("machine") != _machine() or not isinstance(holder.get("pid"), int):
        return None
    started = _start_of(holder["pid"])
    return started is not None and started == holder.get("started")


def _described(content: str | None) -> str:
    holder = _parsed(content)
    if not holder:
        return "an unknown process"
    job = f", SLURM job {holder['job']}" if holder.get("job") else ""
    return f"process {holder.get('pid')} on {holder.get('host')}{job}, since {holder.get('since')}"
