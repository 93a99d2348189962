"""Shared by ESPNetv2 and LCOV-Net: average pooling that halves a grid of any size, in 2D and 3D."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class HalvingAverage(nn.Module):
    """Average over windows at stride 2, with one voxel of zeros around, which count.

    Args:
        kernel: sides of the window, 3 or 4.
    """

    def __init__(self, kernel: int):
        super().__init__()
        self.kernel = kernel

    def forward(self, feature: Tensor) -> Tensor:
        padding = 1
        if min(feature.shape[2:]) < self.kernel:
            # torch's 3D pooling refuses a window wider than the grid, padded or not
            feature = functional.pad(feature, (1, 1) * (feature.dim() - 2))
            padding = 0
        pool = functional.avg_pool2d if feature.dim() == 4 else functional.avg_pool3d
        return pool(feature, self.kernel, 2, padding)

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}"
