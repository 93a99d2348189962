"""nnU-Net models as teachers: the same numbers as nnU-Net's own network and preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunet_model import (
    NAME,
    SPACING,
    small_configuration,
    their_network,
    write_model,
    write_weights,
)
from torch import Tensor

from kdpipe.data.preparation.preprocess import prepare_images
from kdpipe.engine.taps import TapRecorder, probe
from kdpipe.errors import ConfigError, DataError
from kdpipe.nets.base import build_network, check_patch, dry_forward, network_stages
from kdpipe.nnunet_plans import preset_from_plans, read_plans
from kdpipe.presets import Rescale, Standardize, Unchanged, Window, ZScore


def theirs(image: Tensor, transpose: tuple[int, ...]) -> Tensor:
    """Turn (B, C, x, y, z) to nnU-Net's order: (z, y, x), then `transpose_forward`."""
    zyx = image.permute(0, 1, 4, 3, 2)
    return zyx.permute(0, 1, *(2 + axis for axis in transpose))


def ours(image: Tensor, transpose: tuple[int, ...]) -> Tensor:
    """Turn back what `theirs` turned."""
    back = np.argsort(transpose)
    return image.permute(0, 1, *(2 + int(axis) for axis in back)).permute(0, 1, 4, 3, 2)


def build(folder: Path, **params: Any) -> torch.nn.Module:
    return build_network("nnunet", {"path": str(folder), **params}, 1, 3)


@pytest.mark.parametrize("transpose", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1)])
@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet"])
def test_logits_and_features_are_those_of_the_network_that_was_trained(
    tmp_path: Path, transpose: tuple[int, ...], kind: str
) -> None:
    folder = write_model(
        tmp_path / "model", settings=small_configuration(kind=kind), transpose=transpose
    )
    weights = write_weights(folder)
    network, their = build(folder), their_network(folder)
    their.load_state_dict(weights)
    patch = preset_from_plans(folder).patch
    stages = network_stages("nnunet", {"path": str(folder)})
    image = torch.randn(2, 1, *patch)
    with TapRecorder(network, stages) as mine, TapRecorder(their, stages) as original:
        logits = network(image)
        expected = their(theirs(image, transpose))
        features, expected_features = mine.take(), original.take()
    torch.testing.assert_close(logits, ours(expected, transpose), rtol=1e-4, atol=1e-5)
    assert logits.shape == (2, 3, *patch)
    for name in stages:
        turned = ours(expected_features[name], transpose)
        torch.testing.assert_close(features[name], turned, rtol=1e-4, atol=1e-5)


def test_stages_and_divisor_follow_the_plans(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")  # position 0, 1, 2 of the network: x, z, y
    write_weights(folder)
    params = {"path": str(folder)}
    network = build(folder)
    specs = probe(network, network_stages("nnunet", params), (1, 1, 8, 16, 32))
    assert {name: (spec.channels, spec.stride) for name, spec in specs.items()} == {
        "enc1": (4, (1, 1, 1)),
        "enc2": (6, (1, 4, 2)),
        "bottleneck": (8, (2, 4, 4)),
        "dec1": (6, (1, 4, 2)),
        "dec2": (4, (1, 1, 1)),
        "pre_act": (4, (1, 1, 1)),
        "penult": (4, (1, 1, 1)),
        "logits": (3, (1, 1, 1)),
    }
    check_patch("nnunet", params, (8, 16, 32))
    with pytest.raises(ConfigError, match=r"multiples of \(2, 4, 4\)"):
        check_patch("nnunet", params, (8, 16, 30))
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())


