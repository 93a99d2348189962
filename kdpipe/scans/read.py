"""The volumes of a scan, one a channel, after the checks that the study's own images passed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import SimpleITK as sitk

from kdpipe.data.checks.integrity import as_channels, check_images, read_images, refuse
from kdpipe.data.geometry import Grid
from kdpipe.errors import DataError
from kdpipe.presets import Preparation
from kdpipe.resources import memory_of_machine
from kdpipe.scans.dicom import read_series
from kdpipe.scans.scan import Scan

_PREPARED_BYTES = 5
"""Of a voxel that is prepared: float32, and whether it is foreground."""


def read_scan(scan: Scan, channels: Sequence[str]) -> list[sitk.Image]:
    """Return 3D images on one grid, one a channel.

    Args:
        scan: its files.
        channels: names of the channels that the network takes.

    Raises:
        DataError: a file cannot be read or failed a check; names it.
    """
    if scan.wrong:
        raise DataError(f"{scan.place}: {scan.wrong}")
    if scan.dicom:
        images = as_channels([read_series(scan.files)], scan.files[:1], scan.name)
    else:
        images = read_images(scan.files, scan.name)
    if len(images) != len(channels):
        mend = "give one 4D file, or files <case>_0000, <case>_0001 and so on"
        if len(channels) == 1:  # time points, colours
            mend = "store the volume that is meant by itself, one number a voxel"
        raise DataError(
            f"{scan.place}: {len(images)} channel(s) found, the network takes {len(channels)}: "
            f"{', '.join(channels)}; {mend}"
        )
    files = scan.files[:1] if scan.dicom else scan.files
    findings = check_images(scan.name, files, images)
    if findings:
        raise refuse(findings)
    return images


def check_memory(scan: Scan, images: Sequence[sitk.Image], preset: Preparation) -> None:
    """Refuse a scan that is too large when prepared: the system would kill the whole batch for it.

    Raises:
        DataError: the prepared image alone, as numbers and as a mask, is more than the memory.
    """
    grid = Grid.of(images[0])
    size = grid.size if preset.spacing is None else grid.respaced(preset.spacing).size
    needed = _PREPARED_BYTES * len(images) * math.prod(size)
    there = memory_of_machine()
    if needed > there:
        raise DataError(
            f"{scan.place}: voxels of {_sides(grid.spacing)} mm; prepared it would be "
            f"{_sides(size)} voxels, {needed / 1e9:,.0f} GB, of {there / 1e9:,.0f} GB of memory: "
            "mend the spacing if it is wrong"
        )


def _sides(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.6g}" for value in values)


def voxels_of(scan: Scan) -> int:
    """Return how many voxels a scan has by the header of its first file; 0: it is not readable."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(scan.files[0]))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return 0
    return int(math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * len(scan.files))
