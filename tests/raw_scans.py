"""Scans as scanners and other programs write them, and a small network to segment them with."""

from __future__ import annotations

import locale
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage

from kdpipe.infer.model import save_model
from kdpipe.nets.base import build_network

WINDOW = {"kind": "window", "low": -100.0, "high": 200.0}
NETWORK = {"channels": [4, 8, 8], "strides": [2, 2]}
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"


def write_model(
    file: Path,
    patch: Sequence[int] = (16, 16, 16),
    channels: Sequence[str] = ("CT",),
    classes: int = 3,
    regions: Sequence[Sequence[int]] | None = None,
    **preset: Any,
) -> Path:
    """Write the model.pt of a network that was not trained: its labels are a colourful mixture."""
    torch.manual_seed(0)
    outputs = len(regions) if regions else classes
    network = build_network("unet_tiny", NETWORK, len(channels), outputs, len(patch))
    run = {
        "network": {
            "name": "unet_tiny",
            "params": NETWORK,
            "in_channels": len(channels),
            "out_channels": outputs,
        },
        "patch": list(patch),
        "targets": {"n_labels": classes, "regions": regions},
    }
    preparation = {
        "preset": {"intensity": WINDOW} | preset,
        "channels": list(channels),
        "labels": {"raw": {0: "background"} | {i: f"organ{i}" for i in range(1, classes)}},
    }
    save_model(file, network.state_dict(), run, preparation)
    return file


def volume(seed: int = 0, size: Sequence[int] = (24, 20, 12), oblique: bool = True) -> sitk.Image:
    """Return smooth noise of HU-like whole numbers, int16, of voxels with three sizes."""
    noise = np.random.default_rng(seed).normal(size=tuple(reversed(size)))
    smooth = ndimage.gaussian_filter(noise, 2)
    image = sitk.GetImageFromArray((smooth / smooth.std() * 120 + 40).astype(np.int16))
    image.SetSpacing((1.1, 0.9, 2.5))
    image.SetOrigin((-31.5, 12.25, 80.0))
    if oblique:
        turn = sitk.Euler3DTransform()
        turn.SetRotation(0.1, -0.2, 0.15)
        image.SetDirection(turn.GetMatrix())
    return image


def write_series(
    image: sitk.Image,
    folder: Path,
    uid: str = "1.2.3",
    number: int = 1,
    rescale: tuple[float, float] = (1, -1024),
    tags: Mapping[int, Mapping[str, str]] | None = None,
) -> list[Path]:
    """Write a volume as a DICOM series, a file a slice; names of files are in no order of place.

    Args:
        image: of whole numbers.
        folder: for the files.
        uid: of the series.
        number: of the series.
        rescale: slope and intercept of what is stored.
        tags: slice -> tags that differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = np.reshape(image.GetDirection(), (3, 3))
    files = []
    for index in range(image.GetDepth()):
        part = image[:, :, index]
        place = image.TransformIndexToPhysicalPoint((0, 0, index))
        values = {
            "0008|0016": CT_CLASS,
            "0008|0018": f"{uid}.{index + 1}",
            "0008|0060": "CT",
            "0020|000d": "1.2",
            "0020|000e": uid,
            "0020|0011": str(number),
            "0020|0032": "\\".join(f"{value:.10g}" for value in place),
            "0020|0037": "\\".join(f"{value:.14g}" for value in direction[:, :2].T.ravel()),
            "0028|1052": str(rescale[1]),
            "0028|1053": str(rescale[0]),
        }
        for tag, value in (values | dict((tags or {}).get(index, {}))).items():
            part.SetMetaData(tag, value)
        files.append(folder / f"{(index * 7919) % image.GetDepth():04d}.dcm")
        writer.SetFileName(str(files[-1]))
        before = locale.setlocale(locale.LC_ALL)
        writer.Execute(part)
        locale.setlocale(locale.LC_ALL, before)  # GDCM leaves "C", whose text files are ASCII
    return files
