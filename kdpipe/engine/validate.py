"""The score that selects a checkpoint: mean Dice on the validation cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kdpipe.data.store import StoredCase
from kdpipe.data.targets import Targets
from kdpipe.engine import parallel
from kdpipe.engine.device import autocast
from kdpipe.infer.window import sliding_labels, sliding_slabs
from kdpipe.metrics.overlap import dice


class Validator:
    """Mean Dice over structures and cases, on the prepared grid, without test-set access.

    Args:
        store: folder of prepared cases.
        cases: validation case ids.
        targets: what the channels stand for.
        patch: window size in voxels.
        overlap: of neighbouring windows.
        dtype: autocast type, None for full precision.
    """

    def __init__(
        self,
        store: Path,
        cases: Sequence[str],
        targets: Targets,
        patch: Sequence[int],
        overlap: float,
        dtype: torch.dtype | None,
    ):
        self.cases = [StoredCase(store / case) for case in cases]
        self.targets = targets
        self.patch, self.overlap, self.dtype = patch, overlap, dtype

    def __call__(self, network: nn.Module) -> float:
        """Return the mean Dice in [0, 1]; a structure absent on both sides is left out."""
        training = network.training
        network.eval()
        mine = [
            self._score(network, case) for case in self.cases[parallel.rank() :: parallel.world()]
        ]
        values = [value for scores in parallel.in_turn(mine) for value in scores]
        network.train(training)
        return float(np.nanmean(values)) if not np.all(np.isnan(values)) else 0.0

    def _score(self, network: nn.Module, case: StoredCase) -> list[float]:
        # a frozen TorchScript program has no parameters, and runs where it was saved
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        image, label = case.whole()
        with autocast(device, self.dtype):
            tensor = torch.from_numpy(image).to(device)
            pad_value = case.geometry["pad_value"]
            slabs = sliding_slabs(network, tensor, self.patch, self.overlap, pad_value=pad_value)
            predicted = sliding_labels(slabs, label.shape, self.targets)
        return list(dice(label, predicted, self.targets.structures).values())
