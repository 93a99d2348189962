"""Download an archive of a data set, resume it, verify it, and note where it came from.

A folder of archives holds, besides them, `<name>.provenance.json` (source, time and checksums of
each), `<name>.part` with `<name>.part.json` (what is unfinished), `<name>.lock`, and
`datasets.lock.json`: checksums that no card knows, recorded at first use and enforced since.

No library at hand resumes, verifies, goes through mirrors and keeps what a person put in place
(`_transfer` says which fail where), so this is our own, on top of `requests`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from kdpipe.atomic import write_json
from kdpipe.data.acquisition._files import locked, writing
from kdpipe.data.acquisition._part import Part, Sums, chunks
from kdpipe.data.acquisition._secrets import public_url, redact, redact_logs
from kdpipe.data.acquisition._transfer import Patience, SourceFailed, WrongSize, transfer
from kdpipe.errors import ConfigError, DataError
from kdpipe.sources import Archive

log = logging.getLogger(__name__)
LEDGER = "datasets.lock.json"
_FIRM = ("publisher", "verified_here")
_NO_PATIENCE_GIVEN = Patience()


class _Mismatch(Exception):
    """The bytes are not those that are wanted."""


def download(
    archive: Archive,
    folder: Path,
    *,
    mirror: str | None,
    accept_checksum: bool = False,
    patience: Patience = _NO_PATIENCE_GIVEN,
) -> Path:
    """Return `folder/name`, verified, after downloading it if it is not there.

    A file that a person put there is verified, never deleted. Processes that want the same file
    wait for the one that fetches it.

    Args:
        archive: name, addresses and checksums, from the card.
        folder: where it goes; its name is the data set's, for the mirror.
        mirror: folder or http(s) address asked first, for `<mirror>/<data set>/<name>` and
            `<mirror>/<name>`; None: no mirror.
        accept_checksum: take a file that differs from a third party's or a recorded checksum,
            and record it in the folder's `datasets.lock.json`.
        patience: time-outs and tries.

    Raises:
        ConfigError: if a name or an address is none.
        DataError: if the file is wrong, or no source has it, or it cannot be written.
    """
    if {"", ".", ".."} & set(archive.name.split("/")) or set("\\\0") & set(archive.name):
        raise ConfigError(f"archive {archive.name!r}: a name below its folder is needed")
    redact_logs()
    target = folder / archive.name
    if _is_known(archive, target):
        return target
    with locked(target):
        if _is_known(archive, target):
            return target
        if target.exists():
            _adopt(archive, target, accept_checksum)
        else:
            _fetch(archive, target, mirror, accept_checksum, patience)
    return target


def _home(archive: Archive, target: Path) -> Path:
    """Return the data set's folder; a file may lie deeper."""
    return target.parents[archive.name.count("/")]


def _is_known(archive: Archive, target: Path) -> bool:
    """Return whether the file is the one that was verified before, by size and record."""
    try:
        record = _read(_provenance(target))
        if record.get("bytes") != target.stat().st_size:
            return False
        return _recorded_status(archive, target, record) is not None
    except (OSError, DataError, _Mismatch):
        return False


def _adopt(archive: Archive, target: Path, accept: bool) -> None:
    """Verify a file that somebody put in place."""
    log.info("%s is here already; verifying it", target)
    try:
        sums = Sums.of(target).as_dict()
    except OSError as error:
        raise DataError(f"{target}: cannot be read: {error.strerror}") from None
    try:
        status = _verify(archive, target, sums, accept)
    except _Mismatch as problem:
        raise DataError(
            f"{target}: {problem}; the file is left as it is.{_override(archive)} "
            "Or move it away to download it anew."
        ) from None
    _note_provenance(target, {"url": None, "etag": None}, sums, status)


def _fetch(
    archive: Archive, target: Path, mirror: str | None, accept: bool, patience: Patience
) -> None:
    """Try one source after the other until one gives the right file."""
    problems, doubtful = [], False
    with Part(target) as part:
        earlier = [None] if part.complete else []
        for source in (*earlier, *_sources(archive, target, mirror, part)):
            try:
                status = _bring(archive, source, part, target, accept, patience)
            except (SourceFailed, _Mismatch) as problem:
                shown = public_url(source) if isinstance(source, str) else source or part.path
                log.warning("%s: %s", shown, problem)
                problems.append(f"  {shown}: {problem}")
                part.stale = part.stale or isinstance(problem, _Mismatch)
                doubtful = doubtful or isinstance(problem, (_Mismatch, WrongSize))
                continue
            part.move(target)
            _note_provenance(target, part.notes, part.sums.as_dict(), status)
            return
    reasons = "\n".join(problems) or "  the card names no address"
    override = f"\n{_override(archive).strip()}" if doubtful else ""
    raise DataError(
        f"{archive.name}: no source gave the file:\n{reasons}{override}\n"
        f"Or get it by hand and put it here: {target}"
    )


def _bring(
    archive: Archive,
    source: str | Path | None,
    part: Part,
    target: Path,
    accept: bool,
    patience: Patience,
) -> str:
    """Complete the part (None: it is complete), and return its checksum's status."""
    size = None if accept and archive.checksum_status not in _FIRM else archive.bytes
    verifiable = bool(archive.sha256 or archive.md5)
    while True:
        if isinstance(source, Path):
            _copy(source, part)
        elif source is not None:
            transfer(source, part, patience, size, verifiable)
        try:
            return _verify(archive, target, part.sums.as_dict(), accept)
        except _Mismatch as problem:
            if not part.resumed or not isinstance(source, str):
                raise
            log.warning("%s, perhaps by resuming; once more from the start", problem)
            part.stale, part.resumed = True, False


