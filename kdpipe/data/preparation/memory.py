"""How much memory the preparation of a case takes, and so how many can be prepared at a time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from kdpipe.presets import Preparation
from kdpipe.resources import memory_of_machine

if TYPE_CHECKING:
    from kdpipe.data.manifest import Case

log = logging.getLogger(__name__)

WORKER_MB = 200
"""Memory of a worker before it reads anything: Python, numpy, SimpleITK."""


def affordable_workers(
    cases: Sequence[Case], preset: Preparation, workers: int, memory_mb: int | None
) -> int:
    """Return how many workers fit into the memory if each holds the largest case; at least 1."""
    workers = max(1, min(workers, len(cases)))
    if memory_mb is None:
        memory_mb = memory_of_machine() >> 20
    largest = max((estimated_mb(case, preset) for case in cases), default=0)
    fitting = max(1, min(workers, int(memory_mb // (WORKER_MB + largest))))
    if fitting < workers:
        log.info(
            "%d workers instead of %d: a case may need %d MB, %d MB are there in all",
            fitting, workers, WORKER_MB + largest, memory_mb,
        )  # fmt: skip
    return fitting


def estimated_mb(case: Case, preset: Preparation) -> int:
    """Estimate from the headers the memory that preparing a case takes, MB; 0 if unreadable.

    Counted a voxel: the raw channels twice, as integers or floats (8 bytes), label map and mask
    (2); on the prepared grid the channels as float32 and as stored (6), labels and masks (2).
    Resampling works in blocks and adds little; `bench/preparation_memory.py` measures.
    """
    native = prepared = 0.0
    for file in case.images:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            return 0
        size, spacing = reader.GetSize(), reader.GetSpacing()
        voxels = float(np.prod(size)) * reader.GetNumberOfComponents()
        native += voxels
        steps = zip(preset.spacing or spacing, spacing, strict=False)
        prepared += voxels * float(np.prod([old / (new or old) for new, old in steps]))
    return int((native * 10 + prepared * 8) / 2**20)
