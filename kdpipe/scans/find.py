"""Which scans a command line means: files, channels that belong together, DICOM series."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from kdpipe.data.manifest import check_case_name
from kdpipe.errors import ConfigError, DataError
from kdpipe.images.files import PICTURES, SCAN_SUFFIXES, case_name
from kdpipe.scans.dicom import is_dicom, series_below
from kdpipe.scans.scan import Scan


def check_paths(paths: Sequence[Path]) -> None:
    """Raise ConfigError if there is no path, or one that does not exist."""
    if not paths:
        raise ConfigError("no scan is given: name files or folders after the options")
    if missing := [str(path) for path in paths if not os.path.exists(path)]:
        raise ConfigError(f"no such file or folder: {', '.join(missing)}")


def find_scans(paths: Sequence[Path], channels: int) -> list[Scan]:
    """Return the scans that files and folders hold, by name.

    A folder holds image files, or DICOM series, which may also lie in folders below. Files that
    are named as nnU-Net names channels, ``<case>_0000`` and so on, are one scan.

    Args:
        paths: that exist.
        channels: that the network expects. Of one channel, several numbered files of a case are
            scans of their own, as data sets number cases in the same way.

    Raises:
        ConfigError: a file is no image, a folder holds none, or two scans have one name.
    """
    files: dict[Path, Path] = {}  # given twice, it is one scan
    scans: dict[tuple[Path, ...], Scan] = {}
    for path in paths:
        if path.is_dir():
            series = series_below(path)
            inside = _images_in(path, pictures=not series)
            if not series and not inside:
                raise ConfigError(f"{path}: no image in it ({_known()}) and no DICOM series")
            files |= {file.resolve(): file for file in inside}
            scans |= {tuple(map(Path.resolve, scan.files)): scan for scan in series}
        elif case_name(path, SCAN_SUFFIXES) is not None:
            files[path.resolve()] = path
        elif is_dicom(path):
            scans[path.resolve(),] = Scan(path.stem, (path,), dicom=True)
        else:
            raise ConfigError(f"{path}: no image that can be read ({_known()}) and no DICOM file")
    found = sorted([*scans.values(), *_grouped(files.values(), channels)], key=lambda s: s.name)
    _check_names(found)
    return [_named(scan) for scan in found]


def _known() -> str:
    return ", ".join(SCAN_SUFFIXES)


def _images_in(folder: Path, pictures: bool) -> list[Path]:
    if not os.access(folder, os.R_OK | os.X_OK):  # which is told with the series below it
        return []
    return [
        file
        for file in sorted(folder.iterdir())
        if case_name(file, SCAN_SUFFIXES) is not None
        and not file.is_dir()
        and (pictures or not file.name.endswith(PICTURES))  # beside DICOM they are previews
    ]


def _grouped(files: Iterable[Path], channels: int) -> list[Scan]:
    """Return scans of one file each, and those of the files that are the channels of a case."""
    alone: list[Path] = []
    numbered: dict[tuple[Path, str, str], dict[int, Path]] = defaultdict(dict)
    for file in files:
        stem = _stem(file)
        match = re.fullmatch(r"(.+)_(\d{4})", stem)
        if match is None:
            alone.append(file)
        else:
            suffix = file.name.removeprefix(stem)
            numbered[file.parent, match[1], suffix][int(match[2])] = file
    scans = []
    for (_, name, _), parts in numbered.items():
        if 0 not in parts or (channels == 1 and len(parts) > 1):
            alone += parts.values()
            continue
        wrong = ""
        if len(parts) > 1 and sorted(parts) != list(range(channels)):
            given = ", ".join(f"_{number:04d}" for number in sorted(parts))
            wrong = (
                f"the network takes {channels} channels, _0000 to _{channels - 1:04d}; there are "
                f"{given}: add or remove files"
            )
        scans.append(Scan(name, tuple(parts[number] for number in sorted(parts)), wrong=wrong))
    return [*scans, *(Scan(_stem(file), (file,)) for file in alone)]


def _stem(file: Path) -> str:
    stem = case_name(file, SCAN_SUFFIXES)
    assert stem is not None
    return stem


def _check_names(scans: Sequence[Scan]) -> None:
    places: dict[str, str] = {}
    for scan in scans:
        if scan.name in places:
            raise ConfigError(
                f"the label maps of {places[scan.name]} and {scan.place} would both be called "
                f"{scan.name!r}: rename one of them, or predict them in two runs"
            )
        places[scan.name] = scan.place


def _named(scan: Scan) -> Scan:
    """Return the scan; one after which no label map can be called is wrong."""
    try:
        check_case_name(scan.name)
    except DataError as error:
        return replace(scan, wrong=str(error))
    return scan
