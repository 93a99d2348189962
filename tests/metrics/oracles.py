"""The packages that the metrics are compared with, called the same way; only tests import them."""

from __future__ import annotations

import numpy as np
import torch
from medpy.metric import binary
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

# The package still uses names that numpy 2 took away.
for name, value in (("Inf", np.inf), ("NaN", np.nan)):
    if not hasattr(np, name):
        setattr(np, name, value)

import surface_distance  # noqa: E402

Masks = tuple[np.ndarray, np.ndarray]


def medpy_scores(reference: np.ndarray, prediction: np.ndarray, spacing: tuple) -> list[float]:
    """Dice, Jaccard, HD, HD95 and ASSD as medpy computes them."""
    masks, options = (prediction, reference), {"voxelspacing": spacing, "connectivity": 1}
    overlaps = [binary.dc(*masks), binary.jc(*masks)]
    # Its two directed lists, once: hd, hd95 and assd are these lines and nothing more.
    directed = binary.__dict__["__surface_distances"]
    there, back = directed(*masks, *options.values()), directed(*masks[::-1], *options.values())
    pooled = np.hstack((there, back))
    return [*overlaps, max(there.max(), back.max()), np.percentile(pooled, 95), pooled.mean()]


def monai_scores(
    reference: np.ndarray, prediction: np.ndarray, spacing: tuple, tolerance: float
) -> list[float]:
    """HD95, HD100 and normalised surface dice as MONAI computes them."""
    y_pred, y = (torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference))
    options = {"include_background": True, "spacing": list(spacing)}
    return [
        compute_hausdorff_distance(y_pred, y, percentile=95, **options).item(),
        compute_hausdorff_distance(y_pred, y, **options).item(),
        compute_surface_dice(y_pred, y, [tolerance], **options).item(),
    ]


def deepmind_distances(reference: np.ndarray, prediction: np.ndarray, spacing: tuple) -> dict:
    """`compute_surface_distances`; see `surface_distance.metrics` for what is made from it."""
    return surface_distance.compute_surface_distances(reference, prediction, spacing)


def deepmind_scores(distances: dict, tolerance: float) -> list[float]:
    """Robust HD95, surface dice and the two average distances."""
    return [
        surface_distance.compute_robust_hausdorff(distances, 95),
        surface_distance.compute_surface_dice_at_tolerance(distances, tolerance),
        *surface_distance.compute_average_surface_distance(distances),
    ]
