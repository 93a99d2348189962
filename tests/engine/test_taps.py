"""Taps: the network's own tensors, nothing changed by looking, and errors that name the mend."""

from __future__ import annotations

import copy

import pytest
import torch
from nets.zoo import ZOO, networks
from torch import Tensor, nn

from kdpipe.engine.taps import TapRecorder, probe
from kdpipe.errors import ConfigError
from kdpipe.methods.base import TapSpec
from kdpipe.nets.base import build_network, network_stages

every_network = pytest.mark.parametrize("name", networks())
TINY = ZOO["unet_tiny"].small


def small_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_network(name, ZOO[name].small, 1, 3, len(ZOO[name].small_patch))


class Toy(nn.Module):
    """Has what makes recording hard: batch norm, dropout, an in-place change, an unused part."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, stride=(2, 1), padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.pair = nn.Identity()
        self.unused = nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        stem = self.stem(image)
        stem += 1
        x = self.drop(self.norm(stem))
        self.pair((x, x))
        return self.head(x)


@every_network
def test_output_and_gradients_stay_the_same_to_the_bit(name: str) -> None:
    network = small_network(name)
    state = copy.deepcopy(network.state_dict())
    weights = dict(network.named_parameters())
    image = torch.randn(2, 1, *ZOO[name].small_patch)

    def run() -> tuple[Tensor, tuple[Tensor | None, ...]]:
        torch.manual_seed(1)  # of dropout
        network.load_state_dict(state)  # running averages
        output = network(image)
        loss = output.square().sum()
        return output, torch.autograd.grad(loss, list(weights.values()), allow_unused=True)

    plain, plain_gradients = run()
    with TapRecorder(network, network_stages(name, ZOO[name].small)) as taps:
        tapped, tapped_gradients = run()
        assert taps.take()["logits"] is tapped
    assert torch.equal(plain, tapped)
    for key, before, after in zip(weights, plain_gradients, tapped_gradients, strict=True):
        assert (before is None and after is None) or torch.equal(before, after), key


@every_network
def test_recorded_tensors_are_the_network_s_own(name: str) -> None:
    """Each tap shares memory with what the module gives, but for the copies that are declared."""
    network = small_network(name).eval()
    stages = network_stages(name, ZOO[name].small)
    own: dict[str, Tensor] = {}
    for place in stages.values():
        network.get_submodule(place.partition(":")[0]).register_forward_hook(
            lambda _, given, output, place=place: own.update(
                {place: given[0] if place.endswith(":input") else output}
            )
        )
    with torch.no_grad(), TapRecorder(network, stages) as taps:
        network(torch.randn(1, 1, *ZOO[name].small_patch))
        found = taps.take()
    assert list(found) == list(stages)
    copies = {stage for stage, place in stages.items() if place.endswith(":copy")}
    assert copies == ZOO[name].copies
    for stage, place in stages.items():
        assert (found[stage].data_ptr() == own[place].data_ptr()) == (stage not in copies), stage


@every_network
def test_copies_are_of_tensors_that_are_overwritten(name: str) -> None:
    network = small_network(name).eval()
    stages = network_stages(name, ZOO[name].small)
    for stage in ZOO[name].copies:
        with TapRecorder(network, {stage: stages[stage].removesuffix(":copy")}) as taps:
            network(torch.randn(1, 1, *ZOO[name].small_patch))
            with pytest.raises(ConfigError, match=f"'{stage}' was overwritten"):
                taps.take()


def test_only_the_wanted_taps_are_recorded_in_their_order_and_once() -> None:
    network = build_network("unet_tiny", TINY, 1, 3)
    stages = network_stages("unet_tiny", TINY)
    with TapRecorder(network, stages, ("penult", "enc1", "penult")) as taps:
        network(torch.randn(1, 1, 16, 16, 16))
        assert list(taps.features) == ["penult", "enc1"]
    hooks = [module._forward_hooks or module._forward_pre_hooks for module in network.modules()]
    assert not any(hooks)
    with TapRecorder(network, stages, ()) as taps:
        network(torch.randn(1, 1, 16, 16, 16))
        assert taps.features == {}


def test_gradient_of_a_feature_reaches_the_layers_before_it_only() -> None:
    network = Toy()
    with TapRecorder(network, {"deep": "norm"}) as taps:
        network(torch.randn(2, 1, 8, 8))
        taps.take()["deep"].square().mean().backward()
    assert network.norm.weight.grad is not None and network.norm.weight.grad.any()
    assert network.head.weight.grad is None


def test_take_forgets_and_features_keeps() -> None:
    network = Toy()
    taps = TapRecorder(network, {"logits": "head"})
    first = network(torch.zeros(1, 1, 8, 8))
    assert taps.features["logits"] is taps.features["logits"] is first
    assert taps.take()["logits"] is first
    with pytest.raises(ConfigError, match="'logits' was not passed"):
        taps.take()
    second = network(torch.zeros(1, 1, 8, 8))
    assert taps.take()["logits"] is second
    taps.remove()
    network(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ConfigError, match="was not passed"):
        taps.take()


def test_a_deep_copy_is_not_recorded() -> None:
    network = Toy()
    taps = TapRecorder(network, {"logits": "head"})
    average = copy.deepcopy(network)
    output = network(torch.zeros(1, 1, 8, 8))
    average(torch.ones(1, 1, 8, 8))
    assert taps.take()["logits"] is output


def test_overwritten_tap_is_an_error_and_copy_mends_it() -> None:
    network, image = Toy().eval(), torch.randn(1, 1, 8, 8)
    with TapRecorder(network, {"stem": "stem"}) as taps:
        network(image)
        with pytest.raises(ConfigError, match="'stem' was overwritten.*':copy'"):
            taps.take()
    with TapRecorder(network, {"stem": "stem:copy"}) as taps:
        network(image)
        found = taps.take()["stem"]
    assert torch.equal(found, network.stem(image))


def test_inference_mode_can_be_recorded() -> None:
    network = Toy().eval()
    with torch.inference_mode(), TapRecorder(network, {"logits": "head"}) as taps:
        output = network(torch.zeros(1, 1, 8, 8))
        assert taps.take()["logits"] is output


def test_unknown_tap_lists_the_valid_ones() -> None:
    network = build_network("unet_tiny", TINY, 1, 3)
    stages = network_stages("unet_tiny", TINY)
    with pytest.raises(ConfigError, match="'bottlneck'.*did you mean 'bottleneck'.*enc1.*penult"):
        TapRecorder(network, stages, ("enc1", "bottlneck"))
    assert not any(module._forward_hooks for module in network.modules())
    with pytest.raises(ConfigError, match="'corrected'.*Valid: .*dec1"):
        TapRecorder(network, stages, ("corrected",))


def test_wrong_stage_tables_are_errors() -> None:
    network = Toy()
    with pytest.raises(ConfigError, match="'enc1': the network has no module 'stam'"):
        TapRecorder(network, {"enc1": "stam"})
    with pytest.raises(ConfigError, match="'enc1' was not passed"):
        probe(network, {"enc1": "unused"}, (1, 1, 8, 8))
    with pytest.raises(ConfigError, match="'enc1' at 'pair' gives a tuple"):
        probe(network, {"enc1": "pair"}, (1, 1, 8, 8))
    flat = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten())
    with pytest.raises(ConfigError, match=r"'enc1' at '1' has shape \(1, 128\)"):
        probe(flat, {"enc1": "1"}, (1, 1, 8, 8))


def test_probe_measures_each_axis() -> None:
    found = probe(Toy(), {"enc1": "norm", "in": "stem:input", "logits": "head"}, (3, 1, 8, 6))
    assert found == {
        "enc1": TapSpec(4, (2.0, 1.0)),
        "in": TapSpec(1, (1.0, 1.0)),
        "logits": TapSpec(2, (2.0, 1.0), is_logits=True),
    }


def test_probe_leaves_no_trace() -> None:
    network = Toy()
    network.drop.eval()
    state = copy.deepcopy(network.state_dict())
    random = torch.get_rng_state()
    probe(network, {"enc1": "norm"}, (1, 1, 8, 8))
    assert network.training and network.norm.training and not network.drop.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_probe_restores_modes_after_an_error() -> None:
    network = Toy()
    with pytest.raises(RuntimeError):
        probe(network, {"enc1": "norm"}, (1, 5, 8, 8))
    assert network.training and not network.norm._forward_hooks


def test_a_last_decoder_stage_is_the_logits_only_where_it_is_the_same_tensor() -> None:
    shape = (1, 1, 16, 16, 16)
    unet = build_network("unet_tiny", {}, 1, 16)
    specs = probe(unet, network_stages("unet_tiny", {}), shape)
    assert [name for name, spec in specs.items() if spec.is_logits] == ["dec3", "logits"]
    same_shape = build_network("segresnet", {}, 1, 16)  # 16 channels before the head and after it
    specs = probe(same_shape, network_stages("segresnet", {}), shape)
    assert (specs["dec3"].channels, specs["dec3"].stride) == (16, specs["logits"].stride)
    assert [name for name, spec in specs.items() if spec.is_logits] == ["logits"]
