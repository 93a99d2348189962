"""Where the classes are: masks, their boundaries, and features averaged within them.

A target is integers ``(B, *S)`` for classes or 0 and 1 in ``(B, K, *S)`` for regions; a mask is
boolean ``(B, K, *S)`` for both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def class_masks(target: Tensor, num_classes: int, regions: bool) -> Tensor:
    """Return boolean masks ``(B, K, *S)``, one a class (background first) or region."""
    if regions:
        return target > 0
    index = torch.arange(num_classes, device=target.device)
    return target.unsqueeze(1) == index.view(1, -1, *[1] * (target.ndim - 1))


def resize_target(target: Tensor, size: Sequence[int], regions: bool) -> Tensor:
    """Return the target on the grid `size`, nearest voxel."""
    channels = target if regions else target.unsqueeze(1)
    if tuple(channels.shape[2:]) != tuple(size):
        channels = F.interpolate(channels.float(), size=tuple(size), mode="nearest")
    resized = channels.to(target.dtype)
    return resized if regions else resized.squeeze(1)


def class_centres(feature: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean feature within each mask, and which masks hold anything.

    Args:
        feature: ``(B, c, *S)``.
        masks: boolean, or soft weights >= 0, ``(B, K, *S)`` on the same grid.

    Returns:
        Centres ``(B, K, c)``, 0 where a mask is empty, and ``(B, K)``, True where it is not.
    """
    weights = masks.to(feature.dtype).flatten(2)
    volume = weights.sum(2)
    sums = weights @ feature.flatten(2).transpose(1, 2)
    return sums / volume.clamp_min(1e-6).unsqueeze(2), volume > 0


def boundary(masks: Tensor) -> Tensor:
    """Return the two-sided boundary band of each mask, boolean ``(B, K, *S)``.

    A voxel is on it if some of its 26 neighbours (8 in 2D) are inside the mask and some are not.
    What lies outside the patch is not inside, so a class that touches the border of the patch has
    a boundary there; a single voxel is not on its own boundary. The definition is that of
    ACF-BCKD's code.
    """
    dims = masks.ndim - 2
    around = 3**dims - 1
    ones = torch.ones(1, 1, *[3] * dims, dtype=torch.float32, device=masks.device)
    ones[(0, 0, *[1] * dims)] = 0.0
    convolve = F.conv3d if dims == 3 else F.conv2d
    planes = masks.flatten(0, 1).unsqueeze(1).float()
    inside = convolve(planes, ones, padding=1).squeeze(1).unflatten(0, masks.shape[:2])
    return (inside > 0.5) & (inside < around - 0.5)
