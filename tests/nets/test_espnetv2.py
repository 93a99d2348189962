"""ESPNetv2: receptive fields, hierarchical sums, the order in which scales are merged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdpipe.errors import ConfigError
from kdpipe.nets._espnet import SCALES, DilatedPyramid, PyramidPool, dilations
from kdpipe.nets._pool import HalvingAverage
from kdpipe.nets.base import build_network


@pytest.mark.parametrize(
    ("reach", "expected"), [(13, [1, 2, 3, 4]), (9, [1, 2, 3, 4]), (7, [1, 1, 2, 3])]
)
def test_a_kernel_wider_than_the_reach_is_not_dilated(reach: int, expected: list[int]) -> None:
    assert dilations(reach) == expected


def test_each_branch_is_added_to_the_sum_of_those_before_it() -> None:
    pyramid = DilatedPyramid(8, 16, 2, reach=9).eval()
    pyramid.merge = nn.Identity()
    feature = torch.randn(1, 8, 12, 10)
    total = torch.zeros(1, 4, 12, 10)
    for branch, summed in zip(pyramid.branches, pyramid(feature).split(4, 1), strict=True):
        total = total + branch(pyramid.reduce(feature))
        torch.testing.assert_close(summed, total)


@pytest.mark.parametrize("dims", [2, 3])
def test_pyramid_pooling_merges_the_scales_of_one_channel(dims: int) -> None:
    pool = PyramidPool(3, 3, 3, dims, head=False)
    for name in ("reduce", "activation", "merge", "expand"):
        setattr(pool, name, nn.Identity())
    pool.scales = nn.ModuleList(nn.Identity() for _ in SCALES)
    # constant channels, which resizing leaves as they are
    feature = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, *[1] * dims).expand(1, 3, *(7, 12, 6)[:dims])
    merged = pool(feature)
    assert merged.shape[2:] == feature.shape[2:]
    torch.testing.assert_close(merged, feature.repeat_interleave(len(SCALES), 1))


@pytest.mark.parametrize("channels", [[32, 64, 128, 200], [32, 64, 64, 128]])
def test_channels_that_the_branches_cannot_share(channels: list[int]) -> None:
    with pytest.raises(ConfigError, match="ascending multiples of 16"):
        build_network("espnetv2", {"channels": channels}, 1, 2)


@pytest.mark.parametrize("kernel", [3, 4])
def test_narrow_grids_are_averaged_like_wide_ones(kernel: int) -> None:
    # in a wider grid of zeros, what lies beyond one voxel of padding meets no window of the first
    feature = torch.randn(1, 2, 2, 4, 2)
    wide = nn.functional.pad(feature, (0, 4, 0, 4, 0, 4))
    expected = nn.AvgPool3d(kernel, stride=2, padding=1)(wide)[..., :1, :2, :1]
    torch.testing.assert_close(HalvingAverage(kernel)(feature), expected)
