"""What a network's channels stand for, and the ways from a label map to them and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kdpipe.data.geometry import argmax_classes
from kdpipe.labels import paint_order


class Targets:
    """Classes that exclude one another (softmax), or regions that overlap (sigmoid).

    Args:
        n_labels: label ids of the data set, background included.
        regions: label ids of each region, one a channel; None for classes.

    Attributes:
        paint: channel and label of each region, in the order in which they are painted.
    """

    def __init__(self, n_labels: int, regions: Sequence[Sequence[int]] | None = None):
        self.n_labels = n_labels
        self.regions = None if regions is None else tuple(map(tuple, regions))
        self.paint = paint_order(self.regions or ())
        inside = torch.zeros(len(self.regions or ()), n_labels, dtype=torch.int64)
        for channel, ids in enumerate(self.regions or ()):
            inside[channel, list(ids)] = 1
        self._inside = inside

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> Targets:
        """Return the targets of a training, from its ``run.json``."""
        return cls(run["targets"]["n_labels"], run["targets"]["regions"])

    @property
    def kind(self) -> Literal["classes", "regions"]:
        """``classes`` or ``regions``."""
        return "classes" if self.regions is None else "regions"

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """Channel number -> label ids, without the background: what a validation scores."""
        if self.regions is None:
            return {str(index): (index,) for index in range(1, self.n_labels)}
        return {str(channel): ids for channel, ids in enumerate(self.regions)}

    def encode(self, label: Tensor) -> Tensor:
        """Turn a label map (*S) int64 into what losses take.

        Returns:
            The label map itself for classes; for regions (R, *S) int64 of 0 and 1.
        """
        return label if self.regions is None else self._inside[:, label]

    def decode(self, scores: np.ndarray) -> np.ndarray:
        """Turn logits (K, *S) into a label map (*S) uint8.

        Of classes the largest wins, ties go to the lowest. A region is where its logit is above 0;
        regions are painted in the order of `kdpipe.labels.paint_order`.
        """
        if self.regions is None:
            return argmax_classes(scores)
        labels = np.zeros(scores.shape[1:], np.uint8)
        for channel, label in self.paint:
            labels[scores[channel] > 0] = label
        return labels

    def decode_tensor(self, scores: Tensor) -> Tensor:
        """Turn logits (K, *S) into a label map (*S) uint8 on their device, as `decode` does."""
        if self.regions is None:
            return scores.max(dim=0).indices.to(torch.uint8)
        labels = torch.zeros(scores.shape[1:], dtype=torch.uint8, device=scores.device)
        for channel, label in self.paint:
            labels[scores[channel] > 0] = label
        return labels
