"""Finished work that studies share, so that no case is prepared and nothing is trained twice.

The environment variable ``KDPIPE_CACHE`` names a folder; without it nothing is shared. An entry is
a folder named by a digest of all that decides its content, and ``files.json`` in it lists the
digest of each file. It appears whole, by a rename, and is never changed. Whoever takes it checks
his own copies, so an entry may be damaged or deleted at any time: the work is then done again. No
trouble with the cache stops a job.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from kdpipe.atomic import flush
from kdpipe.errors import ConfigError
from kdpipe.provenance import digest, environment, file_digest

VARIABLE = "KDPIPE_CACHE"
Kind = Literal["cases", "trainings"]
_LIST = "files.json"
_TEMPORARY = ".tmp-"

log = logging.getLogger(__name__)


def is_shared() -> bool:
    """Say whether there is a folder of shared work."""
    return bool(os.environ.get(VARIABLE))


def shared_key(*parts: Any) -> str:
    """Return the name of an entry: a digest of `parts` and of the versions of the libraries."""
    return digest(parts, environment())


def give(kind: Kind, key: str, files: Collection[Path]) -> None:
    """Copy `files` into the entry `key`, unless there is one or nothing is shared."""
    if not is_shared():
        return
    entry = _entry(kind, key)
    if entry.is_dir():
        return
    temporary = entry.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        listed = {}
        for file in files:
            listed[file.name] = file_digest(file)
            shutil.copyfile(file, temporary / file.name)
            flush(temporary / file.name)
        (temporary / _LIST).write_text(json.dumps(listed, indent=1), encoding="utf-8")
        flush(temporary / _LIST)
        temporary.rename(entry)  # fails where another job was faster: its entry is as good
    except OSError as error:
        if not entry.is_dir():
            log.warning("not shared with other studies: %s", error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def taken(kind: Kind, key: str, names: Collection[str], beside: Path) -> Iterator[Path | None]:
    """Yield a folder with checked copies of an entry's files; None where there is no such entry.

    Args:
        kind: of the work.
        key: of the entry.
        names: of the files that it must have.
        beside: folder in which the copies are made; they are deleted afterwards, unless the
            caller has moved them.
    """
    entry = _entry(kind, key) if is_shared() else None
    if entry is None or not entry.is_dir():
        yield None
        return
    beside.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=beside))
    try:
        yield temporary if _copied(entry, names, temporary) else None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _entry(kind: Kind, key: str) -> Path:
    root = Path(os.environ[VARIABLE]).expanduser()
    if not root.is_absolute():
        raise ConfigError(f"environment variable {VARIABLE}: {root} must be an absolute path")
    return root / kind / key[:2] / key


def _copied(entry: Path, names: Collection[str], target: Path) -> bool:
    """Copy an entry and check the copies; take an entry that is damaged out of the cache."""
    try:
        listed = json.loads((entry / _LIST).read_text(encoding="utf-8"))
        for name in names:
            shutil.copyfile(entry / name, target / name, follow_symlinks=False)
            if (target / name).is_symlink() or file_digest(target / name) != listed[name]:
                raise ValueError(f"{name} is not what {_LIST} says")
        target.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        _touch(entry)
    except (OSError, ValueError, LookupError, TypeError) as error:
        if entry.is_dir():
            log.warning("%s is damaged (%s): not used, and removed", entry, error)
            _remove(entry)
        return False
    return True


def _touch(entry: Path) -> None:
    """Let the entry's date say when it was last used; one of somebody else keeps its date."""
    try:
        os.utime(entry)
    except OSError:
        log.debug("%s keeps its date", entry)


def _remove(entry: Path) -> None:
    aside = entry.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
    try:
        entry.rename(aside)
    except OSError:  # not ours, or another job was faster
        return
    shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
