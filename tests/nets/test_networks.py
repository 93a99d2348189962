"""All networks of the catalogue: published sizes, stages where they are documented, patches."""

from __future__ import annotations

import ast
import io
import math
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from nets.zoo import ZOO, Sample, networks
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

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

every_network = pytest.mark.parametrize("name", networks())
STAGE = re.compile(
    r"(enc|dec)[1-9]\d*|bottleneck|penult|pre_act|corrected|correction|logits"
    r"|x\d_\d"  # nodes between encoder and decoder, in UNet++
)


class ShapesOnly(TorchFunctionMode):
    """Weights are made without memory: drawing a hundred million of them takes seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        changed = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **changed})


def default_network(name: str, inputs: int, classes: int, dims: int) -> nn.Module:
    with ShapesOnly():
        return build_network(name, {}, inputs, classes, spatial_dims=dims)


def small_network(name: str, inputs: int = 1, classes: int = 3, seed: int = 0) -> nn.Module:
    sample = ZOO[name]
    torch.manual_seed(seed)
    return build_network(name, sample.small, inputs, classes, len(sample.small_patch))


def dims_of(name: str) -> tuple[int, ...]:
    """The spatial dimensions that the default network can be built for."""
    if hasattr(discover.load("nets", name), "fixed_patch"):
        return (len(ZOO[name].patch),)
    return tuple(discover.constant("nets", name, "DIMS", (2, 3)))


def named_patch(error: pytest.ExceptionInfo[ConfigError]) -> tuple[int, ...]:
    """The last patch that a message names: the one that fits."""
    patch: tuple[int, ...] = ast.literal_eval(re.findall(r"\([\d, ]+\)", str(error.value))[-1])
    return patch


def test_every_network_has_a_sample() -> None:
    names = discover.names("nets")
    untrained = [n for n in names if not discover.constant("nets", n, "TRAINED", False)]
    assert untrained == sorted(ZOO)


@every_network
def test_documentation_says_what_it_is_in_a_line_and_where_it_comes_from(name: str) -> None:
    first, second, *rest = discover.docstring("nets", name).splitlines()
    assert first.endswith(".") and second == ""
    assert any(line.startswith("Source") for line in rest)


# --- what the documentation states --------------------------------------------------------------


@every_network
def test_published_cost(name: str) -> None:
    for inputs, classes, patch, count, gmacs in ZOO[name].published:
        network = default_network(name, inputs, classes, len(patch))
        assert parameters(network) == count
        if gmacs is not None:
            found = macs(network, (1, inputs, *patch)) / 1e9
            assert found == pytest.approx(gmacs, rel=1e-2)


@every_network
def test_stages_have_the_documented_shape(name: str) -> None:
    for dims in dims_of(name):
        sample = ZOO[name]
        network = default_network(name, 1, 14, dims)
        patch = (sample.patch + sample.patch[-1:])[:dims]
        found = probe(network, network_stages(name, {}), (1, 1, *patch))
        shapes = {stage: (spec.channels, spec.stride) for stage, spec in found.items()}
        assert shapes == expected_stages(sample, dims)
        assert found["logits"].is_logits


def expected_stages(sample: Sample, dims: int) -> dict[str, tuple[int, tuple[float, ...]]]:
    stages = sample.stages | (sample.flat if dims == 2 else {})
    return {
        stage: (channels, (stride,) * dims if isinstance(stride, int) else stride[:dims])
        for stage, (channels, stride) in stages.items()
    }


@every_network
def test_stages_are_named_and_ordered_as_the_contract_says(name: str) -> None:
    strides = {stage: entry[1] for stage, entry in expected_stages(ZOO[name], 2).items()}
    assert all(STAGE.fullmatch(stage) for stage in strides)
    for kind in ("enc", "dec"):
        numbered = sorted((s for s in strides if s.startswith(kind)), key=lambda s: int(s[3:]))
        assert numbered == [f"{kind}{level}" for level in range(1, len(numbered) + 1)]
        finest_first = numbered if kind == "enc" else numbered[::-1]
        sizes = [math.prod(strides[stage]) for stage in finest_first]
        assert sizes == sorted(sizes)


@every_network
def test_dimensions_that_a_network_is_not_for(name: str) -> None:
    for dims in {2, 3} - set(dims_of(name)):
        with pytest.raises(ConfigError, match=rf"{name}.*{dims}"):
            build_network(name, {}, 1, 2, spatial_dims=dims)
        with pytest.raises(ConfigError, match=name):
            check_patch(name, {}, (64,) * dims)


# --- forward and backward -----------------------------------------------------------------------


@every_network
@pytest.mark.parametrize(("inputs", "classes"), [(1, 14), (4, 3)])
def test_forward_and_backward_of_a_small_patch(name: str, inputs: int, classes: int) -> None:
    sample = ZOO[name]
    network = small_network(name, inputs, classes)
    logits = network(torch.randn(2, inputs, *sample.small_patch))
    assert logits.shape == (2, classes, *sample.small_patch)
    logits.square().mean().backward()
    for key, weight in network.named_parameters():
        unused = key.startswith(sample.unused)
        assert (weight.grad is None) == unused, key
        assert unused or torch.isfinite(weight.grad).all(), key


@every_network
def test_dry_forward_gives_the_real_shape_without_touching_the_network(name: str) -> None:
    network = small_network(name)
    network.eval()
    next(network.children()).train()
    modes = [module.training for module in network.modules()]
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    random = torch.get_rng_state()
    output = dry_forward(network, (1, 1, *ZOO[name].small_patch))
    assert output.is_meta or getattr(network, "needs_values", False)
    assert output.shape == (1, 3, *ZOO[name].small_patch)
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())


@every_network
def test_start_is_seeded_and_weights_can_be_stored(name: str) -> None:
    network = small_network(name, seed=3)
    state = network.state_dict()
    again, other = small_network(name, seed=3), small_network(name, seed=4)
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert any(not torch.equal(value, state[key]) for key, value in other.state_dict().items())

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    image = torch.randn(1, 1, *ZOO[name].small_patch)
    with torch.no_grad():
        assert torch.equal(other.eval()(image), network.eval()(image))


# --- patches ------------------------------------------------------------------------------------


@every_network
def test_a_patch_that_does_not_fit_names_one_that_does(name: str) -> None:
    patch = ZOO[name].patch
    check_patch(name, {}, patch)
    check_patch(name, ZOO[name].small, ZOO[name].small_patch)
    with pytest.raises(ConfigError, match=f"{name}.*patch") as error:
        check_patch(name, {}, (patch[0] + 1, *patch[1:]))
    fitting = fixed_or(named_patch(error), name)
    check_patch(name, {}, fitting)
    network = default_network(name, 1, 2, len(patch))
    assert dry_forward(network, (1, 1, *fitting)).shape == (1, 2, *fitting)


def fixed_or(named: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The one patch of a network with positions, whose message names the preset's patch last."""
    module = discover.load("nets", name)
    return module.fixed_patch(module.Params()) if hasattr(module, "fixed_patch") else named


