"""The partial file of a download: its bytes, its checksums, and notes to go on with it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from kdpipe.atomic import write_json
from kdpipe.data.acquisition._files import MB, writing
from kdpipe.data.acquisition._secrets import public_url

CHUNK = 1 << 20


class Sums:
    """Size and checksums of what was seen so far."""

    def __init__(self) -> None:
        self.size = 0
        self._hashes = (hashlib.md5(usedforsecurity=False), hashlib.sha256())

    def update(self, chunk: bytes) -> None:
        """Count a chunk."""
        self.size += len(chunk)
        for running in self._hashes:
            running.update(chunk)

    def as_dict(self) -> dict[str, Any]:
        """Return `bytes`, `md5` and `sha256`."""
        md5, sha256 = (running.hexdigest() for running in self._hashes)
        return {"bytes": self.size, "md5": md5, "sha256": sha256}

    @classmethod
    def of(cls, file: Path) -> Sums:
        """Read a file."""
        sums = cls()
        for chunk in chunks(file):
            sums.update(chunk)
        return sums


def chunks(file: Path) -> Iterator[bytes]:
    """Yield a file's content."""
    with file.open("rb") as handle:
        while chunk := handle.read(CHUNK):
            yield chunk


class Part:
    """`<name>.part` and its notes: url, etag, last_modified, and bytes of the whole (or null)."""

    def __init__(self, target: Path):
        self.name = target.name
        self.path = target.with_name(f"{target.name}.part")
        self._notes_file = target.with_name(f"{target.name}.part.json")
        self.notes: dict[str, Any] = {}
        self.sums = Sums()
        self.resumed = False  # holds bytes of an earlier answer
        self.stale = False  # not to be gone on with; kept until other bytes come
        self._handle: BinaryIO | None = None

    def __enter__(self) -> Part:
        try:
            notes = json.loads(self._notes_file.read_text(encoding="utf-8"))
            self.sums = Sums.of(self.path)
        except (OSError, ValueError):
            return self
        self.notes = {key: notes.get(key) for key in ("url", "etag", "last_modified", "bytes")}
        self.resumed = self.sums.size > 0
        return self

    def __exit__(self, *error: object) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    @property
    def size(self) -> int:
        """Bytes that are here."""
        return self.sums.size

    @property
    def complete(self) -> bool:
        """True if all bytes of the file are here."""
        return not self.stale and self.notes.get("bytes") == self.size

    def restart(self, **notes: Any) -> None:
        """Begin anew; the notes come after the old bytes are gone, so they never fit others."""
        self.__exit__()
        with writing(self.path):
            self._handle = self.path.open("wb", buffering=0)
        self.sums, self.resumed, self.stale = Sums(), False, False
        self.note(**notes)

    def note(self, **notes: Any) -> None:
        """Change and store some of the notes."""
        self.notes |= notes
        with writing(self._notes_file):
            write_json(self._notes_file, self.notes)

    def append(self, chunk: bytes) -> None:
        """Write a chunk and count it."""
        with writing(self.path, kept=f"its {self.size // MB:,} MB are kept and resumed"):
            if self._handle is None:
                self._handle = self.path.open("ab", buffering=0)
            _write(self._handle, chunk)
        self.sums.update(chunk)

    def move(self, target: Path) -> None:
        """Give the file its name: all of it or nothing, also after a power cut."""
        with writing(target), self.path.open("rb") as handle:
            os.fsync(handle.fileno())
            self.path.replace(target)
        self._notes_file.unlink()

    def range(self, url: str, verifiable: bool) -> dict[str, str]:
        """Return the headers that ask for the rest, or none if bytes might not fit together."""
        etag, modified = self.notes.get("etag"), self.notes.get("last_modified")
        if self.stale or not self.size:
            return {}
        rest = {"Range": f"bytes={self.size}-"}
        if etag and not etag.startswith("W/"):
            return rest | {"If-Range": etag}
        if modified and self.notes["url"] == public_url(url):
            return rest | {"If-Range": modified}
        return rest if verifiable else {}


def _write(handle: BinaryIO, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[handle.write(view) :]
