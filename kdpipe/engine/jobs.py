"""What a training reads and writes, whether the network is trained here or taken over."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from kdpipe.atomic import atomic_path, write_json
from kdpipe.engine.state import weights_digest
from kdpipe.infer.model import save_model
from kdpipe.provenance import environment

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What a training job reads and writes.

    `store` holds the prepared cases, `state` the checkpoint; `model` is ``model.pt`` and two files
    are written beside it: ``model.json`` (cost, selection, provenance) and ``train.csv``.
    """

    run: dict[str, Any]
    preparation: dict[str, Any]
    split: dict[str, Any]
    store: Path
    state: Path
    model: Path
    teacher: Path | None = None
    code: str = ""
    checkpoint_seconds: float = 60.0
    loaders: int = 0


def write_results(
    job: Job,
    weights: Mapping[str, Tensor],
    rows: Sequence[Mapping[str, float]],
    best_epoch: int,
    dice: float,
) -> None:
    """Write ``train.csv``, ``model.json`` and, last, ``model.pt``.

    Args:
        job: says where to.
        weights: of the best epoch.
        rows: one an epoch, with its ``seconds``.
        best_epoch: the epoch that was selected.
        dice: its mean validation Dice in [0, 1].
    """
    facts = {
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "best_epoch": best_epoch,
        "validation_dice": dice,
        "weights_sha256": weights_digest(weights),
        "split_sha256": job.split["sha256"],
        "selects_on_test": job.split.get("selects_on_test", False),
        "code": job.code,
        "environment": environment(),
    }
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_path(job.model.with_name("train.csv")) as temporary:
        pd.DataFrame(rows, columns=columns).to_csv(temporary, index=False)
    write_json(job.model.with_name("model.json"), facts)
    save_model(job.model, weights, job.run, job.preparation)
    log.info("best validation Dice %.4f after epoch %d", dice, best_epoch)
