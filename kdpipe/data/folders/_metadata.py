"""What a folder says of itself: its layout, the names of its labels and of its channels."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdpipe.data.folders.layout import list_files
from kdpipe.data.manifest import Case
from kdpipe.errors import ConfigError, DataError
from kdpipe.images.files import case_name
from kdpipe.layouts import Layout

_NIFTI = r"\.nii(?:\.gz)?"
_BIDS_IMAGE = re.compile(rf"(sub-[^/_]+\S*)_([A-Za-z0-9]+)({_NIFTI})")
_FIRST = ("T1w", "T2w", "FLAIR", "ct", "CT")
"""Suffixes of BIDS images by how likely a label map was drawn on them."""


@dataclass(frozen=True)
class Folder:
    """A data set's folder.

    Attributes:
        title: of the data set.
        layout: fields of `kdpipe.layouts.Layout`.
        cases: as `kdpipe.data.folders.layout.list_files` returns them.
        names: id in the files -> structure; empty if nothing says so.
        regions: name -> ids in the files, of label sets that overlap.
        channels: names; empty if nothing says so.
        licence: as stated.
        citation: as stated.
    """

    title: str
    layout: dict[str, Any]
    cases: list[Case]
    names: dict[int, str] = field(default_factory=dict)
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    licence: str = ""
    citation: str = ""


def read_folder(path: Path) -> Folder:
    """List a folder in the layout of the Decathlon, of nnU-Net, or of BIDS with derivatives.

    Raises:
        ConfigError: if there is no such folder.
        DataError: if it is in no such layout, has no labels, or a case is not complete.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder")
    if (path / "imagesTr").is_dir():
        return _with_description(path)
    if any(path.glob("sub-*")):
        return _bids(path)
    raise DataError(
        f"{path}: neither imagesTr and labelsTr (MSD, nnU-Net) nor sub-* (BIDS) are there; name "
        "the folder that holds them, or write a card with layout.kind: files by hand"
    )


def _with_description(path: Path) -> Folder:
    """Look at a folder with `dataset.json`, `imagesTr` and `labelsTr`."""
    file = path / "dataset.json"
    given = _json(file) if file.is_file() else {}
    try:
        channels = _channel_names(given)
        names, regions = _label_names(given.get("labels") or {}, file)
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{file}: 'labels' and 'channel_names' (or 'modality') are not as in the Decathlon or "
            f"nnU-Net ({error}); mend them"
        ) from None
    cases = list_files(path, Layout(), len(channels) or _count_channels(path))
    named_alike = case_name(cases[0].images[0]) == cases[0].case
    return Folder(
        title=str(given.get("name") or path.resolve().name),
        layout={"kind": "msd" if named_alike else "nnunet"},
        cases=cases,
        names=names,
        regions=regions,
        channels=channels,
        licence=str(given.get("licence") or given.get("license") or ""),
        citation=str(given.get("reference") or ""),
    )


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not readable as JSON ({error}); restore it") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: a JSON object is expected; restore it")
    return content


def _channel_names(given: dict[str, Any]) -> tuple[str, ...]:
    """Return the names by number: nnU-Net's `channel_names`, or `modality` of the Decathlon."""
    names = given.get("channel_names") or given.get("modality") or {}
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    return tuple(map(str, names))


def _count_channels(path: Path) -> int:
    numbers = [re.search(r"_(\d{4})$", case_name(f) or "") for f in (path / "imagesTr").iterdir()]
    return 1 + max((int(match[1]) for match in numbers if match), default=0)


def _label_names(
    labels: dict[str, Any], file: Path
) -> tuple[dict[int, str], dict[str, tuple[int, ...]]]:
    """Return names by id, and regions by name: ``{"0": "liver"}`` or ``{"liver": 0 or [0, 1]}``."""
    if "ignore" in labels:
        raise DataError(
            f"{file}: has an 'ignore' label, of voxels without annotation; kdpipe has none, so "
            "give these voxels a class and take it out"
        )
    if all(key.isdigit() for key in labels):
        return {int(key): str(name) for key, name in labels.items()}, {}
    several = {
        name: tuple(map(int, ids if isinstance(ids, list) else [ids]))
        for name, ids in labels.items()
    }
    if all(len(ids) == 1 for ids in several.values()):
        return {ids[0]: name for name, ids in several.items()}, {}
    regions = {name: ids for name, ids in several.items() if ids != (0,)}
    ids = sorted(set().union(*several.values()) | {0})
    return {i: f"label_{i}" if i else "background" for i in ids}, regions


