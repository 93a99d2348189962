"""The fingerprint: ranges, intensities and class frequencies of a data set.

It describes all cases, those of the test set too; no case's preparation depends on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk

from kdpipe.data.geometry import Grid, view_of
from kdpipe.labels import Labels

PERCENTILES = (0.5, 50.0, 99.5)
SAMPLED = 5_000_000


def intensity_under(image: sitk.Image, label: sitk.Image) -> dict[str, float]:
    """Summarise the raw intensities of a channel where `label` > 0; {} if it is 0 everywhere.

    Of very large structures each n-th voxel counts, so that at most `SAMPLED` do.
    """
    values = view_of(image)[view_of(label) > 0]
    if not len(values):
        return {}
    values = values[:: -(-len(values) // SAMPLED)].astype(np.float64)
    found = {
        f"p{p:g}": float(v)
        for p, v in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)
    }
    return found | {"mean": float(values.mean()), "sd": float(values.std())}


def describe(
    geometries: list[dict[str, Any]], labels: Labels, channels: Sequence[str]
) -> dict[str, Any]:
    """Summarise all cases.

    Args:
        geometries: `geometry.json` of each prepared case.
        labels: ids and names of the classes.
        channels: names of the image channels.

    Returns:
        JSON-serialisable; shapes in voxels, spacings in mm, intensities raw, under the labels.
    """
    voxels = np.array([geometry["voxels_per_class"] for geometry in geometries])
    foreground = max(1, int(voxels[:, 1:].sum()))
    intensity = [geometry["native_intensity"] for geometry in geometries]
    return {
        "n_cases": len(geometries),
        "native_shape": _ranges([geometry["native"]["size"] for geometry in geometries]),
        "native_spacing": _ranges([geometry["native"]["spacing"] for geometry in geometries]),
        "native_orientation": dict(
            Counter(Grid.from_dict(geometry["native"]).orientation for geometry in geometries)
        ),
        "prepared_shape": _ranges([geometry["prepared"]["size"] for geometry in geometries]),
        "prepared_spacing": _ranges([geometry["prepared"]["spacing"] for geometry in geometries]),
        "foreground_intensity": {
            name: _over_cases([case[c] for case in intensity if case[c]])
            for c, name in enumerate(channels)
        },
        "classes": {
            name: {
                "n_cases": int((voxels[:, i] > 0).sum()),
                "voxels": int(voxels[:, i].sum()),
                "share_of_foreground": float(voxels[:, i].sum() / foreground),
            }
            for name, i in labels.structures.items()
        },
    }


def _over_cases(summaries: list[dict[str, float]]) -> dict[str, Any]:
    """Return the ranges of what `intensity_under` found, {} if no case has a structure."""
    keys = summaries[0] if summaries else ()
    return {key: _ranges([summary[key] for summary in summaries]) for key in keys}


def _ranges(values: Any) -> dict[str, Any]:
    """Return median, minimum and maximum over the cases (the first axis)."""
    array = np.asarray(values, np.float64)
    kinds = (("median", np.median), ("min", np.min), ("max", np.max))
    return {name: function(array, axis=0).tolist() for name, function in kinds}
