"""What a batch of scans became: one JSON file, which is whole at any time.

It is written after each scan, so that a batch that was stopped, or killed, can be continued.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from kdpipe.atomic import write_json
from kdpipe.errors import ConfigError
from kdpipe.json_files import read_object
from kdpipe.scans.scan import Scan

FORMAT = 1
_DECIDES = ("model", "settings")
"""Facts that have to be the same for a label map to be kept."""

Entry = dict[str, Any]
Status = Literal["running", "done", "failed", "stopped"]


class Report:
    """Context of a batch; what happens to each scan is noted and written at once.

    Args:
        file: to write.
        facts: entries of the report: `model` and `settings`, which decide the label maps, and
            others for people.
        scans: all of the batch.
        out: name of the label map of each scan.
        kept: entries of scans that an earlier run has done, see `done_before`.
    """

    def __init__(
        self,
        file: Path,
        facts: Mapping[str, Any],
        scans: Sequence[Scan],
        out: Mapping[str, Path],
        kept: Mapping[str, Entry],
    ) -> None:
        self.file, self._facts = file, dict(facts)
        self._started, self._clock = datetime.now(UTC), time.monotonic()
        self._entries: dict[str, Entry] = {
            scan.name: kept.get(scan.name) or {"status": "waiting", **_begun(scan, out[scan.name])}
            for scan in scans
        }

    @property
    def failed(self) -> dict[str, str]:
        """Scan -> why it could not be segmented."""
        return {
            name: entry["error"]
            for name, entry in self._entries.items()
            if entry["status"] == "failed"
        }

    @property
    def done(self) -> int:
        """How many scans have a label map."""
        return sum(entry["status"] == "done" for entry in self._entries.values())

    def begin(self, scan: Scan) -> None:
        """Note that a scan is being worked on, and what its files are now."""
        self._entries[scan.name] |= {"status": "started", "read": _state(scan)}

    def finish(self, scan: Scan, seconds: float, found: Mapping[str, Any]) -> None:
        """Note a scan that is done, with what was found."""
        self._entries[scan.name] |= {"status": "done", "seconds": round(seconds, 3), **found}
        self._write("running")

    def fail(self, scan: Scan, seconds: float, error: str) -> None:
        """Note a scan that could not be segmented, and why."""
        result = {"status": "failed", "seconds": round(seconds, 3), "error": error}
        self._entries[scan.name] |= result
        self._write("running")

    def _write(self, status: Status) -> None:
        content = {
            "format": FORMAT,
            "status": status,
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._clock, 3),
            **self._facts,
            "scans": list(self._entries.values()),
        }
        write_json(self.file, content)

    def __enter__(self) -> Report:
        self._write("running")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for entry in self._entries.values():
            if entry["status"] == "started":
                entry["status"] = "stopped"
        complete: Status = "failed" if self.failed else "done"
        self._write("stopped" if error is not None else complete)


def _begun(scan: Scan, out: Path) -> Entry:
    """Return what is known of a scan before it is segmented."""
    several = scan.dicom and len(scan.files) > 1  # hundreds of names of slices say nothing
    files = {"files": [scan.place], "slices": len(scan.files)} if several else {}
    return {"scan": scan.name, "files": [str(f) for f in scan.files], "out": str(out)} | files


def earlier_entries(file: Path, facts: Mapping[str, Any]) -> dict[str, Entry]:
    """Return what the report of an earlier run says of its scans; nothing if there is none.

    Raises:
        ConfigError: the report is of another model or of other settings, or is none.
    """
    if not file.is_file():
        return {}
    try:
        earlier = read_object(file, "format", "scans", *_DECIDES)
        entries = {entry["scan"]: entry for entry in earlier["scans"] if entry["status"]}
    except (ConfigError, LookupError, TypeError):
        raise ConfigError(f"--continue: {file} is no report; use --overwrite") from None
    for name in _DECIDES:
        if earlier[name] != facts[name]:
            raise ConfigError(
                f"--continue: {file} is of another {name.removesuffix('s')}: label maps of both "
                "would lie side by side; name another folder, or use --overwrite"
            )
    return entries


def begun_before(
    entries: Mapping[str, Entry], scans: Sequence[Scan], out: Mapping[str, Path]
) -> dict[str, Entry]:
    """Return the entries of the scans that an earlier run, of the same files, has had."""
    return {
        scan.name: entries[scan.name]
        for scan in scans
        if scan.name in entries
        and entries[scan.name] | _begun(scan, out[scan.name]) == entries[scan.name]
    }


def done_before(
    begun: Mapping[str, Entry], scans: Sequence[Scan], out: Mapping[str, Path]
) -> dict[str, Entry]:
    """Return those entries of `begun` whose label map is there and whose scan is what it was."""
    return {
        scan.name: begun[scan.name]
        for scan in scans
        if scan.name in begun
        and begun[scan.name]["status"] == "done"
        and out[scan.name].is_file()
        and begun[scan.name].get("read") == _state(scan)
    }


def _state(scan: Scan) -> Entry:
    """Return what changes where a scan's files are replaced; nothing if one is not there."""
    try:
        found = [file.stat() for file in scan.files]
    except OSError:
        return {}
    newest = datetime.fromtimestamp(max(one.st_mtime for one in found), UTC)
    return {"bytes": sum(one.st_size for one in found), "modified": newest.isoformat()}
