"""Unpack an archive that nobody vouches for: what is odd is refused, and nothing is left half made.

Neither `extractall` nor tarfile's filters would do: they follow links, overwrite duplicates,
believe sizes in headers, and zips have no filters.
"""

from __future__ import annotations

import glob
import json
import logging
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Any

from kdpipe.atomic import write_json
from kdpipe.data.acquisition._files import MB, locked, writing
from kdpipe.data.acquisition._members import (
    Format,
    Member,
    damage,
    guess_format,
    members,
    open_archive,
    open_member,
    reason,
    shown,
)
from kdpipe.data.acquisition._part import CHUNK, Sums
from kdpipe.errors import DataError
from kdpipe.progress import ProgressReport

log = logging.getLogger(__name__)
MARKER = ".unpacked.json"
_NOTHING = "nothing of the archive is kept"


def unpack(
    file: Path,
    into: Path,
    *,
    format: Format | None = None,
    exclude: Sequence[str] = (),
    max_bytes: int | None = None,
    max_members: int = 1_000_000,
    password_env: str | None = None,
) -> list[str]:
    """Unpack an archive into a new folder and return the paths of its files, sorted.

    A folder that holds the same archive, unpacked with the same `exclude`, is left as it is; one
    with another archive is replaced; one that was not made here is an error. Mac's `._*`,
    `.DS_Store` and `__MACOSX` are skipped. Files become 0644 and folders 0755.

    Args:
        file: tar (.gz, .bz2, .xz) or zip.
        into: the folder.
        format: None finds out; "zip_aes" needs pyzipper.
        exclude: globs on member paths that are skipped, whatever they are; `*` matches `/` too.
        max_bytes: limit for the unpacked files together, counted while writing; None: no limit.
        max_members: limit for the number of entries, skipped ones too.
        password_env: name of the environment variable with the password.

    Raises:
        ConfigError: if pyzipper is needed and missing.
        DataError: if the archive is damaged or refused, or its password is missing or wrong; the
            message names archive and member.
    """
    marker = {"sha256": _sha256(file), "exclude": sorted(exclude)}
    with locked(into):
        if into.exists():
            found = _marker(into)
            if found is None and (not into.is_dir() or any(into.iterdir())):
                raise DataError(f"{into}: holds files that were not unpacked here; move them away")
            if found is not None and found | marker == found:
                log.info("%s is unpacked already", into)
                return list(found["files"])
        with writing(into):
            for left in into.parent.glob(f"{glob.escape(into.name)}.extracting-*"):
                shutil.rmtree(left)  # of a process that was killed: we hold the lock
            temporary = tempfile.TemporaryDirectory(
                prefix=f"{into.name}.extracting-", dir=into.parent
            )
        with temporary as folder:
            fresh = Path(folder) / "fresh"
            writer = _Writer(file, fresh, exclude, max_bytes, max_members)
            with ProgressReport(f"unpack {file.name} (MB)", -(-file.stat().st_size // MB)) as bar:
                _extract(file, format or guess_format(file), password_env, writer, bar)
            with writing(into):
                write_json(fresh / MARKER, marker | {"files": sorted(writer.files)})
                if into.exists():
                    into.rename(Path(folder) / "old")
                fresh.rename(into)
    log.info("%s: %d files in %s", file.name, len(writer.files), into)
    return sorted(writer.files)


def _extract(
    file: Path, format: Format, password_env: str | None, writer: _Writer, bar: ProgressReport
) -> None:
    """Write all members; an error names the member at which it came up."""
    current = "its beginning"
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(file.open("rb"))
            archive = stack.enter_context(open_archive(raw, format))
            for member in members(archive):
                current = f"member {shown(member.name)}"
                path = writer.admit(member)
                if path is None:
                    continue
                with open_member(archive, member, password_env) as content:
                    while chunk := content.read(CHUNK):
                        writer.append(path, chunk)
                        bar.advance(max(0, min(raw.tell() // MB, bar.total - 1) - bar.done))
        except damage() as error:
            raise DataError(f"{file}: {current}: {reason(error, password_env)}") from None
        finally:
            writer.close()
    bar.advance(bar.total - bar.done)


class _Writer:
    """Decides what may be written, and writes it below a folder, one file after the other."""

    def __init__(
        self,
        file: Path,
        root: Path,
        exclude: Sequence[str],
        max_bytes: int | None,
        max_members: int,
    ):
        self.file, self.root, self.exclude = file, root, exclude
        self.max_bytes, self.max_members = max_bytes, max_members
        self.files: list[str] = []
        self._members = self._bytes = 0
        self._folders: set[PurePosixPath] = set()
        self._taken: dict[str, str] = {}  # name as any file system sees it -> kind
        self._handle: IO[bytes] | None = None
        self._make_folder(PurePosixPath())

    def admit(self, member: Member) -> Path | None:
        """Create a file that may be written, and return it; None for folders and the skipped."""
        self._members += 1
        if self._members > self.max_members:
            raise DataError(f"{self.file}: more than {self.max_members:,} members; refused")
        plain = member.name.replace("\\", "/")  # some Windows tools write these into zips
        path = PurePosixPath(plain)
        if _is_junk(path) or any(fnmatchcase(str(path), pattern) for pattern in self.exclude):
            return None
        if problem := _odd(plain, path) or _odd_kind(member, path):
            raise self._refusal(member.name, problem)
        folders = list(reversed(path.parents[:-1]))
        folders += [path] if member.kind == "folder" else []
        for folder in folders:
            if self._taken.setdefault(_key(folder), "folder") != "folder":
                raise self._refusal(member.name, "needs a folder where there is a file")
            self._make_folder(folder)
        if member.kind == "folder":
            return None
        if _key(path) in self._taken:
            raise self._refusal(member.name, "comes twice, or differs only in case")
        self._taken[_key(path)] = "file"
        return self._create(path)

    def append(self, path: Path, chunk: bytes) -> None:
        """Write a chunk of the file that was created last."""
        self._bytes += len(chunk)
        if self.max_bytes is not None and self._bytes > self.max_bytes:
            name = str(path.relative_to(self.root))
            raise self._refusal(name, f"the files exceed {self.max_bytes:,} bytes together")
        assert self._handle is not None
        with writing(path, kept=_NOTHING):
            self._handle.write(chunk)
            self._handle.flush()

    def close(self) -> None:
        """Close the last file."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _create(self, relative: PurePosixPath) -> Path:
        self.close()
        self.files.append(str(relative))
        path = self.root / relative
        with writing(path, kept=_NOTHING):
            self._handle = path.open("xb")
            path.chmod(0o644)
        return path

    def _make_folder(self, relative: PurePosixPath) -> None:
        if relative in self._folders:
            return
        self._folders.add(relative)
        path = self.root / relative
        with writing(path, kept=_NOTHING):
            path.mkdir()
            path.chmod(0o755)

    def _refusal(self, name: str, problem: str) -> DataError:
        return DataError(f"{self.file}: member {shown(name)}: {problem}; the archive is refused")


def _is_junk(path: PurePosixPath) -> bool:
    return (
        path.name.startswith("._")
        or path.name == ".DS_Store"
        or "__MACOSX" in path.parts
        or str(path) == MARKER
    )


def _odd(name: str, path: PurePosixPath) -> str:
    """Return what speaks against a name, "" if nothing."""
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        return "a name with control characters or undecodable bytes"
    if path.is_absolute() or re.match(r"[A-Za-z]:", name):
        return "an absolute path"
    return "a path with '..'" if ".." in path.parts else ""


def _odd_kind(member: Member, path: PurePosixPath) -> str:
    if member.kind not in ("file", "folder"):
        return f"is {member.kind}"
    return "" if path.parts or member.kind == "folder" else "a file without a name"


def _key(path: PurePosixPath) -> str:
    """Return the name as file systems see it that fold case, Unicode or trailing dots."""
    parts = (unicodedata.normalize("NFC", part).casefold() for part in path.parts)
    return "/".join(part.rstrip(" .") or part for part in parts)


def _sha256(file: Path) -> str:
    """Return the archive's checksum, from its provenance if the download left one that fits."""
    try:
        known = json.loads(file.with_name(f"{file.name}.provenance.json").read_text("utf-8"))
        if known["bytes"] == file.stat().st_size:
            return str(known["sha256"])
    except (OSError, ValueError, LookupError, TypeError):
        pass
    try:
        return str(Sums.of(file).as_dict()["sha256"])
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None


def _marker(folder: Path) -> dict[str, Any] | None:
    """Return what was unpacked into a folder; None if nothing was."""
    try:
        return dict(json.loads((folder / MARKER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
