"""Bring the files of a published data set here: download or take what a person has put in place."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdpipe.data.acquisition.archive import unpack
from kdpipe.data.acquisition.download import download
from kdpipe.errors import DataError
from kdpipe.sources import MIRROR, Archive, Unpack

log = logging.getLogger(__name__)
TOGETHER = "together"
_GB = 10**9


def acquire(run: Mapping[str, Any], archives: Path, unpacked: Path) -> Path:
    """Return the folder that holds the files as the card's layout describes them.

    Every file is looked for in `archives`, then asked of the mirror that ``KDPIPE_MIRROR`` names,
    then of the card's addresses; whatever its way, its checksum is verified.

    Args:
        run: `files`, one entry a file, and `accept_checksum`.
        archives: where files are downloaded to, and where a person puts those that cannot be.
        unpacked: where archives are unpacked to; of several, each to a folder of its own, and a
            folder `together` shows them as one.

    Raises:
        DataError: a file cannot be had, is not the one of the card, or its archive is refused.
    """
    files = [Archive.model_validate(file) for file in run["files"]]
    packed = [file for file in files if file.unpack]
    members: dict[str, Path] = {}
    for file in files:
        path = download(
            file,
            archives,
            mirror=os.environ.get(MIRROR) or None,
            accept_checksum=run["accept_checksum"],
        )
        if file.unpack and len(packed) == 1:
            _unpack(path, file.unpack, unpacked)
        elif file.unpack:
            folder = unpacked / Path(file.name).stem
            for member in _unpack(path, file.unpack, folder):
                _add(members, folder / member, Path(file.unpack.into, member).as_posix())
    if len(packed) > 1:
        return _together(members, unpacked / TOGETHER)
    return unpacked if packed else archives


def _add(members: dict[str, Path], file: Path, name: str) -> None:
    if name in members:
        raise DataError(
            f"{file}: {members[name]} is called {name} too; mend the card's unpack.into"
        )
    members[name] = file


def _together(members: Mapping[str, Path], folder: Path) -> Path:
    """Lay the files of several archives into one folder; they are linked, not copied."""
    for name, file in members.items():
        target = folder / name
        if not (target.exists() and target.samefile(file)):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.symlink_to(os.path.relpath(file, target.parent))
    return folder


def _unpack(path: Path, how: Unpack, into: Path) -> list[str]:
    members = unpack(
        path,
        into,
        format=how.format,
        exclude=how.exclude,
        max_bytes=int(how.max_gb * _GB),
        password_env=how.password_env,
    )
    log.info("%s: %d files in %s", path.name, len(members), into)
    return members
