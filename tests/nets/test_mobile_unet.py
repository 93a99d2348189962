"""Mobile U-Net: where an inverted residual has a shortcut."""

from __future__ import annotations

import torch
from torch import nn

from kdpipe.nets.base import build_network
from kdpipe.nets.mobile_unet import InvertedResidual


def test_shortcut_is_projected_where_the_width_changes_at_stride_1() -> None:
    network = build_network("mobile_unet", {}, 1, 2)
    blocks = [block for block in network.modules() if isinstance(block, InvertedResidual)]
    projected = [block for block in blocks if isinstance(block.shortcut, nn.Conv3d)]
    assert [(block.inputs, block.outputs) for block in projected] == [
        (32, 16),
        (64, 96),
        (160, 320),
    ]
    # 17 blocks in the encoder, of which 4 stride; 4 in the decoder
    assert len(blocks) == 21
    assert sum(block.shortcut is None for block in blocks) == 8


def test_a_block_without_residual_passes_its_input() -> None:
    block = InvertedResidual(4, 4, 2, stride=1, expansion=6)
    nn.init.zeros_(block.residual[-1].norm.weight)
    feature = torch.randn(2, 4, 6, 8)
    torch.testing.assert_close(block(feature), feature)


def test_width_scales_channels_in_steps_of_8() -> None:
    network = build_network("mobile_unet", {"width": 0.25}, 1, 2)
    assert network.get_submodule("bottleneck").out_channels == 320
    assert network.get_submodule("head").in_channels == 8
