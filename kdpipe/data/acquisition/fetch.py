"""Get a data set's files and list its cases: generated, downloaded, or in the user's folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from kdpipe.atomic import atomic_folder, write_json
from kdpipe.data.acquisition.acquire import acquire
from kdpipe.data.acquisition.canonical import canonical_labels
from kdpipe.data.folders.layout import index
from kdpipe.data.manifest import write_manifest
from kdpipe.data.phantoms import abdomen, brain
from kdpipe.errors import ConfigError, DataError
from kdpipe.labels import Labels
from kdpipe.layouts import Layout
from kdpipe.provenance import code_digest, digest
from kdpipe.sources import Access, Generator

log = logging.getLogger(__name__)
MARKER = "generated.json"
GENERATORS = {"ct_abdomen": abdomen, "brain_tumour": brain}


def fetch(
    run: Mapping[str, Any], files: Path, archives: Path, labels: Path, manifest: Path
) -> None:
    """Make or find the files of a data set and write the manifest of its cases.

    Args:
        run: `id`, `channels`, `access`, `generator` and `layout` of the card; `files` to have,
            `accept_checksum`; `ids`, how label ids are stored; `source` (the user's folder or
            None); and `structures` (name -> id) where names matter.
        files: folder for what is generated or unpacked; left as it is if it holds that already.
        archives: folder for what is downloaded, or was put there by a person.
        labels: folder for label maps, if they have to be made of masks, colours or other ids.
        manifest: TSV to write, see `kdpipe.data.manifest.write_manifest`.

    Raises:
        ConfigError: if a generated data set is given a folder, or the folder does not exist.
        DataError: if a file cannot be had or is not the right one, or the folder lacks files.
    """
    access, source = Access.model_validate(run["access"]), run["source"]
    if access.mode == "generate":
        if source is not None:
            raise ConfigError(
                f"data_source: {run['id']!r} is generated and takes no folder; take the entry "
                "out, or write a card of your own for the files"
            )
        names = {index: name for name, index in run["structures"].items()}
        structures = Labels(raw={0: "background", **names})
        generator: Generator = TypeAdapter(Generator).validate_python(run["generator"])
        _generate(files, generator, structures)
        source = files
    elif source is None:
        source = acquire(run, archives, files)
    cases = index(
        Path(source).expanduser(), Layout.model_validate(run["layout"]), len(run["channels"])
    )
    cases = canonical_labels(cases, _stored_labels(run), labels)
    write_manifest(manifest, cases)
    log.info("%s: %d cases in %s", run["id"], len(cases), source)


def _stored_labels(run: Mapping[str, Any]) -> Labels:
    """Return how label ids are stored; their names only where masks need them."""
    ids = dict(run["ids"])
    names = {index: f"label_{index}" for index in range(1, ids.pop("n_labels"))}
    names |= {index: name for name, index in run.get("structures", {}).items()}
    return Labels(raw={0: "background", **names}, **ids)


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
    with atomic_folder(raw) as fresh:
        module.generate(fresh, generator, labels)
        write_json(fresh / MARKER, {"digest": wanted})


def _marker(raw: Path) -> str | None:
    """Return the digest of what was generated into `raw`; None if nothing was."""
    try:
        return str(json.loads((raw / MARKER).read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, KeyError):
        return None