@every_network
def test_a_patch_that_shrinks_to_one_voxel_names_a_longer_one(name: str) -> None:
    module, dims = discover.load("nets", name), len(ZOO[name].patch)
    if hasattr(module, "fixed_patch"):
        return
    given = module.divisor(module.Params())
    smallest = (given,) * dims if isinstance(given, int) else tuple(given)
    with pytest.raises(ConfigError, match="single voxel") as error:
        check_patch(name, {}, smallest)
    longer = named_patch(error)
    check_patch(name, {}, longer)
    network = default_network(name, 1, 2, dims)
    assert dry_forward(network, (1, 1, *longer)).shape == (1, 2, *longer)


def test_divisor_follows_depth() -> None:
    deeper = {"channels": [4, 8, 8, 8, 8], "strides": [2, 2, 2, 2]}
    with pytest.raises(ConfigError, match=r"multiples of \(16, 16, 16\)"):
        check_patch("unet_tiny", deeper, (24, 32, 32))
    with pytest.raises(ConfigError, match=r"multiples of \(4, 4\).*\(28, 32\)"):
        check_patch("segresnet", {"blocks_down": [1, 1, 1], "blocks_up": [1, 1]}, (26, 32))


# --- parameters ---------------------------------------------------------------------------------


@every_network
def test_unknown_parameters_and_starts_are_errors(name: str) -> None:
    for params in ({"chanels": 3}, {"init": "xavier"}):
        key = next(iter(params))
        for use in (
            lambda params=params: build_network(name, params, 1, 2),
            lambda params=params: network_stages(name, params),
            lambda params=params: check_patch(name, params, ZOO[name].patch),
        ):
            with pytest.raises(ConfigError, match=f"{name}.*{key}"):
                use()


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("unet_tiny", {"channels": [4, 8, 16]}, "need 2 strides"),
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


