"""Shared by DeepLabV3+ and PSPNet: a branch that sees the whole grid through a pooled one."""

from __future__ import annotations

from torch import Tensor, nn

from kdpipe.nets._layers import Norm, conv_norm, layer, resize


class PooledBranch(nn.Module):
    """Average over `bins` regions an axis, convolve these 1-wide, interpolate back to the grid.

    A single region is not normalised, but has a bias: of one voxel there are no statistics, unless
    the batch gives them, which may hold one image.
    """

    def __init__(self, inputs: int, outputs: int, bins: int, spatial_dims: int, norm: Norm):
        super().__init__()
        self.pool = layer("average_pool", spatial_dims)(bins)
        self.project: nn.Module = conv_norm(inputs, outputs, 1, spatial_dims, norm)
        if bins == 1:
            self.project = nn.Sequential(layer("conv", spatial_dims)(inputs, outputs, 1), nn.ReLU())

    def forward(self, feature: Tensor) -> Tensor:
        return resize(self.project(self.pool(feature)), feature.shape[2:])
