"""Which files belong to which case: the folder layouts of the field.

Two layouts have `dataset.json`, `imagesTr/` and `labelsTr/`:

- `msd`, Medical Segmentation Decathlon: `imagesTr/CASE.nii.gz`, several channels in one 4D file;
- `nnunet`, nnU-Net's raw folders: `imagesTr/CASE_0000.nii.gz`, `CASE_0001.nii.gz`, one a channel.

All others are `files`: a regular expression finds the first image of each case, and templates name
its other files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdpipe.data.manifest import Case
from kdpipe.errors import ConfigError, DataError
from kdpipe.images.files import PICTURES, SUFFIXES, case_name
from kdpipe.layouts import Layout

log = logging.getLogger(__name__)
_CHANNEL = re.compile(r"(.+)_(\d{4})")


def list_files(folder: Path, layout: Layout, n_channels: int) -> list[Case]:
    """List the cases of a folder, sorted by id; reads no file but `dataset.json`.

    Another number of cases than the card's `layout.n_cases` is logged as a warning; the
    preparation finds it too (D01), and the card may waive that.

    Args:
        folder: the unpacked folder, or what is below one of `layout.roots`.
        layout: kind of layout, which cases count, and how a case's id names its patient.
        n_channels: of an image; checked for `nnunet`. Otherwise the files themselves tell.

    Raises:
        ConfigError: if there is no such folder, or a pattern of the card fits no case.
        DataError: if there is none of `layout.roots`; if `dataset.json` or a folder is missing or
            empty, an image has no label or a label no image, a channel is missing, or one that
            `dataset.json` lists is not there; for `files` if none is found, one is missing, or
            two have the same case id.
    """
    root = _root(folder, layout)
    by_pattern = layout.kind == "files"
    cases = _by_pattern(root, layout) if by_pattern else _by_folder(root, layout, n_channels)
    if layout.n_cases not in (None, len(cases)):
        log.warning(
            "%s: %d cases with labels, %d were published; scores on a subset are not comparable",
            root, len(cases), layout.n_cases,
        )  # fmt: skip
    return cases


def _root(folder: Path, layout: Layout) -> Path:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; mend data_source in config.yaml")
    found = next((folder / name for name in layout.roots if (folder / name).is_dir()), None)
    if found is None:
        raise DataError(
            f"{folder}: holds none of the folders {', '.join(map(repr, layout.roots))}; name the "
            "folder that holds one of them in data_source, or unpack the archive again"
        )
    return found


def _by_folder(folder: Path, layout: Layout, n_channels: int) -> list[Case]:
    """List the cases of a folder with `imagesTr` and `labelsTr`."""
    description = _description(folder)
    images, labels = (_by_stem(folder / part, description) for part in ("imagesTr", "labelsTr"))
    kind = _detect(images, labels) if layout.kind == "auto" else layout.kind
    if kind == "nnunet":
        channels = _group_channels(folder, images)
    else:
        channels = {stem: {0: file} for stem, file in images.items()}
    found = sorted(set(channels) | set(labels))
    chosen = [case for case in found if re.fullmatch(layout.case_pattern, case)]
    if not chosen:
        raise ConfigError(
            f"{folder}: none of {len(found)} cases (such as {found[0]!r}) matches the card's "
            f"layout.case_pattern {layout.case_pattern!r}; mend the pattern"
        )
    _check_complete(folder, layout, description, chosen)
    _check_pairs(folder, chosen, channels, labels)
    if kind == "nnunet":
        _check_channels(folder, {case: channels[case] for case in chosen}, n_channels)
    return [
        Case(case, _subject(case, layout), tuple(_in_order(channels[case])), labels[case])
        for case in chosen
    ]


def index(folder: Path, layout: Layout, n_channels: int) -> list[Case]:
    """List the cases as `list_files` does, each with the SHA-256 of its images and its label."""
    cases = list_files(folder, layout, n_channels)
    return [replace(case, sha256=_content_hash(_files(case))) for case in cases]


def _by_pattern(root: Path, layout: Layout) -> list[Case]:
    """List the cases whose first image `layout.find` matches."""
    matches = [match for path in _walk(root) if (match := re.fullmatch(layout.find or "", path))]
    if not matches:
        raise DataError(
            f"{root}: no file fits the card's layout.find {layout.find!r}; is this the right "
            "folder, and is the archive unpacked?"
        )
    found: dict[str, re.Match[str]] = {}
    for match in matches:
        case = match["case"]
        if not re.fullmatch(layout.case_pattern, case):
            continue
        if "/" in case:
            raise ConfigError(f"case id {case!r} has a slash; mend layout.find in the card")
        if case in found:
            raise DataError(
                f"{root}: {found[case].string} and {match.string} are both case {case!r}; keep one"
            )
        found[case] = match
    if not found:
        raise ConfigError(
            f"{root}: none of {len(matches)} cases (such as {matches[0]['case']!r}) matches the "
            f"card's layout.case_pattern {layout.case_pattern!r}; mend the pattern"
        )
    cases = [_case_of(root, found[case], layout) for case in sorted(found)]
    files = [file for case in cases for file in _files(case)]
    if lost := [file.relative_to(root).as_posix() for file in files if not os.path.lexists(file)]:
        raise DataError(
            f"{root}: {len(lost)} files are missing: {_some(lost)}; add them, or leave their cases "
            "out by layout.case_pattern"
        )
    return cases


def _walk(root: Path) -> Iterator[str]:
    """Yield the files below `root`, but none that a Mac or a file manager left behind."""
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = sorted(n for n in inner if not n.startswith(".") and n != "__MACOSX")
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder, name).relative_to(root).as_posix()


def _case_of(root: Path, match: re.Match[str], layout: Layout) -> Case:
    groups = match.groupdict("")
    others = [_below(root, template.format(**groups)) for template in layout.channels]
    masks = tuple((n, _below(root, file.format(**groups))) for n, file in layout.masks.items())
    label = masks[0][1] if masks else _below(root, (layout.label or "").format(**groups))
    subject = groups.get("subject") or _subject(groups["case"], layout)
    images = (root / match.string, *others)
    return Case(groups["case"], subject, images, label, "", groups.get("part", ""), masks)


def _below(root: Path, path: str) -> Path:
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ConfigError(f"{path!r} leads out of {root}; mend the templates of the card's layout")
    return root / path


def _files(case: Case) -> tuple[Path, ...]:
    return (*case.images, *(file for _, file in case.masks or (("", case.label),)))


def _description(folder: Path) -> dict[str, Any]:
    """Read `dataset.json`, after the checks that tell a wrong folder from a broken one."""
    file = folder / "dataset.json"
    inner = sorted(found.parent for found in folder.glob("*/dataset.json"))
    hint = f"; did you mean {inner[0]}?" if len(inner) == 1 else ""
    wanted = "a data set in MSD or nnU-Net layout has dataset.json, imagesTr and labelsTr"
    for needed in (file, folder / "imagesTr", folder / "labelsTr"):
        if not needed.exists():
            raise DataError(f"{folder}: no {needed.name}; {wanted}{hint}")
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not readable as JSON: {error}; restore it") from None
    if not isinstance(description, dict):
        raise DataError(f"{file}: a JSON object is expected; restore it")
    return description


def _by_stem(folder: Path, description: Mapping[str, Any]) -> dict[str, Path]:
    """Return name without ending -> file; what no image ends in is passed over."""
    given = str(description.get("file_ending", "")).lstrip(".")
    endings = (f".{given}",) if given else SUFFIXES
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        ending = next((end for end in endings if file.name.endswith(end)), None)
        if file.name.startswith(".") or ending is None:  # such as macOS's ._CASE.nii.gz
            continue
        stem = file.name.removesuffix(ending)
        if stem in found:
            raise DataError(f"{folder}: {found[stem].name} and {file.name} are the same; keep one")
        found[stem] = file
    if not found:
        raise DataError(f"{folder}: no file ends in {' or '.join(endings)}; is it unpacked?")
    return found


def _detect(images: Iterable[str], labels: Iterable[str]) -> str:
    """Images named as the labels are MSD's, images named `LABEL_0000` are nnU-Net's."""
    stems, known = set(images), set(labels)
    stripped = {match[1] for stem in stems if (match := _CHANNEL.fullmatch(stem))}
    return "nnunet" if len(stripped & known) > len(stems & known) else "msd"


def _group_channels(folder: Path, images: Mapping[str, Path]) -> dict[str, dict[int, Path]]:
    cases: dict[str, dict[int, Path]] = {}
    for stem, file in images.items():
        match = _CHANNEL.fullmatch(stem)
        if match is None:
            raise DataError(
                f"{folder}: {file.name} does not end in a channel number such as _0000, as "
                "nnU-Net's files do; rename it, or set layout.kind: msd in the card"
            )
        cases.setdefault(match[1], {})[int(match[2])] = file
    return cases


def _check_complete(
    folder: Path, layout: Layout, description: Mapping[str, Any], cases: Sequence[str]
) -> None:
    """A case that `dataset.json` lists must be there: half an unpacked archive is an error."""
    entries = description.get("training", [])
    names = [Path(e["label"]).name for e in entries if isinstance(e, dict) and "label" in e]
    listed = {case_name(Path(name)) or name for name in names}
    wanted = {case for case in listed if re.fullmatch(layout.case_pattern, case)}
    if lost := sorted(wanted - set(cases)):
        raise DataError(
            f"{folder}: {len(lost)} cases that dataset.json lists are not there: {_some(lost)}; "
            "unpack the archive again, or take them out of dataset.json"
        )


def _check_pairs(
    folder: Path, cases: Sequence[str], images: Iterable[str], labels: Iterable[str]
) -> None:
    problems = []
    for have, lack, names in (("image", "label", labels), ("label", "image", images)):
        if single := sorted(set(cases) - set(names)):
            problems.append(f"{have} without {lack}: {_some(single)}")
    if problems:
        raise DataError(
            f"{folder}: missing pair, {'; '.join(problems)}. Add the missing files or take the "
            "single ones out; if names only differ by _0000, check the card's layout.kind"
        )


def _check_channels(folder: Path, cases: Mapping[str, Mapping[int, Path]], n_channels: int) -> None:
    for case, files in cases.items():
        if set(files) == {0} and files[0].name.endswith(PICTURES):
            continue  # its colours may be the channels, as in nnU-Net; reading it will tell
        wanted = set(range(n_channels))
        for channel in sorted(wanted - set(files)):
            raise DataError(
                f"{folder}: case {case!r} has no channel {case}_{channel:04d}, the card names "
                f"{n_channels}; add the file or mend the card's channels"
            )
        for channel in sorted(set(files) - wanted):
            raise DataError(
                f"{folder}: {files[channel].name} is a channel that the card does not name (it "
                f"names {n_channels}); take the file out or mend the card's channels"
            )


def _in_order(channels: Mapping[int, Path]) -> list[Path]:
    return [channels[channel] for channel in sorted(channels)]


def _subject(case: str, layout: Layout) -> str:
    match = re.search(layout.subject_pattern, case)
    if match is None or not match[1]:
        raise ConfigError(
            f"case {case!r} does not match the card's layout.subject_pattern "
            f"{layout.subject_pattern!r}, so its patient is unknown; mend the pattern"
        )
    return match[1]


def _content_hash(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _some(names: Sequence[str], limit: int = 5) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