@pytest.mark.parametrize("name", discover.names("nets"))
def test_params_compiled_alone_are_the_file_s_own(name: str) -> None:
    required = {"path": "a"} if discover.constant("nets", name, "TRAINED", False) else {}
    own = discover.load("nets", name).Params(**required)
    assert discover.check_params("nets", name, required) == own.model_dump(mode="json")


def test_params_are_checked_without_torch() -> None:
    script = (
        "import sys; from kdpipe import discover\n"
        "for name in discover.names('nets'): discover.describe_params('nets', name)\n"
        "discover.check_params('nets', 'unet_tiny', {})\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# --- start weights ------------------------------------------------------------------------------


@every_network
def test_kaiming_start(name: str) -> None:
    torch.manual_seed(0)
    sample = ZOO[name]
    params = {**sample.small, "init": "kaiming"}
    network = build_network(name, params, 1, 14, len(sample.small_patch))
    for layer in network.modules():
        if isinstance(layer, nn.modules.conv._ConvNd):
            assert relative_spread(layer) == pytest.approx(1, abs=6 / layer.weight.numel() ** 0.5)
            assert layer.bias is None or not layer.bias.any()
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm | nn.modules.batchnorm._NormBase):
            assert layer.weight is None or (layer.weight == 1).all()
            assert layer.bias is None or not layer.bias.any()


def relative_spread(layer: nn.modules.conv._ConvNd) -> float:
    """Root mean square of a layer's weights, of the one that variance 2 / fan_out means."""
    fan_out = layer.weight.shape[0] * math.prod(layer.kernel_size)
    return math.sqrt(layer.weight.square().mean().item() * fan_out / 2)


def test_kaiming_is_optional() -> None:
    def first_weight(init: str) -> Tensor:
        torch.manual_seed(3)
        return next(build_network("unet_tiny", {"init": init}, 1, 2).parameters())

    assert not torch.equal(first_weight("kaiming"), first_weight("default"))
    with pytest.raises(ConfigError, match="Valid: default, kaiming"):
        initialise(nn.Conv2d(1, 1, 1), "xavier")


# --- of single networks -------------------------------------------------------------------------


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


ANISOTROPIC = [[2, 2, 1], [2, 2, 2], 2]


