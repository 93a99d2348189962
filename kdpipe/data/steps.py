"""How finely the prepared store keeps intensities, for it and for scans that never see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

STEPS = 1024
"""In a unit of an image that is stored in whole numbers; a power of two, so reading is exact."""


def is_stepped(geometry: Mapping[str, Any]) -> bool:
    """Say whether a prepared image is of order one, so that it is stored in whole steps."""
    return all(done["kind"] != "unchanged" for done in geometry["intensity"])


def round_as_stored(image: np.ndarray, geometry: Mapping[str, Any]) -> None:
    """Round an image (C, X, Y, Z) float32 in place to what reading it from the store would give.

    Networks are trained, and test cases predicted, from the store; a new scan has to look alike.
    """
    fits = fits_steps(image, is_stepped(geometry))
    for plane in (plane for channel in image for plane in channel):
        if fits:
            np.rint(plane * np.float32(STEPS), out=plane)
            plane *= np.float32(1 / STEPS)
        else:
            plane[:] = plane.astype(np.float16)


def fits_steps(image: np.ndarray, stepped: bool) -> bool:
    """Say whether an image that is of order one is also small enough for int16."""
    largest = (np.iinfo(np.int16).max - 100) / STEPS
    return stepped and max(-float(image.min()), float(image.max())) <= largest
