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
    counts = masks.to(torch.int8)
    for axis in range(2, masks.ndim):  # sums over 3^n voxels, axis by axis
        once, steps = counts, masks.shape[axis] - 1
        counts = once.clone()
        counts.narrow(axis, 1, steps).add_(once.narrow(axis, 0, steps))
        counts.narrow(axis, 0, steps).add_(once.narrow(axis, 1, steps))
    counts -= masks.to(torch.int8)  # a voxel is not its own neighbour
    neighbours: int = 3 ** (masks.ndim - 2) - 1
    return (counts > 0) & (counts < neighbours)


def area_weights(target: Tensor, num_classes: int, regions: bool) -> tuple[Tensor, Tensor]:
    """Return 1 / area of each voxel's class: of the foreground, and of the background.

    Args:
        target: integers ``(B, *S)``, or regions ``(B, K, *S)``.
        num_classes: with the background.
        regions: whether classes overlap; where they do, the smallest one counts.

    Returns:
        Two tensors ``(B, V)``, float32; each class that is there sums to 1 in each sample.
    """
    if regions:
        masks = (target > 0).flatten(2).float()
        foreground = (masks / masks.sum(2, keepdim=True).clamp_min(1.0)).amax(1)
    else:
        labels = target.flatten(1)
        area = labels.new_zeros(len(labels), num_classes, dtype=torch.float32)
        area.scatter_add_(1, labels, torch.ones_like(labels, dtype=torch.float32))
        foreground = (1.0 / area.clamp_min(1.0)).gather(1, labels) * (labels > 0)
    outside = (foreground == 0).float()
    return foreground, outside / outside.sum(1, keepdim=True).clamp_min(1.0)
