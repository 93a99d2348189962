"""Trained networks of other projects, small: TorchScript, torch.export and a MONAI bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PATCH = (8, 12, 16)


class Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv3d(1, channels, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm3d(channels)
        self.drop = nn.Dropout(0.5)

    def forward(self, image: Tensor) -> Tensor:
        features = self.drop(torch.relu(self.norm(self.conv(image))))
        # a tensor made in the forward pass ties a program to the device of its export
        return features + torch.ones(features.shape[2:], device=image.device)


class Net(nn.Module):
    """One strided block, up again, and a head of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([Block(4)])
        self.up = nn.ConvTranspose3d(4, 4, 2, 2)
        self.head = nn.Conv3d(4, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.up(self.encoder[0](image)))


def trained_net() -> Net:
    torch.manual_seed(0)
    network = Net()
    network(torch.randn(4, 1, *PATCH))  # batch norm gets statistics
    return network.eval()


def images(batch: int) -> Tensor:
    return torch.randn(batch, 1, *PATCH, generator=torch.Generator().manual_seed(batch))


def export(network: nn.Module, file: Path, axes: tuple[int, ...] = (0, 2, 3, 4)) -> str:
    sizes = {axis: torch.export.Dim.AUTO for axis in axes}
    program = torch.export.export(network, (images(2),), dynamic_shapes=(sizes,))
    torch.export.save(program, file)
    return str(file)


def script(network: nn.Module, file: Path) -> str:
    torch.jit.save(torch.jit.script(network), file)
    return str(file)


def bundle(
    folder: Path, weights: Any = None, config: str = "inference.json", **entries: Any
) -> str:
    network = {
        "_target_": "BasicUNet",
        "spatial_dims": "@dims",
        "in_channels": 1,
        "out_channels": "@classes",
        "features": [4, 4, 8, 8, 8, 4],
    }
    content = {"dims": 3, "classes": "$2 + 1", "network_def": network} | entries
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True)
    (folder / "configs" / config).write_text(json.dumps(content))
    torch.save(
        basic_unet().state_dict() if weights is None else weights, folder / "models/model.pt"
    )
    return str(folder)


def basic_unet() -> nn.Module:
    from monai.networks.nets.basic_unet import BasicUNet

    torch.manual_seed(0)
    return BasicUNet(3, 1, 3, features=(4, 4, 8, 8, 8, 4)).eval()


def script_traced(network: nn.Module, file: Path) -> str:
    torch.jit.save(torch.jit.trace(network, images(2)), file)
    return str(file)
