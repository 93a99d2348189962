"""LCOV-Net: the gate of a block, and the axis of its slices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdpipe.errors import ConfigError
from kdpipe.nets.base import build_network
from kdpipe.nets.lcovnet import GatedBlock


class _Constant(nn.Module):
    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def forward(self, feature: Tensor) -> Tensor:
        return torch.full_like(feature, self.value)


def test_gate_passes_what_is_convolved_across_slices() -> None:
    block = GatedBlock(2, 4).eval()
    feature = torch.randn(1, 2, 4, 6, 8)
    block.gate = _Constant(0.0)
    closed = block(feature)
    block.gate = _Constant(0.25)
    torch.testing.assert_close(block(feature) - closed, 0.25 * block.across(feature))


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_gate_lies_between_0_and_1_on_the_grid_of_the_block(bottleneck: bool) -> None:
    block = GatedBlock(2, 4, bottleneck)
    feature = block.across(torch.randn(2, 2, 4, 6, 8))
    gate = block.gate(feature)
    assert gate.shape == feature.shape
    assert bool(((gate > 0) & (gate < 1)).all())
    # the bottleneck rectifies before the sigmoid
    assert (gate.min() >= 0.5) == bottleneck


def test_slices_lie_on_the_last_axis() -> None:
    block = GatedBlock(1, 1).eval()
    impulse = torch.zeros(1, 1, 7, 7, 7, requires_grad=True)
    for part, reach in ((block.across, (1, 1, 3)), (block.within, (3, 3, 1))):
        (gradient,) = torch.autograd.grad(part[0](impulse)[0, 0, 3, 3, 3], impulse)
        seen = gradient[0, 0].nonzero()
        assert tuple((seen.amax(0) - seen.amin(0) + 1).tolist()) == reach


def test_it_is_for_volumes_only() -> None:
    with pytest.raises(ConfigError, match="3D"):
        build_network("lcovnet", {}, 1, 2, spatial_dims=2)
