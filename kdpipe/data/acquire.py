"""Bring the files of a published data set here: download or take what a person has put in place."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdpipe.data.archive import unpack
from kdpipe.data.download import download
from kdpipe.sources import MIRROR, Archive

log = logging.getLogger(__name__)
_GB = 10**9


def acquire(run: Mapping[str, Any], archives: Path, unpacked: Path) -> Path:
    """Return the folder that holds the files as the card's layout describes them.

    Every file is looked for in `archives`, then asked of the mirror that ``KDPIPE_MIRROR`` names,
    then of the card's addresses; whatever its way, its checksum is verified.

    Args:
        run: `files` of the card and `accept_checksum`.
        archives: where files are downloaded to, and where a person puts those that cannot be.
        unpacked: where archives are unpacked to, each in a folder of its own if there are several.

    Raises:
        DataError: a file cannot be had, is not the one of the card, or its archive is refused.
    """
    files = [Archive.model_validate(file) for file in run["files"]]
    packed = [file for file in files if file.unpack]
    for entry in files:
        for file in entry.expanded():
            path = download(
                file,
                archives,
                mirror=os.environ.get(MIRROR) or None,
                accept_checksum=run["accept_checksum"],
            )
            if file.unpack:
                _unpack(path, file, _folder(file, packed, unpacked))
    return unpacked if packed else archives


def _folder(file: Archive, packed: Sequence[Archive], unpacked: Path) -> Path:
    return unpacked if len(packed) == 1 else unpacked / Path(file.name).stem


def _unpack(path: Path, file: Archive, into: Path) -> None:
    assert file.unpack is not None
    members = unpack(
        path,
        into,
        format=file.unpack.format,
        exclude=file.unpack.exclude,
        max_bytes=int(file.unpack.max_gb * _GB),
        password_env=file.unpack.password_env,
    )
    log.info("%s: %d files in %s", path.name, len(members), into)
