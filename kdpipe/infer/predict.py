"""Predict the test cases of a split, with the labels back on the native grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from kdpipe.atomic import atomic_folder
from kdpipe.data.store import StoredCase
from kdpipe.data.targets import Targets
from kdpipe.infer.model import load_model
from kdpipe.infer.restore import keep_case, restore_case
from kdpipe.infer.window import sliding_scores
from kdpipe.progress import ProgressReport
from kdpipe.settings import Inference


def predict_cases(
    model: Path,
    store: Path,
    cases: Sequence[str],
    settings: Inference,
    out: Path,
    device: torch.device,
    on_prepared_grid: bool = False,
) -> None:
    """Write ``<out>/<case>.nii.gz`` for every case; the folder appears when all are done.

    Args:
        model: a ``model.pt``.
        store: folder of prepared cases.
        cases: ids to predict.
        settings: overlap and windows a pass.
        out: folder to write; replaced if it exists.
        device: where the network runs.
        on_prepared_grid: also write ``<out>/prepared/<case>.nii.gz``, for the metric protocols of
            papers that score there.

    Raises:
        DataError: a case or the model cannot be read.
    """
    trained = load_model(model)
    network, targets = trained.network.to(device), Targets.of(trained.run)
    with (
        atomic_folder(out) as temporary,
        ProgressReport("predicting, case", len(cases)) as report,
    ):
        for case in cases:
            stored = StoredCase(store / case)
            scores = sliding_scores(
                network,
                torch.from_numpy(stored.image()).to(device),
                trained.patch,
                settings.overlap,
                settings.window_batch,
                stored.geometry["pad_value"],
            )
            found = scores.cpu().numpy()
            restore_case(found, stored.geometry, targets, temporary, case)
            if on_prepared_grid:
                keep_case(found, stored.geometry, targets, temporary / "prepared", case)
            report.advance(note=case)
