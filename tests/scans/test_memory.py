"""A large scan needs memory for a few copies of itself, never for the scores of all its voxels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch
from raw_scans import volume, write_model
from torch import Tensor

from kdpipe.infer import segment
from kdpipe.infer.description import Description
from kdpipe.infer.model import load_model

CLASSES = 14
SIZE = (256, 256, 96)
PROGRAM = """
import sys
from pathlib import Path
from kdpipe.cli import main

def resident(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) * 1024

fixed, small, large, out = sys.argv[1:-3], *sys.argv[-3:]
assert main(["predict", small, *fixed, "--out", out]) == 0  # loads and compiles all that is needed
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = resident("VmRSS")
assert main(["predict", large, *fixed, "--out", out + "_large"]) == 0
print(resident("VmHWM") - before)
"""


@pytest.mark.parametrize(("limit", "together"), [(10**9, 4), (0, 1)])
def test_beside_a_large_slab_of_scores_windows_are_passed_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, together: int
) -> None:
    trained = load_model(write_model(tmp_path / "model.pt"))
    description = Description.of_run(trained.run, trained.preparation)
    sizes = []

    def network(windows: Tensor) -> Tensor:
        sizes.append(len(windows))
        return trained.network(windows)

    monkeypatch.setattr(segment, "LARGE_SLAB", limit)
    cpu = torch.device("cpu")
    segment.segment([volume(size=(32, 32, 20))], network, description, cpu, frugal=True)
    assert max(sizes) == together


@pytest.mark.slow
def test_memory_is_bounded_by_a_few_copies_of_the_scan(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.pt", (16, 64, 64), classes=CLASSES)
    coarse = volume(size=(64, 64, 24))
    voxels = SIZE[0] * SIZE[1] * SIZE[2]
    large = sitk.Expand(coarse, (4, 4, 4))
    assert large.GetSize() == SIZE
    for image, name in ((coarse, "small"), (large, "large")):
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    options = ["--model", str(model), "--device", "cpu", "--overlap", "0", "--threads", "1"]
    options += ["--window-batch", "1"]
    scans = [str(tmp_path / f"{name}.nii.gz") for name in ("small", "large")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *options, *scans, str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    grown = int(done.stdout.split()[-1])
    assert grown < 20 * voxels  # bytes; the scores of all voxels would be 56, a float copy 4
