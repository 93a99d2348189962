"""Segment a batch of scans, one after the other; one that fails stops no other."""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from kdpipe.atomic import atomic_path
from kdpipe.data.geometry import Grid, to_array, to_image, view_of
from kdpipe.disk import DiskError
from kdpipe.engine.device import keep_freed_memory, return_freed_memory
from kdpipe.errors import ConfigError, KdpipeError
from kdpipe.images.files import write_image
from kdpipe.infer.description import Description
from kdpipe.infer.segment import segment
from kdpipe.infer.window import Network
from kdpipe.progress import ProgressReport
from kdpipe.scans.components import Cleanup, keep_largest
from kdpipe.scans.read import check_memory, read_scan, voxels_of
from kdpipe.scans.report import Report
from kdpipe.scans.scan import Scan

log = logging.getLogger(__name__)
SUFFIXES = (".nii.gz", ".nrrd", ".mha")
LARGE_SCAN = 10**8
"""Voxels of a scan beside which freed memory is returned at once, though that takes time."""


@dataclass(frozen=True)
class Segmenter:
    """A network and how it is used.

    Attributes:
        network: maps windows ``(B, C, *patch)`` on `device` to logits ``(B, K, *patch)``.
        description: of the network.
        device: where windows are put.
        overlap: of windows, a share in [0, 1).
        window_batch: windows a forward pass.
        frugal: see `kdpipe.infer.segment.segment`.
        cleanup: structures of which the largest component stays.
    """

    network: Network
    description: Description
    device: torch.device
    overlap: float
    window_batch: int
    frugal: bool = False
    cleanup: Sequence[Cleanup] = ()

    def labels_of(self, scan: Scan) -> sitk.Image:
        """Return the label map of a scan on its native grid, uint8.

        Raises:
            DataError: it cannot be read, failed a check, or cannot be prepared.
        """
        images = read_scan(scan, self.description.channels)
        check_memory(scan, images, self.description.preparation)
        labels = segment(
            images,
            self.network,
            self.description,
            self.device,
            self.overlap,
            self.window_batch,
            self.frugal,
        )
        if not self.cleanup:
            return labels
        grid, voxels = Grid.of(labels), to_array(labels)
        del labels
        keep_largest(voxels.T, self.cleanup)  # as it lies in memory
        return to_image(voxels, grid)


def use_threads(count: int) -> None:
    """Let torch and SimpleITK use so many threads; what is loaded later asks torch."""
    torch.set_num_threads(count)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(count)


def out_files(scans: Sequence[Scan], out: Path, suffix: str) -> dict[str, Path]:
    """Return the label map that each scan gets; none is a file that is read.

    Raises:
        ConfigError: one is.
    """
    files = {scan.name: out / f"{scan.name}{suffix}" for scan in scans}
    inputs = {file.resolve() for scan in scans for file in scan.files}
    if lost := [str(file) for file in files.values() if file.resolve() in inputs]:
        raise ConfigError(
            f"label maps would replace the scans themselves: {', '.join(lost)}; name another --out"
        )
    return files


def segment_scans(
    scans: Sequence[Scan], segmenter: Segmenter, out: Mapping[str, Path], report: Report
) -> None:
    """Write the label map of each scan, and the report.

    Args:
        scans: those that are to be done.
        segmenter: for all of them.
        out: scan -> file to write, as a whole or not at all.
        report: of the batch, not entered yet. It names the scans that failed.

    Raises:
        DiskError: the disk does not take a file; no other would be taken.
    """
    if max(map(voxels_of, scans), default=0) < LARGE_SCAN:
        keep_freed_memory()
    gc.freeze()  # what is there already need not be looked through for cycles after each image
    try:
        with report, ProgressReport("segmenting, scan", len(scans)) as progress:
            for scan in scans:
                report.begin(scan)
                started = time.monotonic()
                try:
                    found = _segment_to(out[scan.name], scan, segmenter)
                except DiskError:
                    raise
                except Exception as error:  # of SimpleITK, torch and scans anything may come
                    reason = _reason(error)
                    log.warning("scan %r failed: %s", scan.name, reason)
                    report.fail(scan, time.monotonic() - started, reason)
                else:
                    report.finish(scan, time.monotonic() - started, found)
                progress.advance(note=scan.name)
                return_freed_memory()
    finally:
        gc.unfreeze()


def _reason(error: Exception) -> str:
    if isinstance(error, KdpipeError):
        return str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "not enough memory; lower --window-batch, or use --device cpu where that has more"
    return f"{type(error).__name__}: {error}"


def _segment_to(file: Path, scan: Scan, segmenter: Segmenter) -> dict[str, Any]:
    labels = segmenter.labels_of(scan)
    found = _facts(labels, segmenter.description.labels)
    with atomic_path(file) as temporary:
        write_image(labels, temporary)
    return found


def _facts(labels: sitk.Image, names: Mapping[int, str]) -> dict[str, Any]:
    """Return what the report says of a label map."""
    grid = Grid.of(labels)
    counts = np.zeros(256, np.int64)
    for plane in view_of(labels).T:
        counts += np.bincount(plane.ravel(), minlength=256)
    voxel_ml = math.prod(grid.spacing) / 1000
    return {
        "native": {
            "shape": list(grid.size),
            "spacing_mm": list(grid.spacing),
            "orientation": grid.orientation,
        },
        "structures": {
            name: {"voxels": int(counts[index]), "ml": round(int(counts[index]) * voxel_ml, 6)}
            for index, name in sorted(names.items())
            if index != 0
        },
    }
