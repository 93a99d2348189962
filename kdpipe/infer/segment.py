"""From a raw scan to its label map on the native grid: prepare, slide, restore, in one process.

It does what the stages `prepare` and `predict` of a study do, to the bit, without their store. No
more than one prepared volume and a slab of scores is in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import SimpleITK as sitk
import torch

from kdpipe.data.preparation.preprocess import prepare_images
from kdpipe.data.steps import round_as_stored
from kdpipe.infer.description import Description
from kdpipe.infer.restore import Restorer
from kdpipe.infer.window import Network, sliding_slabs

LARGE_SLAB = 10**9
"""Bytes of scores beside which the outputs of several windows are too much memory."""


def segment(
    images: list[sitk.Image],
    network: Network,
    description: Description,
    device: torch.device,
    overlap: float | None = None,
    window_batch: int = 4,
    frugal: bool = False,
) -> sitk.Image:
    """Return the label map of a scan on its own grid, uint8.

    Args:
        images: C volumes on one grid, in the order of the description's channels; the list is
            emptied as soon as they are not needed.
        network: maps windows ``(B, C, *patch)`` on `device` to logits ``(B, K, *patch)``.
        description: of the network.
        device: where windows are put.
        overlap: of windows; None takes the description's.
        window_batch: windows a forward pass.
        frugal: one window a pass where the slab of scores takes more than `LARGE_SLAB` by itself;
            logits then differ by rounding.

    Raises:
        DataError: the scan cannot be prepared, or the scores are not finite.
    """
    # image and scores are freed when it returns, before the label map is turned and copied
    return _scored(images, network, description, device, overlap, window_batch, frugal).image()


def _scored(
    images: list[sitk.Image],
    network: Network,
    description: Description,
    device: torch.device,
    overlap: float | None,
    window_batch: int,
    frugal: bool,
) -> Restorer:
    image, geometry = prepare_images(images, description.preparation, release=True)
    round_as_stored(image, geometry)
    restorer = Restorer(geometry, description.decoded, torch.get_num_threads())
    if frugal and _slab_bytes(image.shape[1:], description) > LARGE_SLAB:
        window_batch = 1
    slabs = sliding_slabs(
        network,
        torch.from_numpy(image).to(device),
        description.patch,
        description.overlap if overlap is None else overlap,
        window_batch,
        geometry["pad_value"],
    )
    for slab in slabs:
        restorer.take(slab.axis, slab.start, slab.scores.cpu().numpy())
    return restorer


def _slab_bytes(size: Sequence[int], description: Description) -> int:
    """Return what the scores take that windows of a volume still reach; slices need little."""
    if len(description.patch) < len(size):
        return 0
    planes = min(size[0], description.patch[0] + 1)
    return 4 * int(description.network["out_channels"]) * planes * size[1] * size[2]
