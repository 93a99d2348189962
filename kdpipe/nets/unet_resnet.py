"""U-Net with a ResNet encoder (UNet-R18, UNet-R34, UNet-R50), by default ResNet-18, 15.1 M.

Source: student of HLFD's code (ISBI 2024): He et al., "Deep Residual Learning for Image
Recognition" (CVPR 2016) from a random start as the encoder of Ronneberger, Fischer, Brox, "U-Net"
(MICCAI 2015), up stages as in its plain U-Net (``unet``). Its UNet-R50, 86.3 M parameters, is
``{encoder: resnet50, full_resolution: true}``. Deviation: the finest skip is the stem before
pooling; that code interpolates the pooled one back to the same grid. Both have the same weights.

With the defaults: ``enc1..enc4`` 64, 64, 128, 256 channels at stride 2, 4, 8, 16 (stem, layer1 to
layer3); ``bottleneck`` 512 at 32; ``dec1..dec4`` 256, 128, 64, 32 at 16, 8, 4, 2. ``penult``, the
input of the head, is ``dec4``; ``pre_act`` is its last convolution before norm and activation. The
head works on this grid, and its output is interpolated to ``logits``. HLFD's e1..e5 and d5..d2 are
these, in this order. With `full_resolution` there is ``dec5`` at stride 1, of half the channels.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from kdpipe.discover import Parameters
from kdpipe.nets._layers import UpBlock, Upsample, layer
from kdpipe.nets._resnet import DEPTHS, ResNetEncoder
from kdpipe.nets.base import INPUT, initialise


class Params(Parameters):
    """Parameters of the network."""

    encoder: Literal["resnet18", "resnet34", "resnet50"] = Field(
        "resnet18", description="encoder, with random start weights"
    )
    width: int = Field(64, ge=2, multiple_of=2, description="channels of the stem")
    full_resolution: bool = Field(
        False, description="a last up stage whose skip is the image, instead of interpolated logits"
    )
    norm: Literal["batch", "instance"] = Field("batch", description="normalisation")
    init: Literal["kaiming", "default"] = Field("default", description="see nets.base.initialise")


class ResNetUNet(nn.Module):
    """``encoder``, ``decoder`` of `UpBlock`, coarsest first, ``head`` and ``up``."""

    def __init__(self, params: Params, in_channels: int, out_channels: int, spatial_dims: int):
        super().__init__()
        self.encoder = ResNetEncoder(
            DEPTHS[params.encoder], in_channels, spatial_dims, norm=params.norm, width=params.width
        )
        skips = [*self.encoder.channels[-2::-1]]
        widths = [*skips[:-1], skips[-2] // 2]
        if params.full_resolution:
            skips.append(in_channels)
            widths.append(widths[-1] // 2)
        inputs = [self.encoder.channels[-1], *widths]
        self.decoder = nn.ModuleList(
            UpBlock(coarse, skip, own, spatial_dims, params.norm)
            for coarse, skip, own in zip(inputs, skips, widths, strict=False)
        )
        self.head = layer("conv", spatial_dims)(widths[-1], out_channels, 1)
        self.up = nn.Identity() if params.full_resolution else Upsample(2, align_corners=True)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, out_channels, *S)``."""
        features: list[Tensor] = self.encoder(image)
        feature = features[-1]
        # the image is the skip of the last up stage, where there is one
        for up, skip in zip(self.decoder, [*features[-2::-1], image], strict=False):
            feature = up(feature, skip)
        logits: Tensor = self.up(self.head(feature))
        return logits


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    network = ResNetUNet(params, in_channels, out_channels, spatial_dims)
    initialise(network, params.init)
    return network


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    ups = 5 if params.full_resolution else 4
    places = {"enc1": "encoder.stem"}
    places |= {f"enc{level + 1}": f"encoder.layer{level}" for level in (1, 2, 3)}
    places["bottleneck"] = "encoder.layer4"
    places |= {f"dec{step + 1}": f"decoder.{step}" for step in range(ups)}
    last = f"decoder.{ups - 1}.block.1.conv"
    return places | {"pre_act": last, "penult": f"head{INPUT}", "logits": "up"}


def divisor(params: Params) -> int:
    """Return the number that patch sides are multiples of."""
    return 32
