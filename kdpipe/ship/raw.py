"""Whether a form that prepares scans by itself, a bundle, labels a raw scan as kdpipe does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kdpipe.data.checks.integrity import read_images
from kdpipe.data.manifest import Case
from kdpipe.errors import ConfigError, DataError
from kdpipe.infer.description import Description
from kdpipe.infer.segment import segment
from kdpipe.infer.window import Network
from kdpipe.ship.forms import Form
from kdpipe.ship.parity import LABELS

log = logging.getLogger(__name__)
CASES = 1
"""MONAI's program takes ten seconds to start, and a whole scan is worth many windows."""


def check_raw(
    form: Form, path: Path, network: Network, description: Description, cases: Sequence[Case]
) -> dict[str, Any]:
    """Return what the form does with raw scans; empty for a form that takes windows alone.

    Args:
        form: that was written.
        path: what it wrote.
        network: torch's, on the CPU.
        description: of the network.
        cases: with their raw files; the first is segmented.

    Returns:
        ``raw``: the `cases` and the share of `same_labels`, or why it was `skipped`.

    Raises:
        DataError: the labels are others, or the form's program fails.
    """
    run = getattr(form, "check_raw", None)
    if run is None:
        return {}
    chosen = list(cases)[:CASES]
    if not chosen:
        return {"raw": {"skipped": "no raw files were given (--manifest)"}}
    files = {case.case: case.images for case in chosen}
    expected = {
        name: segment(read_images(images, name), network, description, torch.device("cpu"))
        for name, images in files.items()
    }
    try:
        same = run(path, files, expected)
    except ConfigError as error:
        log.warning("export: %s was not run on raw scans: %s", path.name, error)
        return {"raw": {"skipped": str(error)}}
    if same < LABELS:
        raise DataError(
            f"{path.name}: of the raw scan of {', '.join(files)} it gives {same:.6f} of kdpipe's "
            f"labels, at least {LABELS:g} must be the same; nothing was written"
        )
    return {"raw": {"cases": sorted(files), "same_labels": same}}