def _bids(path: Path) -> Folder:
    """Look at a BIDS data set whose label maps, `*_dseg.nii.gz`, are among its derivatives."""
    labels = sorted(path.glob("derivatives/*/sub-*/**/*_dseg.nii*"))
    if not labels:
        raise DataError(
            f"{path}: no label maps derivatives/*/sub-*/**/*_dseg.nii.gz are there; a card for "
            "masks in other files is written by hand, with layout.kind: files"
        )
    pipelines = sorted({label.relative_to(path).parts[1] for label in labels})
    if len(pipelines) > 1:
        raise DataError(
            f"{path}: several pipelines in derivatives have label maps: {', '.join(pipelines)}; "
            "keep one of them in the folder"
        )
    derivative = path / "derivatives" / pipelines[0]
    names = _names_of_tsv(derivative, path)
    layout, channels = _bids_layout(path, derivative, labels)
    cases = list_files(path, Layout(**layout), len(channels))
    if lost := sorted(set(labels) - {case.label for case in cases}):
        raise DataError(f"{lost[0]}: lies in another folder than {cases[0].label}; move it")
    file = path / "dataset_description.json"
    given = _json(file) if file.is_file() else {}
    return Folder(
        title=str(given.get("Name") or path.resolve().name),
        layout=layout,
        cases=cases,
        names=names,
        channels=channels,
        licence=str(given.get("License") or ""),
        citation=str(given.get("HowToAcknowledge") or given.get("DatasetDOI") or ""),
    )


def _bids_layout(
    path: Path, derivative: Path, labels: list[Path]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the `files` layout of images beside label maps, and the images' suffixes."""
    suffixes, endings = [], Counter[str]()
    for label in labels:
        folder = path / label.parent.relative_to(derivative)
        inside = folder.iterdir() if folder.is_dir() else ()
        images = [match for f in inside if (match := _BIDS_IMAGE.fullmatch(f.name))]
        stems = {match[1] for match in images if label.name.startswith(f"{match[1]}_")}
        if not stems:
            raise DataError(
                f"{label}: no image in {folder} begins as its name does; rename one of them"
            )
        stem = max(stems, key=len)
        suffixes.append({(match[2], match[3]) for match in images if match[1] == stem})
        endings[label.name.removeprefix(stem)] += 1
    if len(endings) > 1:
        raise DataError(
            f"{derivative}: names of label maps end in several ways: {', '.join(sorted(endings))};"
            " rename them alike"
        )
    common = sorted(set.intersection(*suffixes), key=_by_likelihood)
    if not common:
        raise DataError(f"{path}: no image is there for all {len(labels)} label maps")
    kind = labels[0].parent.name
    first, ending = common[0]
    found = rf"(?P<folder>(?P<subject>sub-[^/]+)/(?:ses-[^/]+/)?{kind})/(?P<case>[^/]+)_{first}"
    layout: dict[str, Any] = {
        "kind": "files",
        "find": found + re.escape(ending),
        "label": f"derivatives/{derivative.name}/{{folder}}/{{case}}{next(iter(endings))}",
    }
    if len(common) > 1:
        layout["channels"] = [f"{{folder}}/{{case}}_{name}{end}" for name, end in common[1:]]
    return layout, tuple(name for name, _ in common)


def _by_likelihood(entry: tuple[str, str]) -> tuple[int, str]:
    name = entry[0]
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)


def _names_of_tsv(derivative: Path, path: Path) -> dict[int, str]:
    """Return id -> name of a BIDS look-up table (columns `index` and `name`), {} without one."""
    tables = [*sorted(derivative.glob("*dseg.tsv")), *sorted(path.glob("*dseg.tsv"))]
    if not tables:
        return {}
    try:
        with tables[0].open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        return {int(row["index"]): row["name"] for row in rows}
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{tables[0]}: no table with columns index and name ({error})") from None