def test_an_ensemble_averages_logits_and_takes_features_of_its_first_fold(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    for fold in (0, 3, "all"):
        write_weights(folder, fold)
    image = torch.randn(1, 1, *preset_from_plans(folder).patch)
    single = [build(folder, folds=[fold])(image) for fold in (3, 0, "all")]
    params = {"path": str(folder), "folds": [3, 0, "all"], "taps": {"mine": "decoder.stages.0"}}
    network = build_network("nnunet", params, 1, 3)
    with TapRecorder(network, network_stages("nnunet", params)) as taps:
        logits = network(image)
        features = taps.take()
    torch.testing.assert_close(logits, sum(single) / 3)
    assert features["logits"] is logits
    first = build(folder, folds=[3])
    with TapRecorder(first, network_stages("nnunet", {"path": str(folder)})) as taps:
        first(image)
        expected = taps.take()
    torch.testing.assert_close(features["enc2"], expected["enc2"])
    torch.testing.assert_close(features["mine"], expected["dec1"])


def test_a_checkpoint_may_hold_numbers_of_its_log_but_no_objects(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    log = {"ema": np.float64(0.5), "loss": [np.float32(1.0)], "epoch": np.int64(3)}
    write_weights(folder, 0, logging=log, init_args={"device": torch.device("cpu")})
    write_weights(folder, 1, trainer=Path("x"))
    build(folder)
    with pytest.raises(DataError, match="write it anew with its 'network_weights' only"):
        build(folder, folds=[1])


def test_two_dimensional_networks_see_slices_along_z(tmp_path: Path) -> None:
    folder = write_model(
        tmp_path / "model", settings=small_configuration(dims=2), transpose=(0, 2, 1)
    )
    weights = write_weights(folder)
    preset = preset_from_plans(folder)
    assert preset.patch == (16, 8)
    assert preset.spacing == (1.0, 1.2, None)
    network = build_network("nnunet", {"path": str(folder)}, 1, 3, spatial_dims=2)
    their = their_network(folder)
    their.load_state_dict(weights)
    image = torch.randn(2, 1, 16, 8)  # transposed twice: (y, x), and then (x, y) again
    torch.testing.assert_close(network(image), their(image))
    turned = write_model(
        tmp_path / "turned", settings=small_configuration(dims=2), transpose=(2, 0, 1)
    )
    with pytest.raises(ConfigError, match="slices along x"):
        preset_from_plans(turned)


@pytest.mark.parametrize(
    ("labels", "heads"),
    [
        ({"background": 0, "a": 1, "b": 2}, 3),
        ({"background": 0, "a": 1, "b": 2, "ignore": 3}, 3),
        ({"background": 0, "whole": [1, 2], "core": [2]}, 2),
        ({"background": 0, "whole": [1, 2, 3], "core": 3, "ignore": 4}, 2),
        ({"background": 0, "a": [1]}, 2),
    ],
)
def test_heads_are_labels_or_regions(tmp_path: Path, labels: dict[str, Any], heads: int) -> None:
    plans = read_plans(write_model(tmp_path / "model", labels=labels), "3d_fullres")
    assert plans.out_channels == heads


def test_preset_takes_over_spacing_patch_and_the_intensities_of_each_channel(
    tmp_path: Path,
) -> None:
    schemes = {
        "CTNormalization": Standardize(kind="standardize", low=-100, high=200, mean=40, sd=20),
        "ZScoreNormalization": ZScore(kind="zscore", nonzero=True),
        "NoNormalization": Unchanged(kind="unchanged"),
        "RescaleTo01Normalization": Rescale(kind="rescale"),
        "RGBTo01Normalization": Window(kind="window", low=0, high=255),
    }
    settings = {"normalization_schemes": list(schemes), "use_mask_for_norm": [True] * 5}
    folder = write_model(tmp_path / "model", settings=settings)
    preset = preset_from_plans(folder)
    assert preset.spacing == (3.0, 1.2, 1.0)  # the network's order is x, z, y
    assert preset.patch == (4, 8, 16)
    assert preset.orientation is None
    assert preset.image_interpolation == "bspline"
    assert preset.intensity == tuple(schemes.values())
    again = write_model(folder, image_reader_writer="NibabelIOWithReorient")
    assert preset_from_plans(again).orientation == "RAS"
    assert preset_from_plans(again).intensity == schemes["CTNormalization"]


def test_a_configuration_inherits(tmp_path: Path) -> None:
    folder = write_model(
        tmp_path / "model",
        configurations={
            "3d_fullres": small_configuration(),
            "large": {"inherits_from": "middle"},
            "middle": {"inherits_from": "3d_fullres", "patch_size": [8, 16, 16]},
        },
    )
    assert preset_from_plans(folder, "large").patch == (8, 16, 16)
    assert preset_from_plans(folder).patch == (4, 8, 16)


def test_old_plans_give_the_architecture_that_nnunet_derives(tmp_path: Path) -> None:
    handler = pytest.importorskip("nnunetv2.utilities.plans_handling.plans_handler")
    old = small_configuration() | {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 12,
        "n_conv_per_stage_encoder": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "num_pool_per_axis": [1, 2, 2],
    }
    del old["architecture"]
    folder = write_model(
        tmp_path / "model", configurations={"3d_fullres": old}, transpose=(2, 1, 0)
    )
    name, arguments, _ = read_plans(folder, "3d_fullres").architecture()
    with pytest.warns(UserWarning, match="old nnU-Net plans"):
        theirs = handler.ConfigurationManager(dict(old)).configuration["architecture"]
    assert name == theirs["network_class_name"]
    expected = {key: value for key, value in theirs["arch_kwargs"].items() if value is not None}
    assert arguments == expected  # transposed to x, y, z already


def test_what_does_not_fit_says_how_to_mend_it(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"fold_0/checkpoint_final.pth is not there.*: none"):
        build(folder)
    write_weights(folder)
    with pytest.raises(ConfigError, match="to what there is: fold_0/checkpoint_final.pth"):
        build(folder, folds=["all"])
    params = {"path": str(folder)}
    with pytest.raises(ConfigError, match="trained for 1 image channels, the data set has 2"):
        build_network("nnunet", params, 2, 3)
    with pytest.raises(ConfigError, match="trained for 3 classes .* the data set has 5"):
        build_network("nnunet", params, 1, 5)
    with pytest.raises(ConfigError, match="is 3D, the patch has 2 sides"):
        build_network("nnunet", params, 1, 3, spatial_dims=2)
    with pytest.raises(ConfigError, match="no configuration '3d_fulres': did you mean '3d_fullre"):
        build(folder, configuration="3d_fulres")
    with pytest.raises(ConfigError, match=r"'encoder.stage.1', which.* near: encoder.stages.1"):
        build(folder, taps={"mine": "encoder.stage.1"})
    with pytest.raises(ConfigError, match="must be the folder of a trained nnU-Net v2 model"):
        build(tmp_path)
    other = write_model(
        tmp_path / "other", settings=small_configuration(kind="ResidualEncoderUNet")
    )
    (other / "fold_0").symlink_to(folder / "fold_0")
    with pytest.raises(ConfigError, match="was not trained with the architecture in"):
        build(other)
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"cut")
    with pytest.raises(DataError, match="not readable as an nnU-Net v2 checkpoint"):
        build(folder)


def test_models_that_cannot_be_reproduced_are_refused(tmp_path: Path) -> None:
    cascade = write_model(tmp_path / "cascade", settings={"previous_stage": "3d_lowres"})
    with pytest.raises(ConfigError, match="second stage of a cascade"):
        read_plans(cascade, "3d_fullres")
    architecture = small_configuration()["architecture"]
    architecture["network_class_name"] = "dynamic_network_architectures.architectures.primus.Primus"
    primus = write_model(tmp_path / "primus", settings={"architecture": architecture})
    with pytest.raises(ConfigError, match=r"Primus' is none of .*torch.export"):
        build(primus)
    scheme = {"normalization_schemes": ["MyOwn"], "use_mask_for_norm": [False]}
    with pytest.raises(ConfigError, match="'MyOwn' of channel 0 is not nnU-Net's own"):
        preset_from_plans(write_model(tmp_path / "own", settings=scheme))
    broken = write_model(tmp_path / "broken")
    (broken / "plans.json").write_text('{"configurations": {"3d_fullres": {}}}')
    with pytest.raises(DataError, match="has no 'transpose_forward'"):
        read_plans(broken, "3d_fullres")


@pytest.mark.slow
def test_logits_equal_those_of_nnunet_for_a_fold_and_an_ensemble(trained_nnunet: Path) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False)
    predictor.initialize_from_trained_model_folder(
        str(trained_nnunet), (0, 1), "checkpoint_final.pth"
    )
    transpose = tuple(predictor.plans_manager.transpose_forward)
    assert transpose == (2, 0, 1)
    image = torch.randn(1, 1, *preset_from_plans(trained_nnunet).patch)
    expected = []
    for weights in predictor.list_of_parameters:
        predictor.network.load_state_dict(weights)
        with torch.inference_mode():
            logits = predictor.network.eval()(theirs(image, transpose))
        expected.append(ours(logits, transpose))
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)
    for folds, logits in (([0], expected[0]), ([1], expected[1]), ([0, 1], sum(expected) / 2)):
        network = build(trained_nnunet, folds=folds)
        torch.testing.assert_close(network(image), logits, rtol=1e-4, atol=1e-5)
        assert dry_forward(network, image.shape).shape == logits.shape
    build(trained_nnunet, checkpoint="checkpoint_best.pth")


@pytest.mark.slow
def test_preset_prepares_a_case_as_nnunet_does(trained_nnunet: Path) -> None:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    file = trained_nnunet.parents[2] / "raw" / NAME / "imagesTr" / "case_0_0000.nii.gz"
    manager = PlansManager(str(trained_nnunet / "plans.json"))
    prepared, _, _ = DefaultPreprocessor(verbose=False).run_case(
        [str(file)],
        None,
        manager,
        manager.get_configuration("3d_fullres"),
        str(trained_nnunet / "dataset.json"),
    )
    expected = ours(torch.from_numpy(prepared)[None], tuple(manager.transpose_forward))[0]
    preset = preset_from_plans(trained_nnunet)
    assert preset.spacing == pytest.approx(SPACING)
    image, _ = prepare_images([sitk.ReadImage(str(file))], preset)
    np.testing.assert_allclose(image, expected.numpy(), rtol=1e-5, atol=1e-5)
