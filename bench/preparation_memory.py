"""Peak memory of preparing one large CT, as a multiple of its volume in float32.

    python bench/preparation_memory.py            # 512 x 512 x 700, about three minutes
    python bench/preparation_memory.py --slices 200

Each preparation runs in a process of its own; what the process holds before is left out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from kdpipe.data.manifest import Case
from kdpipe.data.preparation.prepare import prepare_case
from kdpipe.labels import Labels
from kdpipe.presets import Preparation

LABELS = Labels(raw={0: "background", 1: "liver", 2: "spleen"}, may_be_absent="all")
WINDOW = {"kind": "window", "low": -175, "high": 250}
PRESETS: dict[str, dict[str, Any]] = {
    "1.5 x 1.5 x 2 mm, linear": {
        "spacing": (1.5, 1.5, 2.0), "image_interpolation": "linear", "intensity": WINDOW,
    },
    "1.5 x 1.5 x 2 mm, B-spline": {"spacing": (1.5, 1.5, 2.0), "intensity": WINDOW},
    "native grid, window": {"spacing": None, "intensity": WINDOW},
    "native grid, z-score": {"spacing": None, "intensity": {"kind": "zscore"}},
}  # fmt: skip


def smooth_ct(slices: int, step: float) -> sitk.Image:
    """A smooth random CT of 512 x 512 voxels a slice, int16, `step` x `step` x 1 mm."""
    coarse = np.random.default_rng(0).normal(0, 60, (slices // 8 + 1, 64, 64)).astype(np.float32)
    noise = sitk.GetImageFromArray(coarse)
    noise.SetSpacing((8 * step, 8 * step, 8.0))
    grid = sitk.Image(512, 512, slices, sitk.sitkInt16)
    grid.SetSpacing((step, step, 1.0))
    return sitk.Resample(noise, grid, sitk.Transform(), sitk.sitkLinear, -1000, sitk.sitkInt16)


def write_scan(folder: Path, slices: int) -> Case:
    """Write a CT of 0.7 x 0.7 x 1.0 mm and a label map of large blobs."""
    scan = smooth_ct(slices, 0.7)
    label = sitk.Cast(scan > 60, sitk.sitkUInt8) + sitk.Cast(scan > 90, sitk.sitkUInt8)
    files = folder / "scan.nii.gz", folder / "label.nii.gz"
    for image, file in zip((scan, label), files, strict=True):
        sitk.WriteImage(image, str(file))
    return Case("scan", "scan", (files[0],), files[1], "0")


def peak_mb(case: Case, preset: dict[str, Any], folder: Path) -> float:
    """Prepare the case and return by how much the resident memory grew at most, MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    preparation = Preparation.model_validate({"crop_foreground": True, **preset})
    prepare_case(case, preparation, LABELS, ["CT"], folder / "cases", "0")
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Print one line a preset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=700)
    slices = parser.parse_args().slices
    context = multiprocessing.get_context("spawn")
    volume = 512 * 512 * slices * 4 / 2**20
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with context.Pool(1) as pool:
            case = pool.apply(write_scan, (folder, slices))
        for name, preset in PRESETS.items():
            with context.Pool(1) as pool:
                peak = pool.apply(peak_mb, (case, preset, folder))
            print(f"{name:28} {peak:6.0f} MB, {peak / volume:.2f} x the volume in float32")


if __name__ == "__main__":
    main()
