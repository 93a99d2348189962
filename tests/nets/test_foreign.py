"""Trained networks of other projects: TorchScript, torch.export and MONAI bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_models import (
    PATCH,
    Net,
    basic_unet,
    bundle,
    export,
    images,
    script,
    script_traced,
    trained_net,
)
from torch import Tensor, nn

from kdpipe.engine.taps import TapRecorder, probe
from kdpipe.errors import ConfigError, DataError
from kdpipe.nets._foreign import Foreign
from kdpipe.nets.base import build_network, check_patch, dry_forward, network_stages
from kdpipe.nets.cost import macs, parameters


def test_an_exported_program_gives_its_logits_and_the_features_of_its_modules(
    tmp_path: Path,
) -> None:
    network = trained_net()
    taps = {"enc1": "encoder.0", "pre": "encoder.0.norm:input", "penult": "head:input"}
    params = {"path": export(network, tmp_path / "net.pt2"), "taps": taps, "divisor": 2}
    built = build_network("exported", params, 1, 3)
    stages = network_stages("exported", params)
    places = taps | {"logits": "head"}
    for image in (images(1), images(3)[..., :8]):
        with TapRecorder(built, stages) as mine, TapRecorder(network, places) as original:
            logits = built(image)
            torch.testing.assert_close(logits, network(image))
            features, expected = mine.take(), original.take()
        assert features["logits"] is logits
        for name in places:
            torch.testing.assert_close(features[name], expected[name])
    specs = probe(built, stages, (1, 1, *PATCH))
    assert (specs["enc1"].channels, specs["enc1"].stride) == (4, (2, 2, 2))
    check_patch("exported", params, PATCH)
    with pytest.raises(ConfigError, match=r"multiples of \(2, 2, 2\)"):
        check_patch("exported", params, (8, 12, 15))


@pytest.mark.parametrize("name", ["exported", "torchscript"])
def test_a_program_is_frozen_and_its_cost_is_counted(tmp_path: Path, name: str) -> None:
    network = trained_net()
    write = {"exported": export, "torchscript": script}[name]
    built = build_network(name, {"path": write(network, tmp_path / "net")}, 1, 3)
    assert not any(module.training for module in built.modules())
    assert not any(weight.requires_grad for weight in built.parameters())
    assert dry_forward(built, (1, 1, *PATCH)).shape == (1, 3, *PATCH)
    assert parameters(built) == parameters(network)
    assert macs(built, (1, 1, *PATCH)) == macs(network, (1, 1, *PATCH)) > 0
    torch.testing.assert_close(built(images(2)), network(images(2)))


def test_an_exported_program_follows_its_weights_to_a_device(tmp_path: Path) -> None:
    path = export(trained_net(), tmp_path / "net.pt2")
    built = build_network("exported", {"path": path}, 1, 3).to("meta")
    assert built(images(2).to("meta")).device.type == "meta"


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_fixed_batch_is_filled_up_and_split(tmp_path: Path, size: int) -> None:
    network = trained_net()
    path = export(network, tmp_path / "net.pt2", axes=(2, 3, 4))
    built = build_network("exported", {"path": path}, 1, 3)
    torch.testing.assert_close(built(images(size)), network(images(size)))
    with pytest.raises(ConfigError, match="exported for batches of 2, which taps cannot follow"):
        build_network("exported", {"path": path, "taps": {"enc1": "encoder.0"}}, 1, 3)


def test_torchscript_is_run_in_parts_of_the_batch_it_was_traced_with(tmp_path: Path) -> None:
    class Fixed(Net):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image).reshape(2, 3, *PATCH)

    torch.manual_seed(0)
    network = Fixed().eval()
    path = script_traced(network, tmp_path / "net.pt")
    built = build_network("torchscript", {"path": path, "batch": 2}, 1, 3)
    logits = built(images(3))
    assert logits.shape == (3, 3, *PATCH)
    torch.testing.assert_close(logits[:2], network(images(3)[:2]))
    torch.testing.assert_close(logits[2:], network(images(3)[[2, 2]])[:1])


def test_torchscript_has_its_logits_only(tmp_path: Path) -> None:
    params = {"path": script(trained_net(), tmp_path / "net.pt")}
    built = build_network("torchscript", params, 1, 3)
    with TapRecorder(built, network_stages("torchscript", params)) as recorder:
        logits = built(images(1))
        assert recorder.take() == {"logits": logits}
    for check in (network_stages, lambda name, given: build_network(name, given, 1, 3)):
        with pytest.raises(ConfigError, match=r"\['enc1'\] cannot be recorded.*torch.export"):
            check("torchscript", params | {"taps": {"enc1": "encoder.0"}})


def test_what_does_not_fit_an_exported_program_says_how_to_mend_it(tmp_path: Path) -> None:
    network = trained_net()
    path = export(network, tmp_path / "net.pt2", axes=(0,))
    built = build_network("exported", {"path": path}, 1, 3)
    with pytest.raises(ConfigError, match=r"of \[1, 8, 12, 16\], it is given \[1, 8, 12, 8\]"):
        built(images(1)[..., :8])
    with pytest.raises(ConfigError, match="trained for 1 image channels, the data set has 4"):
        build_network("exported", {"path": path}, 4, 3)
    with pytest.raises(ConfigError, match="trained for 3 classes, the data set has 2"):
        build_network("exported", {"path": path}, 1, 2)(images(1))
    with pytest.raises(ConfigError, match="is for 3D, the patch has 2 sides"):
        build_network("exported", {"path": path}, 1, 3, spatial_dims=2)
    with pytest.raises(ConfigError, match=r"'encoders.0', which .*; near: encoder.0"):
        build_network("exported", {"path": path, "taps": {"enc1": "encoders.0"}}, 1, 3)
    with pytest.raises(ConfigError, match="net.pt is no file; correct its 'path'"):
        build_network("exported", {"path": str(tmp_path / "net.pt")}, 1, 3)
    scripted = script(network, tmp_path / "net.pt")
    with pytest.raises(DataError, match="take the network 'torchscript'"):
        build_network("exported", {"path": scripted}, 1, 3)
    with pytest.raises(DataError, match="take the network 'exported'"):
        build_network("torchscript", {"path": path}, 1, 3)
    path = export(network.train(), tmp_path / "train.pt2")
    with pytest.raises(ConfigError, match=r"was exported in training mode; call network.eval\(\)"):
        build_network("exported", {"path": path}, 1, 3)


@pytest.mark.parametrize(
    ("output", "works"), [(lambda x: [x, x[..., ::2]], True), (lambda x: {"logits": x}, False)]
)
def test_the_first_of_several_outputs_is_the_logits(output: Any, works: bool) -> None:
    class Several(Net):
        def forward(self, image: Tensor) -> Any:
            return output(super().forward(image))

    built = Foreign(Several(), 3)
    if works:
        assert built(images(1)).shape == (1, 3, *PATCH)
    else:
        with pytest.raises(ConfigError, match="gives a dict, not logits"):
            built(images(1))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_monai_bundle_gives_its_network_with_its_weights(tmp_path: Path, wrapped: bool) -> None:
    network = basic_unet()
    weights = {"model": network.state_dict(), "epoch": 3} if wrapped else None
    taps = {"enc1": "conv_0", "bottleneck": "down_4"}
    params = {"path": bundle(tmp_path / "bundle", weights), "taps": taps, "divisor": 16}
    built = build_network("monai_bundle", params, 1, 3)
    image = torch.randn(1, 1, 32, 48, 32)
    stages = network_stages("monai_bundle", params)
    with TapRecorder(built, stages) as mine, TapRecorder(network, taps) as original:
        torch.testing.assert_close(built(image), network(image))
        features, expected = mine.take(), original.take()
    torch.testing.assert_close(features["bottleneck"], expected["bottleneck"])
    specs = probe(built, stages, image.shape)  # on shapes alone
    assert (specs["bottleneck"].channels, specs["bottleneck"].stride) == (8, (16, 16, 16))
    assert not any(weight.requires_grad for weight in built.parameters())
    assert not built.training


def test_what_does_not_fit_a_bundle_says_how_to_mend_it(tmp_path: Path) -> None:
    path = bundle(tmp_path / "bundle", lr=0.1, custom={"_target_": "scripts.net.Net"})

    def build(in_channels: int = 1, classes: int = 3, dims: int = 3, **params: Any) -> nn.Module:
        given = {"path": path} | params
        return build_network("monai_bundle", given, in_channels, classes, dims)

    with pytest.raises(ConfigError, match="trained for 1 image channels, the data set has 2"):
        build(in_channels=2)
    with pytest.raises(ConfigError, match="trained for 3 classes, the data set has 14"):
        build(classes=14)
    with pytest.raises(ConfigError, match="is not for 2D"):
        build(dims=2)
    with pytest.raises(ConfigError, match="no entry 'network': did you mean 'network_def'"):
        build(network="network")
    with pytest.raises(ConfigError, match="'lr' gives a float, no network"):
        build(network="lr")
    with pytest.raises(ConfigError, match="'custom' cannot be built"):
        build(network="custom")
    with pytest.raises(ConfigError, match="'conv_9', which .* near: .*conv_0"):
        build(taps={"enc1": "conv_9"})
    with pytest.raises(ConfigError, match="models/best.pt is not there"):
        build(weights="models/best.pt")
    with pytest.raises(ConfigError, match="is no MONAI bundle: it has none of configs/inference"):
        build(path=str(tmp_path))
    with pytest.raises(ConfigError, match="is no folder; correct its 'path'"):
        build(path=str(tmp_path / "nothing"))
    other = bundle(tmp_path / "other", trained_net().state_dict(), config="train.json")
    with pytest.raises(DataError, match=r"does not hold the weights .* Missing key"):
        build(path=other)
