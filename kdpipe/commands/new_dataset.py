"""``kdpipe new dataset``: a card for a folder, with the reasons of its values as comments.

It stands above `kdpipe.data`, whose look at the folder it writes down.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kdpipe.atomic import write_text
from kdpipe.cards import BUILTIN_CARDS, Card
from kdpipe.data.folders.inspection import Inspection, inspect_folder
from kdpipe.data.folders.proposal import Chosen, Proposal, propose
from kdpipe.errors import ConfigError, DataError
from kdpipe.schema import explain
from kdpipe.yaml_files import load_yaml

_WIDTH = 100


def new_dataset(folder: Path, name: str | None = None, out: Path = Path("cards")) -> str:
    """Look at a folder and write its card, ``<out>/<name>.yaml``.

    Args:
        folder: in MSD, nnU-Net raw or BIDS layout.
        name: id of the data set; None makes one of the folder's name.
        out: folder of cards, made if need be.

    Returns:
        What was found and written and what comes next, for a terminal.

    Raises:
        ConfigError: the name is none or taken, or there is no such folder.
        DataError: the folder is in none of the layouts, or its files do not fit together.
    """
    name = name or re.sub(r"[^a-z0-9]+", "_", folder.resolve().name.lower()).strip("_")
    file = _free(name, out)
    seen = inspect_folder(folder)
    chosen = propose(seen)
    text = "\n".join(_card(name, seen, chosen)) + "\n"
    _check(text, folder)
    write_text(file, text)
    return _report(name, file, folder, seen, chosen)


def _free(name: str, out: Path) -> Path:
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ConfigError(
            f"{name!r} cannot name a data set: take lower-case letters, digits and _, as in "
            "--name my_liver"
        )
    for file in (out / f"{name}.yaml", BUILTIN_CARDS / f"{name}.yaml"):
        if file.exists():
            raise ConfigError(f"{file} exists already: choose another --name, or edit it")
    return out / f"{name}.yaml"


def _check(text: str, folder: Path) -> None:
    """The card must be legal; what is not comes from the folder, such as two labels of one name."""
    try:
        Card.model_validate(load_yaml(text))
    except ValidationError as error:
        raise DataError(f"{folder}: no card can be written: {explain(error, Card)}") from None


def _card(name: str, seen: Inspection, chosen: Proposal) -> Iterator[str]:
    """Yield the lines of the card."""
    folder = seen.folder
    yield f"# Written by `kdpipe new dataset`, which read the headers of {len(seen.headers)} cases"
    yield f"# and the voxels of {len(seen.sample)}. It is yours now: every value may be changed."
    yield "schema_version: 1"
    yield f"id: {name}"
    yield f"title: {_flow(folder.title)}"
    yield _line("modality", chosen.modality)
    yield _line("channels", chosen.channels)
    if folder.citation:
        yield f"source: {{citation: {_flow([folder.citation])}}}"
    note = {"note": folder.licence} if folder.licence else {}
    licence = Chosen({"spdx": "NOASSERTION", **note}, "SPDX identifier, see spdx.org/licenses")
    yield _line("licence", licence)
    yield "access: {mode: local}"
    yield from _layout(seen, chosen)
    if seen.pictures:
        yield "has_spacing: false  # distances are scored in pixels"
    yield from _labels(seen, chosen)
    yield "splits:"
    yield _line("  default", chosen.split)
    yield "presets:"
    yield from _presets(chosen)


def _layout(seen: Inspection, chosen: Proposal) -> Iterator[str]:
    yield "layout:"
    for key, value in seen.folder.layout.items():
        yield f"  {key}: {_flow(value)}"
    if chosen.subject_pattern:
        yield _line("  subject_pattern", chosen.subject_pattern)


def _labels(seen: Inspection, chosen: Proposal) -> Iterator[str]:
    names = seen.folder.names or {i: f"label_{i}" for i in seen.present}
    ids = sorted({0, *names})
    new = {old: number for number, old in enumerate(ids)}
    yield "labels:"
    yield "  raw:" + ("" if seen.folder.names else "  # no file names them")
    for old, number in new.items():
        share = f"  # {100 * seen.voxels.get(old, 0):.3g} % of the labelled voxels" if old else ""
        yield f"    {number}: {_flow(names.get(old, 'background'))}{share}"
    if any(old != number for old, number in new.items()):
        yield _line("  remap", Chosen(new, "ids in the files -> ids above, which have no gaps"))
    if seen.folder.regions:
        regions = {name: [new[i] for i in ids] for name, ids in seen.folder.regions.items()}
        yield _line("  regions", Chosen(regions, "which overlap: one sigmoid channel each"))
        yield "  targets: regions"
    if chosen.absent.value:
        absent = [names[i] for i in chosen.absent.value]
        yield _line("  may_be_absent", Chosen("all" if seen.flat else absent, chosen.absent.why))


def _presets(chosen: Proposal) -> Iterator[str]:
    yield "  default:" + (" &volumes" if chosen.slices else "")
    for key in ("orientation", "spacing", "intensity", "crop_foreground", "patch"):
        yield _line(f"    {key}", getattr(chosen, key))
    if chosen.slices:
        yield "  slices:  # for two-dimensional networks"
        yield "    <<: *volumes"
        for key, value in chosen.slices.items():
            yield _line(f"    {key}", value)


def _line(key: str, chosen: Chosen) -> str:
    """Return `key: value` with its reason, which stands above where the line would be long."""
    line = f"{key}: {_flow(chosen.value)}"
    if not chosen.why:
        return line
    if len(line) + len(chosen.why) + 4 <= _WIDTH:
        return f"{line}  # {chosen.why}"
    indent = " " * (len(key) - len(key.lstrip())) + "# "
    reason = textwrap.fill(
        chosen.why, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    return f"{reason}\n{line}"


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    text = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=10**6)
    return text.strip()[1:-1]


def _report(name: str, file: Path, folder: Path, seen: Inspection, chosen: Proposal) -> str:
    axes = list(zip(*(header.size for header in seen.headers), strict=True))
    ends = ("x".join(str(end(axis)) for axis in axes) for end in (min, max))
    shown = " to ".join(dict.fromkeys(ends))
    structures = len(set(seen.folder.names or seen.present) - {0})
    lines = [
        f"{folder}: {len(seen.headers)} cases (layout {seen.folder.layout['kind']}) of {shown} "
        f"voxels; {', '.join(chosen.channels.value)} ({chosen.modality.value}); "
        f"{structures} structure{'s' if structures > 1 else ''}",
        *(f"note: {note}" for note in seen.notes),
    ]
    if chosen.subject_pattern:
        lines.append(f"note: patients are {chosen.subject_pattern.why}")
    use = {
        "cards": f"[{file.parent}]",
        "study": name,
        "datasets": f"[{name}]",
        "data_source": f"{{{name}: {folder}}}",
    }
    settings = " ".join(shlex.quote(f"{key}={value}") for key, value in use.items())
    lines += [
        f"Written: {file}. Read it: what was chosen, and why, stands there.",
        "Next, see what a study would run, and prepare the images, which checks every case:",
        f"  snakemake -n --config {settings}",
        f"  snakemake --cores all data --config {settings}",
        "then leave out 'data'. See docs/adding_a_dataset.md.",
    ]
    return "\n".join(lines)
