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
        patch: window size in voxels.
        overlap: share in [0, 1) by which neighbouring windows overlap.
        window_batch: windows a forward pass.
        pad_value: what the image is padded with, as in training crops.
    """
    from monai.inferers.utils import sliding_window_inference

    scores = sliding_window_inference(
        image[None].float(),
        roi_size=tuple(patch),
        sw_batch_size=window_batch,
        predictor=network,
        overlap=overlap,
        mode="gaussian",
        cval=pad_value,
    )
    assert isinstance(scores, Tensor)
    return scores[0].float()