@pytest.mark.parametrize("upsampling", ["transposed", "interpolate"])
@pytest.mark.parametrize("name", ["res_unet", "unet", "unet_tiny"])
def test_strides_may_differ_by_axis(name: str, upsampling: str) -> None:
    own = {"channels": [4, 8, 12, 16]}
    if name == "unet":
        own = {"width": 4, "depth": 4, "upsampling": upsampling}
    params = {**own, "strides": ANISOTROPIC}
    check_patch(name, params, (16, 24, 8))
    with pytest.raises(ConfigError, match=r"multiples of \(8, 8, 4\).*\(16, 24, 8\)"):
        check_patch(name, params, (16, 24, 6))
    with pytest.raises(ConfigError, match="for 3 axes, the patch .* has 2"):
        check_patch(name, params, (16, 24))

    network = build_network(name, params, 1, 3)
    found = probe(network, network_stages(name, params), (1, 1, 16, 24, 8))
    assert found["bottleneck"].stride == (8, 8, 4)
    assert found["logits"].stride == (1, 1, 1)
    levels = [spec.stride for spec in found.values()]
    assert (2, 2, 1) in levels and (4, 4, 2) in levels
    assert network(torch.randn(1, 1, 16, 24, 8)).shape == (1, 3, 16, 24, 8)


@pytest.mark.parametrize(
    ("strides", "message"),
    [
        ([[2, 2, 1], 2], "4 (channels|levels) need 3 strides"),
        ([[2, 2, 1], [2, 2], 2], "give one an axis"),
        ([[2, 2, 0], 2, 2], "1 or more"),
        ([[], 2, 2], "1 or more"),
    ],
)
@pytest.mark.parametrize(("name", "own"), [("unet_tiny", {}), ("unet", {"depth": 4})])
def test_wrong_strides(name: str, own: dict[str, Any], strides: list[Any], message: str) -> None:
    params = {**own, "strides": strides}
    for use in (
        lambda: build_network(name, params, 1, 2),
        lambda: network_stages(name, params),
        lambda: check_patch(name, params, (16, 16, 16)),
    ):
        with pytest.raises(ConfigError, match=message):
            use()


def test_strides_of_other_axes_than_the_image() -> None:
    with pytest.raises(ConfigError, match="have 2 axes"):
        build_network("unet_tiny", {"strides": ANISOTROPIC}, 1, 2, spatial_dims=2)


@pytest.mark.parametrize("name", ["res_unet", "segresnet"])
def test_correction_is_the_residual_branch(name: str) -> None:
    """corrected = x + f(x), where x enters the block and correction is f(x)."""
    network = small_network(name).eval()
    stages = network_stages(name, ZOO[name].small)
    stages["x"] = f"{stages['corrected']}:input"
    with torch.no_grad(), TapRecorder(network, stages, ("x", "corrected", "correction")) as taps:
        network(torch.randn(1, 1, 16, 16, 16))
        found = taps.take()
    torch.testing.assert_close(found["corrected"], found["x"] + found["correction"])
    assert found["x"].abs().max() > 0


def test_pre_act_of_the_tiny_unet_precedes_norm_and_activation() -> None:
    network = small_network("unet_tiny").eval()
    stages = network_stages("unet_tiny", ZOO["unet_tiny"].small)
    adn = network.get_submodule(stages["dec2"]).get_submodule("adn")
    with torch.no_grad(), TapRecorder(network, stages, ("pre_act", "dec2")) as taps:
        network(torch.randn(1, 1, 16, 16, 16))
        found = taps.take()
        assert torch.equal(adn(found["pre_act"]), found["dec2"])
    assert not torch.equal(found["pre_act"], found["dec2"])


def test_macs_of_single_layers() -> None:
    shape = (2, 3, 8, 8)
    assert macs(nn.Conv2d(3, 5, 3, padding=1), shape) == 2 * 8 * 8 * 5 * 3 * 9
    # each of the 8x8 input pixels meets each of the 2x2 weights once
    assert macs(nn.ConvTranspose2d(3, 5, 2, stride=2), shape) == 2 * 8 * 8 * 3 * 5 * 4
    assert macs(nn.Sequential(nn.Flatten(), nn.Linear(192, 7)), shape) == 2 * 192 * 7
    assert macs(nn.ReLU(), shape) == 0
