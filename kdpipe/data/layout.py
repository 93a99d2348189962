"""Find the cases of a folder in the layout of the Decathlon or of nnU-Net.

==========  ======================================  ===========================================
``msd``     ``imagesTr/<case>.nii.gz``              one file a case, 4D where it has channels
``nnunet``  ``imagesTr/<case>_0000.nii.gz``, ...    one file a channel
both        ``labelsTr/<case>.nii.gz``              and ``dataset.json`` beside the two folders
==========  ======================================  ===========================================
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kdpipe.atomic import atomic_path
from kdpipe.cards import Layout
from kdpipe.errors import ConfigError, DataError
from kdpipe.imagefile import case_name

_CHANNEL = re.compile(r"(.+)_(\d{4})")
_COLUMNS = ["case", "subject", "images", "label", "sha256"]


@dataclass(frozen=True)
class Case:
    """One labelled case.

    Attributes:
        case: its id, the file's name without channel and suffix.
        subject: the patient; splits keep a patient's cases together.
        images: one file, or one a channel in the order of the channels.
        label: label map.
        sha256: digest (hex) of the contents of all these files.
    """

    case: str
    subject: str
    images: tuple[Path, ...]
    label: Path
    sha256: str = ""


def list_cases(folder: Path, layout: Layout, n_channels: int) -> list[Case]:
    """List the cases of a folder by their names, without reading a file.

    Raises:
        ConfigError: there is no such folder, or `layout` does not fit what is in it.
        DataError: an image without a label, a label without an image, or a missing channel; all
            such cases are named.
    """
    images, labels = _check_folder(folder)
    by_channel = _is_nnunet(folder, images) if layout.kind == "auto" else layout.kind == "nnunet"
    files = _images(images, by_channel)
    pattern = re.compile(layout.case_pattern)
    found = {case: parts for case, parts in files.items() if pattern.fullmatch(case)}
    wanted = {case: file for case, file in labels.items() if pattern.fullmatch(case)}
    _check_pairs(folder, found, wanted)
    if not found:
        some = ", ".join(sorted(files)[:3]) or "no image at all"
        raise ConfigError(
            f"{folder}: no case matches case_pattern {layout.case_pattern!r}; there is {some}"
        )
    if by_channel:
        _check_channels(folder, found, n_channels)
    return [
        Case(case, _subject(case, layout), tuple(found[case].values()), wanted[case])
        for case in sorted(found)
    ]


def add_digests(cases: Iterable[Case]) -> list[Case]:
    """Read all files and return the cases with their ``sha256``.

    Raises:
        DataError: a file cannot be read.
    """
    return [Case(case.case, case.subject, case.images, case.label, _digest(case)) for case in cases]


def write_manifest(path: Path, cases: Sequence[Case]) -> None:
    """Write the cases as a table (TSV); the files of several channels are joined by ``;``."""
    rows = [
        (c.case, c.subject, ";".join(map(str, c.images)), str(c.label), c.sha256) for c in cases
    ]
    with atomic_path(path) as temporary:
        pd.DataFrame(rows, columns=_COLUMNS).to_csv(temporary, sep="\t", index=False)


def read_manifest(path: Path) -> list[Case]:
    """Read what `write_manifest` wrote.

    Raises:
        DataError: the file is missing or lacks a column.
    """
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)[_COLUMNS]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: not a table of cases ({error}); run fetch again") from None
    return [
        Case(case, subject, tuple(Path(file) for file in images.split(";")), Path(label), sha256)
        for case, subject, images, label, sha256 in table.itertuples(index=False)
    ]


def _check_folder(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """Return the image files and the label files by case."""
    mend = "name a folder with dataset.json, imagesTr and labelsTr in data_source"
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder; {mend}")
    for name in ("dataset.json", "imagesTr", "labelsTr"):
        if not (folder / name).exists():
            raise ConfigError(f"{folder}: holds no {name}; {mend}")
    images = [file for file in sorted((folder / "imagesTr").iterdir()) if case_name(file)]
    labels: dict[str, Path] = {}
    for file in sorted((folder / "labelsTr").iterdir()):
        case = case_name(file)
        if case in labels:
            raise DataError(f"case {case!r}: two label maps, {labels[case]} and {file}; keep one")
        if case:
            labels[case] = file
    return images, labels


def _is_nnunet(folder: Path, images: Sequence[Path]) -> bool:
    """Only nnU-Net's dataset.json says how files end; without it, look at their names."""
    try:
        description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / 'dataset.json'}: not readable as JSON ({error})") from None
    if "file_ending" in description:
        return True
    return bool(images) and all(_CHANNEL.fullmatch(case_name(file) or "") for file in images)


def _images(files: Sequence[Path], by_channel: bool) -> dict[str, dict[int, Path]]:
    """Return case -> channel -> file."""
    found: dict[str, dict[int, Path]] = {}
    for file in files:
        name, channel = case_name(file) or "", 0
        if by_channel:
            match = _CHANNEL.fullmatch(name)
            if match is None:
                raise DataError(
                    f"{file}: in nnU-Net layout a name ends in its channel, as in {name}_0000; "
                    "rename the file, or set layout.kind: msd in the card"
                )
            name, channel = match[1], int(match[2])
        parts = found.setdefault(name, {})
        if channel in parts:
            raise DataError(f"case {name!r}: two images, {parts[channel]} and {file}; keep one")
        parts[channel] = file
    return found


def _check_pairs(folder: Path, images: Iterable[str], labels: Iterable[str]) -> None:
    problems = {
        "without a label map in labelsTr": sorted(set(images) - set(labels)),
        "without an image in imagesTr": sorted(set(labels) - set(images)),
    }
    lines = [f"{', '.join(cases)} {problem}" for problem, cases in problems.items() if cases]
    if lines:
        raise DataError(
            f"{folder}: missing pair: {'; '.join(lines)}. Add the files, or leave these cases out "
            "with the card's layout.case_pattern"
        )


def _check_channels(folder: Path, images: dict[str, dict[int, Path]], n_channels: int) -> None:
    wrong = [
        f"{case!r} has {', '.join(f'_{channel:04d}' for channel in parts)}"
        for case, parts in sorted(images.items())
        if sorted(parts) != list(range(n_channels))
    ]
    if wrong:
        raise DataError(
            f"{folder}: the card names {n_channels} channel(s), so files should end in _0000 to "
            f"_{n_channels - 1:04d}, but case {'; case '.join(wrong)}; mend the files or the card"
        )


def _subject(case: str, layout: Layout) -> str:
    match = re.match(layout.subject_pattern, case)
    if match is None or not match[1]:
        raise ConfigError(
            f"case {case!r}: the card's subject_pattern {layout.subject_pattern!r} finds no patient"
        )
    return match[1]


def _digest(case: Case) -> str:
    sha = hashlib.sha256()
    for file in (*case.images, case.label):
        try:
            with file.open("rb") as stream:
                sha.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise DataError(f"case {case.case!r}: {file} cannot be read: {error}") from None
    return sha.hexdigest()
