"""The networks of HLFD and their blocks: UNet++'s nodes, dilated ResNets, its published taps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import build

from kdpipe.engine.taps import TapRecorder, probe
from kdpipe.methods.base import Context
from kdpipe.nets._layers import Upsample
from kdpipe.nets._resnet import DEPTHS, ResNetEncoder
from kdpipe.nets.base import build_network, network_stages
from kdpipe.nets.cost import macs, parameters

IMAGE = (1, 1, 64, 96)
TEACHER = {"width": 4}
TEACHER_TAPS = {
    "teacher_encoders": ("enc2", "enc3", "x1_1", "enc4", "bottleneck"),
    "teacher_decoders": ("x0_1", "x0_2", "x0_3", "dec3"),
}
ENCODERS = ("enc1", "enc2", "enc3", "enc4", "bottleneck")


def test_published_cost_of_unet_r50() -> None:
    params = {"encoder": "resnet50", "full_resolution": True}
    network = build_network("unet_resnet", params, 1, 2, spatial_dims=2)
    assert parameters(network) == 86_262_850
    assert macs(network, (1, 1, 384, 384)) / 1e9 == pytest.approx(139.6, rel=1e-3)


def test_classification_networks_without_their_last_layer() -> None:
    """Published for ImageNet: 11.69, 21.80 and 25.56 M with a linear layer to 1000 classes."""
    linear = {"resnet18": 512, "resnet34": 512, "resnet50": 2048}
    counts = {
        name: parameters(ResNetEncoder(depth, 3, 2)) + 1001 * linear[name] + 1000 - linear[name]
        for name, depth in DEPTHS.items()
    }
    assert counts == {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032}


def test_mobilenet_with_the_strides_of_its_paper() -> None:
    params = {"strides": [1, 2, 2, 2, 1, 2, 1]}
    network = build_network("mobilenetv2", params, 3, 1000, spatial_dims=2)
    assert parameters(network) == 3_504_872
    found = probe(network, network_stages("mobilenetv2", params), (1, 3, 64, 64))
    assert [found[stage].stride[0] for stage in ENCODERS] == [2, 4, 8, 16, 32]


@pytest.mark.parametrize("name", DEPTHS)
@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_dilated_resnet_holds_the_strided_one(name: str, output_stride: Any) -> None:
    """At every fourth (second) place it computes what the same weights give with strides."""
    torch.manual_seed(0)
    strided = ResNetEncoder(DEPTHS[name], 1, 2, width=4).eval()
    dilated = ResNetEncoder(DEPTHS[name], 1, 2, output_stride, width=4).eval()
    dilated.load_state_dict(strided.state_dict())
    image = torch.randn(1, 1, 64, 96)
    with torch.no_grad():
        coarse, fine = strided(image), dilated(image)
    for level, (few, many) in enumerate(zip(coarse, fine, strict=True)):
        step = max(1, 2 ** (level + 1) // output_stride)
        assert many.shape[2:] == tuple(side * step for side in few.shape[2:])
        torch.testing.assert_close(many[..., ::step, ::step], few, rtol=1e-4, atol=1e-5)


def test_a_node_of_unetpp_joins_its_level_and_the_one_below() -> None:
    torch.manual_seed(0)
    network = build_network("unetpp", TEACHER, 1, 2, spatial_dims=2).eval()
    stages = network_stages("unetpp", TEACHER)
    stages["joined"] = "nodes.x0_3:input"
    with torch.no_grad(), TapRecorder(network, stages) as taps:
        network(torch.randn(IMAGE))
        found = taps.take()
    up = Upsample(2, align_corners=True)(found["x1_2"])
    expected = torch.cat([found["enc1"], found["x0_1"], found["x0_2"], up], dim=1)
    assert torch.equal(found["joined"], expected)


def test_upsampling_keeps_the_corners() -> None:
    image = torch.randn(1, 2, 3, 4, 5)
    raised = Upsample((2, 1, 3), align_corners=True)(image)
    assert raised.shape == (1, 2, 6, 4, 15)
    torch.testing.assert_close(raised[..., ::5, :, ::14], image[..., ::2, :, ::4])


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2"])
def test_a_grey_image_is_repeated(name: str) -> None:
    torch.manual_seed(0)
    grey = build_network(name, {}, 1, 2, spatial_dims=2).eval()
    colour = build_network(name, {}, 3, 2, spatial_dims=2).eval()
    colour.load_state_dict(grey.state_dict())
    image = torch.randn(IMAGE)
    with torch.no_grad():
        assert torch.equal(grey(image), colour(image.repeat(1, 3, 1, 1)))
    own = build_network(name, {"rgb_stem": False}, 1, 2, spatial_dims=2)
    assert next(own.parameters()).shape[1] == 1


@pytest.mark.parametrize(
    ("name", "params", "decoders"),
    [
        ("resnet18", {"width": 4}, ("enc4", "enc3", "enc2", "enc1")),
        ("mobilenetv2", {"width": 0.25}, ("enc4", "enc3", "enc2", "enc1")),
        ("unet_resnet", {"width": 4}, ("dec1", "dec2", "dec3", "dec4")),
        ("unet", {"width": 4}, ("dec1", "dec2", "dec3", "dec4")),
    ],
)
def test_hlfd_can_name_its_published_taps(
    name: str, params: dict[str, Any], decoders: tuple[str, ...]
) -> None:
    student = build_network(name, params, 1, 2, spatial_dims=2)
    teacher = build_network("unetpp", TEACHER, 1, 2, spatial_dims=2)
    ours = probe(student, network_stages(name, params), IMAGE)
    theirs = probe(teacher, network_stages("unetpp", TEACHER), IMAGE)
    named = [theirs[tap] for taps in TEACHER_TAPS.values() for tap in taps]
    assert [16 * tap.channels for tap in named] == [128, 256, 128, 512, 1024, 64, 64, 64, 128]
    assert [tap.stride[0] for tap in named] == [2, 4, 2, 8, 16, 1, 1, 1, 2]
    where = Context(2, 2, ours, theirs, "classes")
    method = build("hlfd", where, student_decoders=decoders, **TEACHER_TAPS)
    assert method.student_taps() == tuple(dict.fromkeys((*ENCODERS[:4], *decoders)))
