"""A bidirectional feature pyramid: features of all scales are mixed, each keeps its grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdpipe.terms.adapters import convolution, instance_norm, matching, pointwise
from kdpipe.terms.features import common_size, pool_to, resize, unit_scale


class Pyramid(nn.Module):
    """Two passes: top-down and bottom-up, then top-down alone, so that all ends in the finest.

    Source: Tan, Pang, Le: EfficientDet (BiFPN), CVPR 2020, as the self-teacher of FRSKD (CVPR
    2021). Deviations: a level keeps its own channels, up to `width`; instance norm.

    Args:
        spatial_dims: 2 or 3.
        channels: of the levels, coarsest first.
        width: channels of a level at most.
    """

    def __init__(self, spatial_dims: int, channels: Sequence[int], width: int):
        super().__init__()
        self.widths = [min(count, width) for count in channels]
        self.lateral = nn.ModuleList(
            pointwise(spatial_dims, count, kept)
            for count, kept in zip(channels, self.widths, strict=True)
        )
        coarsest_last, inner = self.widths[::-1], len(channels) - 2
        self.down = _Path(spatial_dims, self.widths, [2] * (inner + 1))
        # from the finest level up: what entered, what came down (not at the top) and from below
        self.up = _Path(spatial_dims, coarsest_last, [3] * inner + [2])
        self.last = _Path(spatial_dims, self.widths, [2] * (inner + 1))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the refined features ``(B, width_l, *s_l)`` of all levels, coarsest first."""
        entered = [
            layer(unit_scale(feature))
            for layer, feature in zip(self.lateral, features, strict=True)
        ]
        lowered = self.down([[level] for level in entered])
        mixed = [entered[:1]] + [list(pair) for pair in zip(entered[1:], lowered[1:], strict=True)]
        raised = self.up([lowered[-1:], *mixed[-2::-1]])
        refined: list[Tensor] = self.last([[level] for level in raised[::-1]])
        return refined


class _Path(nn.Module):
    """One way through the levels: each is fused with the result of the level before it."""

    def __init__(self, spatial_dims: int, widths: Sequence[int], inputs: Sequence[int]):
        super().__init__()
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.bridges = nn.ModuleList(matching(spatial_dims, *pair) for pair in pairs)
        self.blocks = nn.ModuleList(_separable(spatial_dims, width) for width in widths[1:])
        self.weights = nn.ParameterList(nn.Parameter(torch.ones(count)) for count in inputs)

    def forward(self, levels: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Return one feature a level; the first level is a single one, returned as it is."""
        results = list(levels[0])
        steps = zip(levels[1:], self.bridges, self.blocks, self.weights, strict=True)
        for tensors, bridge, block, weights in steps:
            grid = tensors[0].shape[2:]
            before = results[-1]
            before = bridge(pool_to(before, common_size(before, tensors[0])))  # on the smaller grid
            results.append(block(_fused([*tensors, resize(before, grid)], weights)))
        return results


def _fused(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Their sum with weights >= 0 that sum to 1."""
    positive = weights.relu()
    shares = positive / (positive.sum() + 1e-6)
    terms = [share * tensor for share, tensor in zip(shares, tensors, strict=True)]
    fused: Tensor = sum(terms[1:], terms[0])
    return fused


def _separable(spatial_dims: int, channels: int) -> nn.Sequential:
    """A depth-wise and a point-wise convolution, instance norm, ReLU."""
    return nn.Sequential(
        convolution(spatial_dims, channels, channels, groups=channels, bias=False),
        pointwise(spatial_dims, channels, channels),
        instance_norm(spatial_dims, channels),
        nn.ReLU(inplace=True),
    )
