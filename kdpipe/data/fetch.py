"""Get a data set's files here: generate them, or index a folder that somebody put in place.

Nothing is downloaded. Archives are large, licences ask to be accepted by a person, and compute
nodes often have no network; so an error tells what to fetch, from where, and where to name it.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from kdpipe.atomic import write_json
from kdpipe.data import phantom, phantom_brain
from kdpipe.data.layout import index, write_manifest
from kdpipe.errors import ConfigError, DataError
from kdpipe.labels import Labels
from kdpipe.layouts import Layout
from kdpipe.provenance import code_digest, digest
from kdpipe.sources import Access, Archive, Generator

log = logging.getLogger(__name__)
MARKER = "generated.json"
GENERATORS = {"ct_abdomen": phantom, "brain_tumour": phantom_brain}


def fetch(run: Mapping[str, Any], raw: Path, manifest: Path) -> None:
    """Make or find the files of a data set and write the manifest of its cases.

    Args:
        run: `id`, `channels`, `access`, `generator`, `files` and `layout` of the card, `source`
            (the user's folder or None), and `structures` (name -> id) if it has a generator.
        raw: folder for generated files; left as it is if it holds them already.
        manifest: TSV to write, see `kdpipe.data.layout.write_manifest`.

    Raises:
        ConfigError: if a generated data set is given a folder, or the folder does not exist.
        DataError: if a folder is needed and none is given, or it lacks files.
    """
    access, source = Access.model_validate(run["access"]), run["source"]
    if access.mode == "generate":
        if source is not None:
            raise ConfigError(
                f"data_source: {run['id']!r} is generated and takes no folder; take the entry "
                "out, or write a card of your own for the files"
            )
        names = {index: name for name, index in run["structures"].items()}
        labels = Labels(raw={0: "background", **names})
        generator: Generator = TypeAdapter(Generator).validate_python(run["generator"])
        _generate(raw, generator, labels)
        source = raw
    elif source is None:
        files = [Archive.model_validate(file) for file in run["files"]]
        raise DataError(_instructions(run["id"], access, files))
    cases = index(
        Path(source).expanduser(), Layout.model_validate(run["layout"]), len(run["channels"])
    )
    write_manifest(manifest, cases)
    log.info("%s: %d cases in %s", run["id"], len(cases), source)


def _generate(raw: Path, generator: Generator, labels: Labels) -> None:
    """Generate phantoms into `raw`, unless it holds exactly these; `raw` is never half full."""
    module = GENERATORS[generator.kind]
    wanted = digest(
        generator.model_dump(mode="json"), labels.structures, code_digest(module.__name__)
    )
    if _marker(raw) == wanted:
        log.info("%s is up to date", raw)
        return
    if raw.exists() and _marker(raw) is None and any(raw.iterdir()):
        raise DataError(f"{raw}: holds files that were not generated; move them elsewhere")
    raw.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=raw.parent) as temporary:
        fresh = Path(temporary) / "fresh"
        fresh.mkdir()
        module.generate(fresh, generator, labels)
        write_json(fresh / MARKER, {"digest": wanted})
        if raw.exists():
            raw.rename(Path(temporary) / "old")
        fresh.rename(raw)


def _marker(raw: Path) -> str | None:
    """Return the digest of what was generated into `raw`; None if nothing was."""
    try:
        return str(json.loads((raw / MARKER).read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, KeyError):
        return None


def _instructions(name: str, access: Access, files: list[Archive]) -> str:
    """Return what a person has to do to get a data set that is not here."""
    lines = [f"data set {name!r}: no folder with its files is given. To get it:"]
    lines += [f"  {number}. {step}" for number, step in enumerate(access.steps, start=1)]
    for file in files:
        size = f" ({file.bytes:,} bytes)" if file.bytes else ""
        lines.append(f"  file {file.name}{size}")
        lines += [f"    {url}" for url in file.urls]
        for kind in ("md5", "sha256"):
            if value := getattr(file, kind):
                status = file.checksum_status.replace("_", " ")
                lines.append(f"    {kind} {value} (checksum: {status})")
    lines += [
        "Then name the unpacked folder, the one that holds dataset.json, on the command line:",
        f"  snakemake --config 'data_source={{{name}: /path/to/folder}}'",
        "or in config.yaml:",
        "  data_source:",
        f"    {name}: /path/to/folder",
    ]
    return "\n".join(lines)
