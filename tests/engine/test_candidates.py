"""``kdpipe taps``: the places of a network, under the names that a configuration takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from foreign_models import PATCH, bundle, export, script, trained_net
from nnunet_model import write_model, write_weights
from torch import Tensor, nn

from kdpipe import cli
from kdpipe.engine.candidates import Candidate, candidates, describe_candidates
from kdpipe.errors import ConfigError
from kdpipe.nets.base import build_network, network_stages
from kdpipe.nnunet_plans import preset_from_plans


class Several(nn.Module):
    """Modules that give maps, one that gives a pair, one a vector, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 6, 3, stride=(2, 4), padding=1)
        self.pair = Pair()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.unused = nn.Conv2d(1, 1, 1)
        self.up = nn.Upsample(scale_factor=(4.0, 8.0))

    def forward(self, image: Tensor) -> Tensor:
        features, _ = self.pair(self.down(image))
        self.flat(self.pool(features))
        return self.up(features)


class Pair(nn.Module):
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return image, image


def test_candidates_are_the_maps_in_the_order_of_a_forward_pass() -> None:
    network = Several()
    assert candidates(network, (1, 1, 16, 24)) == [
        Candidate("down", 6, (8, 6), (2, 4)),
        Candidate("pool", 6, (1, 1), (16, 24)),
        Candidate("up", 6, (32, 48), (0.5, 0.5)),
    ]
    assert not any(module._forward_hooks for module in network.modules())


def rows(text: str) -> dict[str, list[str]]:
    """Module path -> channels, sides, stride and stage of a table."""
    head, *lines = text.splitlines()
    assert re.split(r" {2,}", head) == ["module path", "channels", "sides", "stride", "stage"]
    return {path: rest for path, *rest in (re.split(r" {2,}", line) for line in lines)}


@pytest.mark.parametrize("patch", [(16, 32), (16, 32, 48)])
def test_a_table_names_the_stages_of_a_network(patch: tuple[int, ...]) -> None:
    found = rows(describe_candidates("unet_tiny", patch, 1, 2))
    places = network_stages("unet_tiny", {})
    sides = "x".join(str(side // 4) for side in patch)
    assert found[places["enc2"]] == ["64", sides, "x".join("4" * len(patch)), "enc2"]
    named = {
        stage for _, _, _, *stages in found.values() for stage in ", ".join(stages).split(", ")
    }
    inner = {stage for stage, place in places.items() if place.partition(":")[0]}
    assert {stage.partition(" ")[0] for stage in named - {""}} == inner


def test_parameters_reach_the_network() -> None:
    entry = "{unet_tiny: {channels: [4, 8, 16], strides: [2, 2]}, as: small}"
    found = rows(describe_candidates(entry, (16, 16, 16), 2, 5))
    stages = network_stages("unet_tiny", {"channels": [4, 8, 16], "strides": [2, 2]})
    assert found[stages["enc1"]][:3] == ["4", "8x8x8", "2x2x2"]


@pytest.mark.parametrize("kind", ["exported", "monai_bundle"])
def test_paths_are_as_the_parameter_taps_takes_them(kind: str, tmp_path: Path) -> None:
    if kind == "exported":
        path, patch, taps = export(trained_net(), tmp_path / "net.pt2"), PATCH, "encoder.0"
    else:
        path, patch, taps = bundle(tmp_path / "net"), (32, 32, 32), "conv_0"
    found = rows(describe_candidates(f"{{{kind}: {{path: {path}}}}}", patch, 1, 3))
    for place in found:
        params = {"path": path, "taps": {"mine": place}}
        build_network(kind, params, 1, 3)  # which checks them
    again = f"{{{kind}: {{path: {path}, taps: {{mine: {taps}, before: '{taps}:input'}}}}}}"
    assert rows(describe_candidates(again, patch, 1, 3))[taps][-1] == "mine, before (input)"


def test_an_ensemble_of_nnunet_shows_its_first_fold(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    for fold in (0, 1):
        write_weights(folder, fold)
    entry = f"{{nnunet: {{path: {folder}, folds: [%s], taps: {{mine: decoder.stages.1}}}}}}"
    patch = preset_from_plans(folder).patch
    one, two = (rows(describe_candidates(entry % folds, patch, 1, 3)) for folds in ("0", "1, 0"))
    assert one == two
    assert one["decoder.stages.1"][-1] == "dec2, mine"


def test_a_compiled_program_has_no_places(tmp_path: Path) -> None:
    path = script(trained_net(), tmp_path / "net.pt")
    text = describe_candidates(f"{{torchscript: {{path: {path}}}}}", PATCH, 1, 3)
    assert text.splitlines()[1:] == ["none: the modules of this network cannot be observed"]


@pytest.mark.parametrize(
    ("entry", "patch", "message"),
    [
        ("unet_tinny", "16 16 16", "unknown net 'unet_tinny': did you mean 'unet_tiny'"),
        ("{unet_tiny: {chanels: [4]}}", "16 16 16", "unknown key 'chanels', did you mean 'chan"),
        ("{unet_tiny: 5}", "16 16 16", "is no network of a configuration: params: .*dictionary"),
        ("{unet_tiny: {}, unet: {}}", "16 16", "no network .*one name with parameters"),
        ("", "16 16", "'' is no network of a configuration"),
        ("[", "16 16", r"'\[' is no network of a configuration"),
        ("unet_tiny", "16 16 15", r"multiples of \(8, 8, 8\).*take \(16, 16, 16\)"),
        ("unet_tiny", "0 16 16", r"take \(8, 16, 16\)"),
        ("unet_tiny", "16", "is for 2 or 3D, the patch has 1 sides"),
        ("{exported: {path: nowhere.pt2}}", "16 16 16", "nowhere.pt2 is no file"),
    ],
)
def test_what_is_wrong_ends_with_code_2(
    entry: str, patch: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["taps", entry, "--patch", *patch.split()]) == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)


def test_a_stage_that_is_not_in_the_network_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from kdpipe.engine import candidates as module

    monkeypatch.setattr(module, "network_stages", lambda *_: {"enc1": "model.99"})
    with pytest.raises(ConfigError, match="tap 'enc1': the network has no module 'model.99'"):
        describe_candidates("unet_tiny", (16, 16, 16), 1, 2)


def test_listing_leaves_the_random_state_of_building_alone() -> None:
    torch.manual_seed(0)
    network = build_network("unet_tiny", {}, 1, 2)
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    candidates(network, (1, 1, 16, 16, 16))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
