"""Predict the test cases of a split, with the labels back on the native grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from kdpipe.atomic import atomic_folder, check_replaceable
from kdpipe.data.store import StoredCase
from kdpipe.data.targets import Targets
from kdpipe.errors import DataError
from kdpipe.infer.engine import checked_engine
from kdpipe.infer.model import load_model
from kdpipe.infer.restore import Restorer, write_labels
from kdpipe.infer.window import Slab, sliding_slabs
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
    checked: Sequence[str] = (),
) -> None:
    """Write ``<out>/<case>.nii.gz`` for every case; the folder appears when all are done.

    Args:
        model: a ``model.pt``.
        store: folder of prepared cases.
        cases: ids to predict.
        settings: overlap, windows a pass, engine and precision.
        out: folder to write; replaced if it exists.
        device: where the network runs.
        on_prepared_grid: also write ``<out>/prepared/<case>.nii.gz``, for the metric protocols of
            papers that score there.
        checked: ids of validation cases, that a faster engine or precision is checked with.

    Raises:
        DataError: a case or the model cannot be read, or its scores are not finite.
        ConfigError: `out` holds something else; see `kdpipe.infer.engine.checked_engine`.
    """
    check_replaceable(out, lambda names: all(map(_written, names)))
    trained = load_model(model)
    trained.network.to(device)
    targets = Targets.of(trained.run)
    engine = checked_engine(trained, settings, device, store, checked)
    with (
        atomic_folder(out) as temporary,
        ProgressReport("predicting, case", len(cases)) as report,
    ):
        for case in cases:
            stored = StoredCase(store / case)
            restorer = Restorer(stored.geometry, targets, torch.get_num_threads(), on_prepared_grid)
            slabs = sliding_slabs(
                engine.network,
                torch.from_numpy(stored.image()).to(device),
                trained.patch,
                settings.overlap,
                engine.window_batch,
                stored.geometry["pad_value"],
            )
            _restore(restorer, slabs, case)
            write_labels(restorer.image(), temporary, case)
            if on_prepared_grid:
                write_labels(restorer.prepared_image(), temporary / "prepared", case)
            report.advance(note=case)


def _written(name: str) -> bool:
    return name == "prepared" or name.endswith(".nii.gz")


def _restore(restorer: Restorer, slabs: Iterable[Slab], case: str) -> None:
    try:
        for slab in slabs:
            restorer.take(slab.axis, slab.start, slab.scores.cpu().numpy())
    except DataError as error:
        raise DataError(f"case {case!r}: {error}") from None