def _copy(source: Path, part: Part) -> None:
    """Copy from a mirror that is a folder."""
    try:
        pieces, size = chunks(source), source.stat().st_size
        part.restart(url=redact(source.as_uri()), etag=None, last_modified=None, bytes=size)
        for piece in pieces:
            part.append(piece)
    except FileNotFoundError:
        raise SourceFailed("is not there") from None
    except OSError as error:
        raise SourceFailed(f"cannot be read: {error.strerror}") from None


def _sources(
    archive: Archive, target: Path, mirror: str | None, part: Part
) -> Iterator[str | Path]:
    """Yield the places to ask: the mirror, then the card's, first the one the part is from."""
    name, dataset = archive.name, _home(archive, target).resolve().name
    parts = urlsplit(mirror or "")
    if parts.scheme in ("http", "https"):
        for path in (f"{quote(dataset)}/{quote(name)}", quote(name)):
            yield urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{path}"))
    elif mirror and parts.scheme in ("", "file"):
        root = Path(unquote(parts.path) if parts.scheme else mirror).expanduser().absolute()
        yield from (root / dataset / name, root / name)
    elif mirror:
        raise ConfigError(f"mirror {public_url(mirror)}: a folder or an http(s) address is needed")
    for url in archive.urls:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ConfigError(f"archive {name!r}: {public_url(url)} is no http(s) address")
    yield from sorted(archive.urls, key=lambda url: public_url(url) != part.notes.get("url"))


def _verify(archive: Archive, target: Path, sums: dict[str, Any], accept: bool) -> str:
    """Return the checksum's status, recording the sums if nobody knows them; or raise."""
    try:
        status = _recorded_status(archive, target, sums)
    except _Mismatch:
        if not accept or (archive.checksum_status in _FIRM):
            raise
        log.warning("%s: differs from the expected checksum and is accepted", archive.name)
        _record(archive, target, sums)
        return _recorded_status(archive, target, sums) or "accepted"
    if status is None:
        log.info("%s: no checksum is known; recording sha256 %s", archive.name, sums["sha256"])
        _record(archive, target, sums)
    return status or "record_on_first_use"


def _recorded_status(archive: Archive, target: Path, sums: dict[str, Any]) -> str | None:
    """Return the status by which the sums are right, None if nothing speaks for or against."""
    wrong = _difference(archive.model_dump(), sums)
    if not wrong and (archive.sha256 or archive.md5):
        return archive.checksum_status
    if wrong and archive.checksum_status in _FIRM:
        raise _Mismatch(f"{wrong} ({archive.checksum_status.replace('_', ' ')})")
    recorded = _read(_home(archive, target) / LEDGER).get(archive.name)
    if recorded and not _difference(recorded, sums):
        return "accepted" if wrong else "record_on_first_use"
    if recorded and not wrong:
        raise _Mismatch(f"{_difference(recorded, sums)} (recorded at first use in {LEDGER})")
    if wrong:
        raise _Mismatch(f"{wrong} ({archive.checksum_status.replace('_', ' ')})")
    return None


def _difference(wanted: dict[str, Any], sums: dict[str, Any]) -> str:
    """Return what is wrong in words, "" if nothing: the size, else sha256, else md5."""
    size, kind = wanted.get("bytes"), "sha256" if wanted.get("sha256") else "md5"
    if size is not None and size != sums["bytes"]:
        return f"has {sums['bytes']:,} bytes, expected {size:,}"
    if wanted.get(kind) and wanted[kind] != sums.get(kind):
        return f"its {kind} is {sums.get(kind)}, expected {wanted[kind]}"
    return ""


def _override(archive: Archive) -> str:
    """Return how to accept a checksum that differs, where that is allowed."""
    if archive.checksum_status in _FIRM:
        return ""
    origin = (
        "its publisher gave no checksum; what was recorded at first use holds"
        if archive.checksum_status == "record_on_first_use"
        else "the card's size and checksum come from a third party, not from the publisher, "
        "and are unconfirmed"
    )
    return (
        f" {origin}. If you trust the file, name the data set under accept_checksum in the study; "
        "it is then recorded."
    )


def _record(archive: Archive, target: Path, sums: dict[str, Any]) -> None:
    ledger = _home(archive, target) / LEDGER
    with locked(ledger), writing(ledger):
        write_json(ledger, _read(ledger) | {archive.name: sums})


def _note_provenance(
    target: Path, notes: dict[str, Any], sums: dict[str, Any], status: str
) -> None:
    record = {
        "url": notes["url"],
        "etag": notes["etag"],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "checksum_status": status,
        **sums,
    }
    with writing(_provenance(target)):
        write_json(_provenance(target), record)


def _provenance(target: Path) -> Path:
    return target.with_name(f"{target.name}.provenance.json")


def _read(file: Path) -> dict[str, Any]:
    """Return a JSON object, an empty one if there is no file."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({type(error).__name__}); mend it") from None
    return value if isinstance(value, dict) else {}
