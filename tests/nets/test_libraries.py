"""Networks from MONAI and nnU-Net: levels by axis, what their parameters and blocks mean."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from nets.zoo import ZOO
from torch import nn

from kdpipe.engine.taps import TapRecorder, probe
from kdpipe.errors import ConfigError
from kdpipe.nets.base import build_network, check_patch, dry_forward, network_stages
from kdpipe.nets.cost import macs, parameters

PLANNED = ("dynunet", "resenc_unet")
BY_AXIS = {"strides": [[1, 2, 2], [2, 2, 2]], "kernels": [[1, 3, 3], 3, 3], "channels": [4, 8, 12]}


def planned(name: str, **params: Any) -> dict[str, Any]:
    """Parameters of a network of three levels, small but for those given."""
    if name == "resenc_unet":
        pytest.importorskip("dynamic_network_architectures")
    return {**ZOO[name].small, **params}


@pytest.mark.parametrize("name", PLANNED)
def test_strides_and_kernels_by_axis(name: str) -> None:
    params = planned(name, **BY_AXIS)
    network = build_network(name, params, 1, 3)
    found = probe(network, network_stages(name, params), (1, 1, 8, 32, 16))
    strides = {stage: spec.stride for stage, spec in found.items()}
    assert strides["enc1"] == strides["dec2"] == strides["logits"] == (1, 1, 1)
    assert strides["enc2"] == strides["dec1"] == (1, 2, 2)
    assert strides["bottleneck"] == (2, 4, 4)
    kernels = {layer.kernel_size for layer in network.modules() if isinstance(layer, nn.Conv3d)}
    assert (1, 3, 3) in kernels and (3, 3, 3) in kernels
    check_patch(name, params, (2, 4, 8))
    with pytest.raises(ConfigError, match=r"multiples of \(2, 4, 4\).*take \(4, 8, 32\)"):
        check_patch(name, params, (3, 7, 30))
    assert network(torch.randn(1, 1, 4, 8, 12)).shape == (1, 3, 4, 8, 12)


@pytest.mark.parametrize("name", PLANNED)
def test_channels_are_derived_from_the_number_of_levels(name: str) -> None:
    params = planned(name, strides=[2] * 5, channels=None)
    params |= {"blocks": [1] * 6} if name == "resenc_unet" else {}
    for dims, most in ((2, 512), (3, 320)):
        with torch.device("meta"):
            network = build_network(name, params, 1, 2, spatial_dims=dims)
        found = probe(network, network_stages(name, params), (1, 1, *(64,) * dims))
        channels = [found[f"enc{level}"].channels for level in range(1, 6)]
        assert [*channels, found["bottleneck"].channels] == [32, 64, 128, 256, most, most]


@pytest.mark.parametrize("name", PLANNED)
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"channels": [4, 8]}, r"channels \[4, 8\] have 2 entries.*3 levels"),
        ({"kernels": [3, 3]}, r"kernels \[3, 3\] have 2 entries.*3 levels"),
        ({"channels": [4, 0, 8]}, "must all be 1 or more"),
        ({"kernels": [3, 2, 3]}, "kernel 2 with stride 2.*odd"),
        ({"strides": [2, 4]}, "kernel 3 with stride 4"),
        ({"strides": [2, 0]}, "kernel 3 with stride 0"),
        ({"strides": [[1, 2, 2], [2, 2]]}, "for 2 or 3 axes"),
        ({"strides": [[1, 2, 4], 2]}, r"kernel 3 with stride \(1, 2, 4\)"),
    ],
)
def test_wrong_levels(name: str, params: dict[str, Any], message: str) -> None:
    wrong = planned(name, **params)
    for use in (
        lambda: build_network(name, wrong, 1, 2),
        lambda: network_stages(name, wrong),
        lambda: check_patch(name, wrong, (16, 16, 16)),
    ):
        with pytest.raises(ConfigError, match=message):
            use()


@pytest.mark.parametrize("name", PLANNED)
def test_axes_of_another_image_are_an_error(name: str) -> None:
    params = planned(name, **BY_AXIS)
    with pytest.raises(ConfigError, match="3 axes, the image has 2"):
        build_network(name, params, 1, 2, spatial_dims=2)
    with pytest.raises(ConfigError, match="for 3 axes, the patch"):
        check_patch(name, params, (16, 16))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("resenc_unet", {"blocks": [1, 1]}, "blocks"),
        ("swin_unetr", {"heads": [5, 6, 12, 24]}, r"must divide the stages' channels \[48, 96"),
        ("swin_unetr", {"depths": [2, 2, 0, 2]}, "must be 1 or more"),
        ("swin_unetr", {"feature_size": 32}, "multiple of 12"),
        ("unetr", {"patch": [96, 96, 90]}, "must be multiples of 16"),
        ("unetr", {"heads": 10}, "10 heads do not divide hidden 768"),
    ],
)
def test_wrong_parameters(name: str, params: dict[str, Any], message: str) -> None:
    for use in (
        lambda: build_network(name, params, 1, 2),
        lambda: network_stages(name, params),
        lambda: check_patch(name, params, (96, 96, 96)),
    ):
        with pytest.raises(ConfigError, match=message):
            use()


def test_dynunet_has_the_layers_of_nnunet_s_plain_unet() -> None:
    """As many parameters and MACs as the original, without its biases and further heads."""
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    original = unet.PlainConvUNet(
        input_channels=1,
        n_stages=3,
        features_per_stage=(4, 8, 12),
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=(1, 2, 2),
        n_conv_per_stage=2,
        num_classes=3,
        n_conv_per_stage_decoder=2,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
    )
    original.decoder.seg_layers = original.decoder.seg_layers[-1:]
    ours = build_network("dynunet", ZOO["dynunet"].small, 1, 3)
    assert parameters(ours) == parameters(original)
    assert macs(ours, (1, 1, 8, 8, 8)) == macs(original, (1, 1, 8, 8, 8))


def test_residual_blocks_of_dynunet_are_in_its_encoder() -> None:
    params = ZOO["dynunet"].small
    blocks = build_network("dynunet", {**params, "residual": True}, 1, 3)
    plain = build_network("dynunet", params, 1, 3)
    projections = [key for key, _ in blocks.named_parameters() if "conv3" in key]
    assert {key.split(".")[0] for key in projections} == {
        "input_block",
        "downsamples",
        "bottleneck",
    }
    assert not any("conv3" in key for key, _ in plain.named_parameters())


def test_missing_package_of_nnunet_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures.architectures.unet", None)
    with pytest.raises(ConfigError, match=r'pip install "kdpipe\[nnunet\]"'):
        build_network("resenc_unet", {}, 1, 2)


def test_start_of_resenc_unet_is_nnunet_s() -> None:
    """The last norm of a residual block starts at 0: the block passes its shortcut on."""
    params = planned("resenc_unet")
    network = build_network("resenc_unet", params, 1, 2)
    last = [module.conv2.norm for module in network.modules() if hasattr(module, "nonlin2")]
    assert len(last) == sum(params["blocks"])
    assert not any(norm.weight.any() for norm in last)
    other = build_network("resenc_unet", {**params, "init": "kaiming"}, 1, 2)
    assert all((m.conv2.norm.weight == 1).all() for m in other.modules() if hasattr(m, "nonlin2"))


def test_weights_of_resenc_unet_are_stored_once_for_encoder_and_decoder() -> None:
    network = build_network("resenc_unet", planned("resenc_unet"), 1, 2)
    assert not [key for key in network.state_dict() if key.startswith("decoder.encoder")]


@pytest.mark.parametrize("name", ["swin_unetr", "unetr"])
def test_corrected_is_the_activated_sum_of_shortcut_and_correction(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(name, ZOO[name].small, 1, 3).eval()
    stages = network_stages(name, ZOO[name].small)
    block = stages["corrected"]
    stages["shortcut"] = f"{block}.norm3"
    wanted = ("shortcut", "pre_act", "correction", "corrected", "penult")
    with torch.no_grad(), TapRecorder(network, stages, wanted) as taps:
        network(torch.randn(1, 1, *ZOO[name].small_patch))
        found = taps.take()
        assert torch.equal(
            network.get_submodule(block).norm2(found["pre_act"]), found["correction"]
        )
    total = nn.functional.leaky_relu(found["shortcut"] + found["correction"], 0.01)
    torch.testing.assert_close(found["corrected"], total)
    assert found["penult"] is found["corrected"]


def test_swin_unetr_v2_adds_a_block_before_each_swin_stage() -> None:
    small = ZOO["swin_unetr"].small
    network = build_network("swin_unetr", {**small, "v2": True}, 1, 3)
    names = {key.split(".")[1] for key, _ in network.named_parameters() if "swinViT" in key}
    assert {f"layers{stage}c" for stage in range(1, 5)} <= names
    stages = network_stages("swin_unetr", {**small, "v2": True})
    assert probe(network, stages, (1, 1, 32, 64, 32))["enc5"].stride == (16.0, 16.0, 16.0)


def test_unetr_is_for_one_patch() -> None:
    params = {**ZOO["unetr"].small, "patch": [32, 48]}
    check_patch("unetr", params, (32, 48))
    with pytest.raises(ConfigError, match=r"built for patches of \(32, 48\).*\(48, 48\)"):
        check_patch("unetr", params, (48, 48))
    flat = build_network("unetr", params, 1, 2, spatial_dims=2)
    assert dry_forward(flat, (1, 1, 32, 48)).shape == (1, 2, 32, 48)
    with pytest.raises(ConfigError, match="has 2 sides, the images have 3"):
        build_network("unetr", params, 1, 2)
