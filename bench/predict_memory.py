"""Peak memory of segmenting one large CT with ``kdpipe predict``, beside the promised 4 GB.

    python bench/predict_memory.py            # 512 x 512 x 700, half an hour on two cores
    python bench/predict_memory.py --slices 200 --overlap 0

The network is a small U-Net of 14 classes with a patch of 96 voxels a side. Each prediction runs in
a process of its own, whose largest resident memory (VmHWM) is what is printed: Python, torch and
all else included.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch
from preparation_memory import smooth_ct

from kdpipe.infer.model import save_model
from kdpipe.nets.base import build_network

LIMIT_GB = 4.0
CLASSES = 14
PARAMS = {"channels": [16, 32, 64, 128], "strides": [2, 2, 2]}
WINDOW = {"kind": "window", "low": -175, "high": 250}
PRESETS: dict[str, dict[str, Any]] = {
    "1.5 mm": {"spacing": (1.5, 1.5, 1.5), "intensity": WINDOW},
    "1.5 mm, z-score": {"spacing": (1.5, 1.5, 1.5), "intensity": {"kind": "zscore"}},
    "native grid": {"spacing": None, "intensity": WINDOW},
}
PROGRAM = """
import sys
from kdpipe.cli import main
code = main(sys.argv[1:])
status = open("/proc/self/status").read()
print("VmHWM", status.split("VmHWM:")[1].split()[0])
raise SystemExit(code)
"""


def write_scan(file: Path, slices: int) -> None:
    """Write a CT of 0.8 x 0.8 x 1.0 mm."""
    sitk.WriteImage(smooth_ct(slices, 0.8), str(file), True)


def write_model(file: Path, preset: dict[str, Any]) -> None:
    """Write a network that was not trained; its labels are noise, the dearest case to restore."""
    torch.manual_seed(0)
    network = build_network("unet_tiny", PARAMS, 1, CLASSES)
    run = {
        "network": {
            "name": "unet_tiny",
            "params": PARAMS,
            "in_channels": 1,
            "out_channels": CLASSES,
        },
        "patch": [96, 96, 96],
        "targets": {"n_labels": CLASSES, "regions": None},
    }
    names = {0: "background"} | {index: f"organ{index}" for index in range(1, CLASSES)}
    preparation = {"preset": preset, "channels": ["CT"], "labels": {"raw": names}}
    save_model(file, network.state_dict(), run, preparation)


def peak_gb(arguments: list[str]) -> float:
    """Run ``kdpipe`` with `arguments` in a process of its own; return its peak memory, GB."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return int(done.stdout.split("VmHWM")[1]) * 1024 / 1e9


def main() -> None:
    """Print one line a preset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=700)
    parser.add_argument("--overlap", default="0.5")
    parser.add_argument("--preset", action="append", choices=PRESETS, help="repeatable")
    parser.add_argument("more", nargs="*", help="after --: options of kdpipe predict")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        scan = folder / "scan.nii.gz"
        write_scan(scan, given.slices)
        for name in given.preset or PRESETS:
            write_model(folder / "model.pt", PRESETS[name])
            options = ["--model", str(folder / "model.pt"), "--out", str(folder / "out")]
            options += ["--device", "cpu", "--overlap", given.overlap, "--overwrite"]
            started = time.monotonic()
            peak = peak_gb(["predict", str(scan), *options, *given.more])
            verdict = "within" if peak <= LIMIT_GB else "OVER"
            seconds = time.monotonic() - started
            print(
                f"{name:16} {peak:5.2f} GB, {verdict} {LIMIT_GB} GB; {seconds:5.0f} s", flush=True
            )


if __name__ == "__main__":
    main()
