"""Shared by the networks with a ResNet encoder: residual blocks in 2D and 3D, and the encoder.

Source: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), with the stride of a
bottleneck on its 3-wide convolution, as in torchvision. Where the output stride is below 32, the
strides of the last layers become dilations (Chen et al., "DeepLab", TPAMI 2018).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from kdpipe.nets._layers import Norm, conv_norm, layer

Depth = Literal[18, 34, 50]
OutputStride = Literal[8, 16, 32]
DEPTHS: dict[str, Depth] = {"resnet18": 18, "resnet34": 34, "resnet50": 50}


class ResidualBlock(nn.Module):
    """``relu(shortcut(x) + residual(x))``; the shortcut is projected where the shape changes.

    Args:
        inputs: channels that enter.
        width: channels within; `expansion` times as many leave.
        spatial_dims: 2 or 3.
        norm: see `kdpipe.nets._layers.norm_layer`.
        stride: of the block.
        dilation: of its 3-wide convolutions on the grid that leaves it.
        entry: dilation of the one that has, or had, the stride; None for `dilation`.
    """

    expansion: ClassVar[int] = 1

    def __init__(
        self,
        inputs: int,
        width: int,
        spatial_dims: int,
        norm: Norm = "batch",
        stride: int = 1,
        dilation: int = 1,
        entry: int | None = None,
    ):
        super().__init__()
        outputs = width * self.expansion
        entry = dilation if entry is None else entry
        self.residual = self._residual(inputs, width, spatial_dims, norm, stride, dilation, entry)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = conv_norm(
                inputs, outputs, 1, spatial_dims, norm, stride=stride, activation=None
            )
        self.activation = nn.ReLU()

    def _residual(
        self,
        inputs: int,
        width: int,
        dims: int,
        norm: Norm,
        stride: int,
        dilation: int,
        entry: int,
    ) -> nn.Sequential:
        return nn.Sequential(
            conv_norm(inputs, width, 3, dims, norm, stride=stride, dilation=entry),
            conv_norm(width, width, 3, dims, norm, dilation=dilation, activation=None),
        )

    def forward(self, feature: Tensor) -> Tensor:
        output: Tensor = self.activation(self.shortcut(feature) + self.residual(feature))
        return output


class Bottleneck(ResidualBlock):
    """Residual block whose 3-wide convolution works on a quarter of the output channels."""

    expansion: ClassVar[int] = 4

    def _residual(
        self,
        inputs: int,
        width: int,
        dims: int,
        norm: Norm,
        stride: int,
        dilation: int,
        entry: int,
    ) -> nn.Sequential:
        return nn.Sequential(
            conv_norm(inputs, width, 1, dims, norm),
            conv_norm(width, width, 3, dims, norm, stride=stride, dilation=entry),
            conv_norm(width, width * self.expansion, 1, dims, norm, activation=None),
        )


_BLOCKS: dict[int, tuple[type[ResidualBlock], tuple[int, int, int, int]]] = {
    18: (ResidualBlock, (2, 2, 2, 2)),
    34: (ResidualBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


class ResNetEncoder(nn.Module):
    """ResNet without its classifier: ``stem``, ``pool``, ``layer1`` to ``layer4``.

    The stem has stride 2, layer1 to layer4 have 4, 8, 16, 32, at most `output_stride`.
    `channels` holds the channels of these five outputs, finest first.

    Args:
        depth: 18 and 34 with plain residual blocks, 50 with bottlenecks.
        in_channels: channels of the image.
        spatial_dims: 2 or 3.
        output_stride: of layer4; below 32, later strides become dilations.
        norm: batch or instance normalisation.
        width: channels of the stem.
    """

    def __init__(
        self,
        depth: Depth,
        in_channels: int,
        spatial_dims: int,
        output_stride: OutputStride = 32,
        norm: Norm = "batch",
        width: int = 64,
    ):
        super().__init__()
        block, repeats = _BLOCKS[depth]
        self.stem = conv_norm(in_channels, width, 7, spatial_dims, norm, stride=2)
        self.pool = layer("max_pool", spatial_dims)(3, stride=2, padding=1)
        self.channels = (width, *(width * 2**i * block.expansion for i in range(4)))
        reached, dilation = 4, 1
        for level, repeat in enumerate(repeats):
            stride, entry = (1 if level == 0 else 2), dilation
            if reached * stride > output_stride:
                stride, dilation = 1, dilation * stride
            reached *= stride
            blocks = nn.Sequential()
            for index in range(repeat):
                inputs = self.channels[level + (index > 0)]
                step, before = (stride, entry) if index == 0 else (1, dilation)
                blocks.append(
                    block(inputs, width * 2**level, spatial_dims, norm, step, dilation, before)
                )
            self.add_module(f"layer{level + 1}", blocks)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the outputs of stem and layer1 to layer4, finest first."""
        features = [self.stem(image)]
        feature = self.pool(features[0])
        for level in range(1, 5):
            feature = self.get_submodule(f"layer{level}")(feature)
            features.append(feature)
        return features
