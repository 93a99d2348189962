"""The volumes of a scan, one a channel, after the checks that the study's own images passed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import SimpleITK as sitk

from kdpipe.data.checks.integrity import as_channels, check_images, read_images, refuse
from kdpipe.errors import DataError
from kdpipe.scans.dicom import read_series
from kdpipe.scans.scan import Scan


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
        raise DataError(
            f"{scan.place}: {len(images)} channel(s) found, the network takes {len(channels)}: "
            f"{', '.join(channels)}; give one 4D file, or files <case>_0000, <case>_0001 and so on"
        )
    files = scan.files[:1] if scan.dicom else scan.files
    findings = check_images(scan.name, files, images)
    if findings:
        raise refuse(findings)
    return images


def voxels_of(scan: Scan) -> int:
    """Return how many voxels a scan has by the header of its first file; 0: it is not readable."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(scan.files[0]))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return 0
    return int(math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * len(scan.files))
