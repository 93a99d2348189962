"""Networks: published sizes, stages where they are documented to be, patches, start weights."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from kdpipe import discover
from kdpipe.engine.taps import TapRecorder, probe
from kdpipe.errors import ConfigError
from kdpipe.nets.base import (
    build_network,
    check_patch,
    dry_forward,
    initialise,
    network_stages,
)
from kdpipe.nets.cost import macs, parameters

SMALL: dict[str, dict[str, Any]] = {
    "res_unet": {"channels": [8, 16, 24, 32]},
    "segresnet": {"init_filters": 8, "blocks_down": [1, 1, 1, 1]},
    "unet_tiny": {"channels": [4, 8, 12, 16]},
}

# network, image channels, classes, parameters, GMACs at 96^3: measured on the official modules of
# ACF-BCKD for BTCV, WORD and BraTS
PUBLISHED = [
    ("res_unet", 1, 14, 18_992_149, 88.612),
    ("res_unet", 1, 17, 19_005_034, 91.980),
    ("res_unet", 4, 3, 18_959_430, 81.087),
    ("segresnet", 1, 14, 4_701_118, 61.450),
    ("segresnet", 1, 17, 4_701_169, 61.493),
    ("segresnet", 4, 3, 4_702_227, 62.441),
    ("unet_tiny", 1, 14, 1_961_012, 8.122),
    ("unet_tiny", 1, 17, 1_966_199, 8.695),
    ("unet_tiny", 4, 3, 1_944_585, 6.306),
]

# stage -> (channels, stride) with default parameters, 14 classes
STAGES: dict[str, dict[str, tuple[int, int]]] = {
    "res_unet": {
        "enc1": (64, 2),
        "enc2": (128, 4),
        "enc3": (256, 8),
        "bottleneck": (512, 8),
        "dec1": (128, 4),
        "dec2": (64, 2),
        "dec3": (14, 1),
        "pre_act": (64, 2),
        "corrected": (64, 2),
        "correction": (64, 2),
        "penult": (128, 2),
        "logits": (14, 1),
    },
    "segresnet": {
        "enc1": (16, 1),
        "enc2": (32, 2),
        "enc3": (64, 4),
        "bottleneck": (128, 8),
        "dec1": (64, 4),
        "dec2": (32, 2),
        "dec3": (16, 1),
        "pre_act": (16, 1),
        "corrected": (16, 1),
        "correction": (16, 1),
        "penult": (16, 1),
        "logits": (14, 1),
    },
    "unet_tiny": {
        "enc1": (32, 2),
        "enc2": (64, 4),
        "enc3": (128, 8),
        "bottleneck": (256, 8),
        "dec1": (64, 4),
        "dec2": (32, 2),
        "dec3": (14, 1),
        "pre_act": (32, 2),
        "penult": (64, 2),
        "logits": (14, 1),
    },
}


def test_every_network_is_tested_here() -> None:
    assert set(discover.names("nets")) == set(SMALL) == set(STAGES)


@pytest.mark.parametrize(("name", "inputs", "classes", "count", "gmacs"), PUBLISHED)
def test_published_cost(name: str, inputs: int, classes: int, count: int, gmacs: float) -> None:
    network = build_network(name, {}, inputs, classes)
    assert parameters(network) == count
    assert macs(network, (1, inputs, 96, 96, 96)) / 1e9 == pytest.approx(gmacs, rel=1e-3)


def test_macs_of_single_layers() -> None:
    shape = (2, 3, 8, 8)
    assert macs(nn.Conv2d(3, 5, 3, padding=1), shape) == 2 * 8 * 8 * 5 * 3 * 9
    # each of the 8x8 input pixels meets each of the 2x2 weights once
    assert macs(nn.ConvTranspose2d(3, 5, 2, stride=2), shape) == 2 * 8 * 8 * 3 * 5 * 4
    assert macs(nn.Sequential(nn.Flatten(), nn.Linear(192, 7)), shape) == 2 * 192 * 7
    assert macs(nn.ReLU(), shape) == 0


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", STAGES)
def test_stages_have_the_documented_shape(name: str, dims: int) -> None:
    network = build_network(name, {}, 1, 14, spatial_dims=dims)
    found = probe(network, network_stages(name, {}), (1, 1, *(32, 48, 64)[:dims]))
    assert {stage: (spec.channels, spec.stride) for stage, spec in found.items()} == {
        stage: (channels, (stride,) * dims) for stage, (channels, stride) in STAGES[name].items()
    }


@pytest.mark.parametrize("name", ["res_unet", "unet_tiny"])
def test_unet_stages_follow_depth_and_strides(name: str) -> None:
    params = {"channels": [4, 8, 12, 16, 20], "strides": [1, 2, 2, 4]}
    network = build_network(name, params, 1, 3)
    found = probe(network, network_stages(name, params), (1, 1, 32, 32, 32))
    shapes = {stage: (spec.channels, spec.stride[0]) for stage, spec in found.items()}
    assert [shapes[f"enc{i}"] for i in (1, 2, 3, 4)] == [(4, 1), (8, 2), (12, 4), (16, 16)]
    assert [shapes[f"dec{i}"] for i in (1, 2, 3, 4)] == [(12, 4), (8, 2), (4, 1), (3, 1)]
    assert shapes["bottleneck"] == (20, 16)
    assert shapes["pre_act"] == (4, 1)


@pytest.mark.parametrize(("inputs", "classes"), [(1, 14), (4, 3)])
@pytest.mark.parametrize("name", SMALL)
def test_forward_and_backward_of_a_small_patch(name: str, inputs: int, classes: int) -> None:
    torch.manual_seed(0)
    network = build_network(name, SMALL[name], inputs, classes)
    logits = network(torch.randn(2, inputs, 32, 48, 32))
    assert logits.shape == (2, classes, 32, 48, 32)
    logits.square().mean().backward()
    gradients = [weight.grad for weight in network.parameters()]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in gradients)


@pytest.mark.parametrize("name", SMALL)
def test_dry_forward_gives_the_real_shape_without_touching_the_network(name: str) -> None:
    network = build_network(name, SMALL[name], 1, 3)
    network.eval()
    next(network.children()).train()
    modes = [module.training for module in network.modules()]
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    random = torch.get_rng_state()
    output = dry_forward(network, (1, 1, 16, 24, 16))
    assert output.is_meta and output.shape == (1, 3, 16, 24, 16)
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["res_unet", "segresnet"])
def test_correction_is_the_residual_branch(name: str) -> None:
    """corrected = x + f(x), where x enters the block and correction is f(x)."""
    torch.manual_seed(0)
    network = build_network(name, SMALL[name], 1, 3).eval()
    stages = network_stages(name, SMALL[name])
    stages["x"] = f"{stages['corrected']}:input"
    with torch.no_grad(), TapRecorder(network, stages, ("x", "corrected", "correction")) as taps:
        network(torch.randn(1, 1, 16, 16, 16))
        found = taps.take()
    torch.testing.assert_close(found["corrected"], found["x"] + found["correction"])
    assert found["x"].abs().max() > 0


def test_pre_act_of_the_tiny_unet_precedes_norm_and_activation() -> None:
    torch.manual_seed(0)
    network = build_network("unet_tiny", SMALL["unet_tiny"], 1, 3).eval()
    stages = network_stages("unet_tiny", SMALL["unet_tiny"])
    adn = network.get_submodule(stages["dec2"]).get_submodule("adn")
    with torch.no_grad(), TapRecorder(network, stages, ("pre_act", "dec2")) as taps:
        network(torch.randn(1, 1, 16, 16, 16))
        found = taps.take()
        assert torch.equal(adn(found["pre_act"]), found["dec2"])
    assert not torch.equal(found["pre_act"], found["dec2"])


@pytest.mark.parametrize("name", SMALL)
def test_patches(name: str) -> None:
    check_patch(name, {}, (32, 48, 32))
    check_patch(name, {}, (16, 8))
    with pytest.raises(
        ConfigError, match=r"multiples of \(8, 8, 8\).*\(30, 48, 8\).*\(32, 48, 8\)"
    ):
        check_patch(name, {}, (30, 48, 8))
    with pytest.raises(ConfigError, match=r"single voxel.*\(16, 8, 8\)"):
        check_patch(name, {}, (8, 8, 8))


def test_divisor_follows_depth() -> None:
    deeper = {"channels": [4, 8, 8, 8, 8], "strides": [2, 2, 2, 2]}
    with pytest.raises(ConfigError, match=r"multiples of \(16, 16, 16\)"):
        check_patch("unet_tiny", deeper, (24, 32, 32))
    with pytest.raises(ConfigError, match=r"multiples of \(4, 4\).*\(28, 32\)"):
        check_patch("segresnet", {"blocks_down": [1, 1, 1], "blocks_up": [1, 1]}, (26, 32))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("unet_tiny", {"channels": [4, 8, 16]}, "3 channels need 2 strides"),
        ("res_unet", {"channels": [4, 8, 16], "strides": [2, 0]}, "must all be 1 or more"),
        ("res_unet", {"residual_unit": 1}, "did you mean 'residual_units'"),
        ("unet_tiny", {"channels": [4, 8]}, "channels"),
        ("segresnet", {"blocks_up": [1, 1]}, "one entry fewer"),
        ("segresnet", {"init_filters": 12}, "multiple of 8"),
        ("unet_tini", {}, "did you mean 'unet_tiny'"),
    ],
)
def test_wrong_parameters(name: str, params: dict[str, Any], message: str) -> None:
    for use in (
        lambda: build_network(name, params, 1, 2),
        lambda: network_stages(name, params),
        lambda: check_patch(name, params, (16, 16, 16)),
    ):
        with pytest.raises(ConfigError, match=message):
            use()


@pytest.mark.parametrize("name", SMALL)
def test_params_compiled_alone_are_the_file_s_own(name: str) -> None:
    own = discover.load("nets", name).Params()
    assert discover.check_params("nets", name, {}) == own.model_dump(mode="json")


def test_params_are_checked_without_torch() -> None:
    script = (
        "import sys; from kdpipe import discover\n"
        "for name in discover.names('nets'): discover.check_params('nets', name, {})\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("name", SMALL)
def test_kaiming_start(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(name, {}, 1, 14)
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
            fan_out = layer.weight.shape[0] * math.prod(layer.kernel_size)
            if layer.weight.numel() > 10_000:
                spread = layer.weight.std().item()
                assert spread == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
            assert layer.bias is None or not layer.bias.any()
        if isinstance(layer, nn.GroupNorm):
            assert (layer.weight == 1).all() and not layer.bias.any()


def test_start_is_seeded_and_optional() -> None:
    def first_weight(init: str) -> torch.Tensor:
        torch.manual_seed(3)
        return next(build_network("unet_tiny", {"init": init}, 1, 2).parameters())

    assert torch.equal(first_weight("kaiming"), first_weight("kaiming"))
    assert not torch.equal(first_weight("kaiming"), first_weight("default"))
    with pytest.raises(ConfigError, match="Valid: default, kaiming"):
        initialise(nn.Conv2d(1, 1, 1), "xavier")
