"""DeepLabV3+ and PSPNet: a batch of one trains, and parameters reach the layers."""

import pytest
import torch
from nets.zoo import ZOO
from torch import nn

from kdpipe.errors import ConfigError
from kdpipe.nets.base import build_network


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("name", ["deeplabv3plus", "pspnet"])
def test_one_image_trains_although_it_is_pooled_to_a_voxel(
    name: str, norm: str, spatial_dims: int
) -> None:
    params = ZOO[name].small | {"norm": norm}
    network = build_network(name, params, 1, 3, spatial_dims).train()
    image = torch.randn(1, 1, *(32, 48, 32)[:spatial_dims])

    logits = network(image)
    logits.square().mean().backward()

    assert logits.shape == (1, 3, *image.shape[2:])
    assert all(value.grad.abs().sum() > 0 for value in network.parameters())


@pytest.mark.parametrize(("name", "stride"), [("deeplabv3plus", 8), ("pspnet", 32)])
def test_the_output_stride_is_that_of_the_coarsest_stage(name: str, stride: int) -> None:
    network = build_network(name, ZOO[name].small | {"output_stride": stride}, 1, 3, spatial_dims=2)
    image = torch.randn(1, 1, 64, 96)

    coarsest = network.eval().encoder(image)[-1]

    assert coarsest.shape[2:] == (64 // stride, 96 // stride)
    assert network(image).shape[2:] == image.shape[2:]


def test_rates_are_the_dilations_of_the_pyramid() -> None:
    network = build_network(
        "deeplabv3plus", ZOO["deeplabv3plus"].small | {"rates": [3, 5, 7]}, 1, 2, spatial_dims=2
    )
    convolutions = (layer for layer in network.pyramid.modules() if isinstance(layer, nn.Conv2d))
    wide = [layer.dilation for layer in convolutions if layer.kernel_size == (3, 3)]
    assert wide == [(3, 3), (5, 5), (7, 7)]


@pytest.mark.parametrize(("name", "key"), [("deeplabv3plus", "rates"), ("pspnet", "bins")])
def test_a_rate_or_a_grid_of_zero_is_refused(name: str, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        build_network(name, {key: [0, 2]}, 1, 2, spatial_dims=2)
