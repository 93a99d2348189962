"""Sliding-window scores of a whole volume."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.inference_mode()
def sliding_scores(
    network: nn.Module,
    image: Tensor,
    patch: Sequence[int],
    overlap: float,
    window_batch: int = 4,
    pad_value: float = 0.0,
) -> Tensor:
    """Return logits ``(K, *S)`` in float32, blended with Gaussian weights, on the image's device.

    Args:
        network: maps ``(B, C, *patch)`` to logits ``(B, K, *patch)``.
        image: ``(C, *S)``; where a side is smaller than the patch it is padded.
        patch: window size in voxels; with one side less than `image` has axes, the slices along
            the last axis are predicted one by one.
        overlap: share in [0, 1) by which neighbouring windows overlap.
        window_batch: windows a forward pass.
        pad_value: what the image is padded with, as in training crops.
    """
    if len(patch) == image.dim() - 2:
        slices = image.movedim(-1, 0)
        blocks = slices.split(max(1, window_batch))  # all slices at once would need much memory
        scores = [_windows(network, b, patch, overlap, window_batch, pad_value) for b in blocks]
        return torch.cat(scores).movedim(0, -1)
    return _windows(network, image[None], patch, overlap, window_batch, pad_value)[0]


def _windows(
    network: nn.Module,
    images: Tensor,
    patch: Sequence[int],
    overlap: float,
    window_batch: int,
    pad_value: float,
) -> Tensor:
    """Return the logits ``(B, K, *S)`` of images ``(B, C, *S)``."""
    from monai.inferers.utils import sliding_window_inference

    scores = sliding_window_inference(
        images.float(),
        roi_size=tuple(patch),
        sw_batch_size=window_batch,
        predictor=network,
        overlap=overlap,
        mode="gaussian",
        cval=pad_value,
    )
    assert isinstance(scores, Tensor)
    return scores.float()
