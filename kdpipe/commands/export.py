"""What ``kdpipe export`` runs: a trained network in other forms."""

from __future__ import annotations

import argparse
from typing import Any

from kdpipe.json_files import read_object


def run_export(given: argparse.Namespace) -> None:
    """Write a network in the forms that were asked for, each checked against it."""
    from kdpipe.data.manifest import read_manifest
    from kdpipe.data.splits.split import read_split
    from kdpipe.engine.device import keep_freed_memory
    from kdpipe.ship.export import export
    from kdpipe.ship.forms import FORMS

    keep_freed_memory()
    run: dict[str, Any] = {}
    if given.run is not None:
        run = read_object(given.run, "labels", "overlap", "forms")
    export(
        model=given.model,
        prepared=given.prepared,
        split=read_split(given.split),
        out=given.out,
        forms=given.forms or run.get("forms", FORMS),
        labels=run.get("labels"),
        overlap=run.get("overlap", 0.5),
        provenance=run.get("provenance"),
        raw=read_manifest(given.manifest) if given.manifest else (),
    )
