"""Models of nnU-Net, small: written by hand, or of nnU-Net's own making in seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

from kdpipe.nnunet_plans import read_plans

NAME = "Dataset900_Tiny"
CASES = [f"case_{number}" for number in range(5)]
SPACING = (3.0, 1.0, 1.2)  # x is the coarsest, so nnU-Net moves it to the front
SIZE = (20, 36, 32)


def small_configuration(dims: int = 3, kind: str = "PlainConvUNet") -> dict[str, Any]:
    """A configuration in nnU-Net's order of axes, with sides that all differ."""
    convs = "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"
    kernels, strides = [[1, 3, 3], [3, 3, 3], [3, 3, 3]], [[1, 1, 1], [1, 2, 4], [2, 2, 1]]
    return {
        "patch_size": [4, 16, 8][3 - dims :],
        "spacing": [3.0, 1.0, 1.2][3 - dims :],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"order": 3},
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
            "arch_kwargs": {
                "n_stages": 3,
                "features_per_stage": [4, 6, 8],
                "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
                "kernel_sizes": [kernel[3 - dims :] for kernel in kernels],
                "strides": [stride[3 - dims :] for stride in strides],
                convs: [1, 2, 2],
                "n_conv_per_stage_decoder": [1, 2],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }


def write_model(
    folder: Path,
    *,
    settings: dict[str, Any] | None = None,
    transpose: tuple[int, ...] = (2, 0, 1),
    labels: dict[str, Any] | None = None,
    **plan: Any,
) -> Path:
    """Write plans.json and dataset.json as nnU-Net does."""
    channels = (settings or {}).get("normalization_schemes", ["CTNormalization"])
    configurations = {"3d_fullres": small_configuration() | (settings or {})}
    intensities = {"percentile_00_5": -100.0, "percentile_99_5": 200.0, "mean": 40.0, "std": 20.0}
    plans = {
        "transpose_forward": list(transpose),
        "image_reader_writer": "SimpleITKIO",
        "foreground_intensity_properties_per_channel": {
            str(channel): intensities for channel in range(len(channels))
        },
        "configurations": configurations,
    } | plan
    dataset = {
        "channel_names": {str(number): "CT" for number in range(len(channels))},
        "labels": labels or {"background": 0, "liver": 1, "tumour": 2},
    }
    folder.mkdir(exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


def write_weights(folder: Path, fold: int | str = 0, **more: Any) -> dict[str, Tensor]:
    """Write a checkpoint of random weights, in nnU-Net's order of axes, and return them."""
    network = their_network(folder)
    file = folder / f"fold_{fold}" / "checkpoint_final.pth"
    file.parent.mkdir()
    torch.save({"network_weights": network.state_dict(), **more}, file)
    return network.state_dict()


def their_network(folder: Path) -> torch.nn.Module:
    """Build a model's network by the package alone, in nnU-Net's order of axes."""
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    plans = read_plans(folder, "3d_fullres")
    architecture = plans.settings["architecture"]
    arguments = dict(architecture["arch_kwargs"])
    for name in architecture["_kw_requires_import"]:
        kind = arguments[name]
        arguments[name] = None if kind is None else getattr(torch.nn, kind.rpartition(".")[2])
    network = getattr(unet, architecture["network_class_name"].rpartition(".")[2])(
        input_channels=plans.in_channels, num_classes=plans.out_channels, **arguments
    )
    return network.eval()


@contextmanager
def trained_model(base: Path) -> Iterator[Path]:
    """Yield a model folder of nnU-Net's own making: planned, preprocessed, two folds of two steps.

    Its images and labels lie in ``base/raw/NAME``.
    """
    folders = {f"nnUNet_{name}": str(base / name) for name in ("raw", "preprocessed", "results")}
    settings = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "false"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (folders | settings).items():
            patch.setenv(name, value)
        write_cases(base / "raw" / NAME)
        plans = plan_and_preprocess(base)
        patch.setenv("nnUNet_n_proc_DA", "0")  # augment in this process; planning refuses 0
        for fold in (0, 1):
            train(base / "preprocessed" / NAME, plans, fold)
        yield base / "results" / NAME / "nnUNetTrainer__nnUNetPlans__3d_fullres"


def write_cases(folder: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case in CASES:
        label = np.zeros(SIZE, np.uint8)
        label[5:15, 8:24, 6:20] = 1
        label[8:12, 12:18, 10:16] = 2
        image = -200 + 150.0 * label + random.normal(0, 30, SIZE)
        for file, voxels in ((f"imagesTr/{case}_0000", image), (f"labelsTr/{case}", label)):
            written = sitk.GetImageFromArray(voxels.transpose(2, 1, 0).astype(np.int16))
            written.SetSpacing(SPACING)
            sitk.WriteImage(written, str(folder / f"{file}.nii.gz"))
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "organ": 1, "tumour": 2},
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))


def plan_and_preprocess(base: Path) -> dict[str, Any]:
    """Let nnU-Net plan; keep its plans but for a network and patch that train in seconds."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    api.extract_fingerprint_dataset(900, num_processes=1, verbose=False, show_progress_bar=False)
    api.plan_experiment_dataset(900)
    preprocessed, raw = base / "preprocessed" / NAME, base / "raw" / NAME
    plans: dict[str, Any] = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    settings = plans["configurations"]["3d_fullres"]
    small = small_configuration()
    arguments = settings["architecture"]["arch_kwargs"]
    arguments.update(
        {name: small["architecture"]["arch_kwargs"][name] for name in ("kernel_sizes", "strides")},
        n_stages=3,
        features_per_stage=[4, 6, 8],
        n_conv_per_stage=[1, 2, 2],
        n_conv_per_stage_decoder=[1, 2],
    )
    settings.update(patch_size=[8, 16, 32], batch_size=2)
    manager = PlansManager(plans)
    folder = preprocessed / settings["data_identifier"]
    folder.mkdir(exist_ok=True)
    for case in CASES:  # in this process: nnU-Net's pool would start Python anew
        DefaultPreprocessor(verbose=False).run_case_save(
            str(folder / case),
            [str(raw / "imagesTr" / f"{case}_0000.nii.gz")],
            str(raw / "labelsTr" / f"{case}.nii.gz"),
            manager,
            manager.get_configuration("3d_fullres"),
            str(raw / "dataset.json"),
        )
    return plans


def train(preprocessed: Path, plans: dict[str, Any], fold: int) -> None:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    dataset = json.loads((preprocessed / "dataset.json").read_text())
    trainer = nnUNetTrainer(
        plans=plans | {"continue_training": False},
        configuration="3d_fullres",
        fold=fold,
        dataset_json=dataset,
        device=torch.device("cpu"),
    )
    trainer.num_epochs = 1
    trainer.num_iterations_per_epoch = 2
    trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()
