"""A raw scan to its label file: a student in each engine, beside what one would deploy instead.

Usage: python bench/shipped.py [--rounds 5] [--json FILE]

The peers are the teacher, in torch and in onnxruntime, and nnU-Net's predictor with the network
that it plans by default, without mirroring and with its fastest resampling. All read the same NIfTI
file, resample to the same spacing, slide the same patch with the same overlap and write a label
map.
Weights are random: they change no time. Networks are loaded before the clock starts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from side_by_side import Row, in_turns, main, ratio, shown

STAGE = "shipped"
SIZE, SPACING = (192, 192, 48), (1.0, 1.0, 2.5)
PREPARED, PATCH, OVERLAP, CLASSES = (1.5, 1.5, 1.5), (96, 96, 96), 0.5, 14
STUDENT: tuple[str, dict[str, Any]] = ("unet_tiny", {})
TEACHER: tuple[str, dict[str, Any]] = ("segresnet", {"init_filters": 32})
LOW, HIGH = -175.0, 250.0
WINDOWS = 8
"""For the calibration of 8-bit weights."""

Way = Callable[[Path, Path], object]


def scan(folder: Path) -> Path:
    """Write a CT of smooth noise."""
    draw = np.random.default_rng(0)
    coarse = torch.from_numpy(draw.normal(0, 200, (1, 1, 12, 24, 24)))
    voxels = torch.nn.functional.interpolate(coarse, SIZE[::-1], mode="trilinear")[0, 0]
    image = sitk.GetImageFromArray(voxels.numpy().astype(np.int16))
    image.SetSpacing(SPACING)
    file = folder / "scan_0000.nii.gz"
    sitk.WriteImage(image, str(file))
    return file


def trained(name: str, params: dict[str, Any]) -> Any:
    """A network of the catalogue as a study would have trained it, with random weights."""
    from kdpipe.discover import check_params
    from kdpipe.infer.model import TrainedModel
    from kdpipe.nets.base import build_network

    torch.manual_seed(0)
    network = build_network(name, params, 1, CLASSES).eval().requires_grad_(False)
    spec = {
        "name": name, "params": check_params("nets", name, params), "in_channels": 1,
        "out_channels": CLASSES,
    }  # fmt: skip
    run = {
        "cell": {}, "network": spec, "targets": {"n_labels": CLASSES, "regions": None},
        "patch": list(PATCH),
    }  # fmt: skip
    preset = {
        "orientation": "RAS", "spacing": list(PREPARED), "image_interpolation": "bspline",
        "intensity": {"kind": "window", "low": LOW, "high": HIGH}, "crop_foreground": False,
    }  # fmt: skip
    labels = {"raw": {str(i): f"label_{i}" for i in range(CLASSES)}}
    return TrainedModel(network, run, {"channels": ["CT"], "labels": labels, "preset": preset})


def ways_of(
    name: str, params: dict[str, Any], engines: Sequence[str], folder: Path
) -> dict[str, Way]:
    """A network in several engines, from a raw file to a label file."""
    from kdpipe.infer.description import Description
    from kdpipe.infer.engine import openvino_network
    from kdpipe.ship.forms import int8, onnx

    model = trained(name, params)
    description = Description.of_run(model.run, model.preparation, overlap=OVERLAP)
    windows = [
        np.random.default_rng(i).random(description.window[1:], np.float32) for i in range(WINDOWS)
    ]
    ways: dict[str, Way] = {}
    for engine in engines:
        if engine == "torch":
            network: Any = model.network
        elif engine == "openvino":
            network = openvino_network(model.network, description.window, "fp32")
        else:
            form = {"onnxruntime": onnx, "onnxruntime int8": int8}[engine]
            file = folder / f"{name}.{form.FILE}"
            form.write(model, description, file, windows)
            network, _ = form.read(file, torch.device("cpu"))
        ways[engine] = partial(segmented, network, description)
    return ways


def segmented(network: Any, description: Any, file: Path, out: Path) -> None:
    """What `kdpipe predict` does with each scan."""
    from kdpipe.images.files import write_nifti
    from kdpipe.infer.segment import segment

    image = sitk.ReadImage(str(file))
    write_nifti(segment([image], network, description, torch.device("cpu"), window_batch=1), out)


def nnunet(folder: Path) -> Way:
    """nnU-Net's predictor, one file in one process."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.manual_seed(0)
    features = [32, 64, 128, 256, 320]
    network = PlainConvUNet(
        1, 5, features, torch.nn.Conv3d, 3, [1, 2, 2, 2, 2], 2, CLASSES, 2, conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )  # fmt: skip
    network.decoder.deep_supervision = False
    manager = PlansManager(PLANS)
    predictor = nnUNetPredictor(
        tile_step_size=1 - OVERLAP, use_gaussian=True, use_mirroring=False,
        device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False,
    )  # fmt: skip
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {f"organ{i}": i for i in range(1, CLASSES)},
        "file_ending": ".nii.gz",
    }
    predictor.manual_initialization(
        network.eval(), manager, manager.get_configuration("3d_fullres"), [network.state_dict()],
        dataset, "nnUNetTrainer", None,
    )  # fmt: skip

    def predict(file: Path, out: Path) -> None:
        predictor.predict_from_files_sequential(
            [[str(file)]], [str(folder / out.name.removesuffix(".nii.gz"))]
        )

    return predict


_LINEAR = {"is_seg": False, "force_separate_z": False}
PLANS: dict[str, Any] = {
    "dataset_name": "Dataset900_Bench",
    "plans_name": "nnUNetPlans",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "image_reader_writer": "SimpleITKIO",
    "foreground_intensity_properties_per_channel": {
        "0": {"percentile_00_5": LOW, "percentile_99_5": HIGH, "mean": 50.0, "std": 100.0}
    },
    "configurations": {
        "3d_fullres": {
            "data_identifier": "bench",
            "architecture": {},  # the network is built here
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": list(PATCH),
            "spacing": list(PREPARED),
            "normalization_schemes": ["CTNormalization"],
            "use_mask_for_norm": [False],
            "resampling_fn_data": "resample_torch_fornnunet",
            "resampling_fn_seg": "resample_torch_fornnunet",
            "resampling_fn_data_kwargs": _LINEAR,
            "resampling_fn_seg_kwargs": _LINEAR | {"is_seg": True},
            "resampling_fn_probabilities": "resample_torch_fornnunet",
            "resampling_fn_probabilities_kwargs": _LINEAR,
        }
    },
}


def rows(rounds: int = 5) -> list[Row]:
    """Each engine of the student beside each peer."""
    from kdpipe.engine.device import keep_freed_memory

    keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        folder = Path(temporary)
        file = scan(folder)
        engines = ("torch", "onnxruntime", "openvino", "onnxruntime int8")
        students = ways_of(*STUDENT, engines, folder)
        teachers = ways_of(*TEACHER, ("torch", "onnxruntime"), folder)
        ways = {f"student, {engine}": way for engine, way in students.items()}
        ways |= {f"teacher, {engine}": way for engine, way in teachers.items()}
        ways["nnU-Net's predictor"] = nnunet(folder)
        out = folder / "labels.nii.gz"
        seconds = in_turns({name: partial(way, file, out) for name, way in ways.items()}, rounds)
    x, y, z = SIZE
    work = f"raw NIfTI {x}x{y}x{z} to label file, 14 classes"
    peers = [f"teacher, {engine}" for engine in teachers] + ["nnU-Net's predictor"]
    return [
        Row(
            STAGE, f"{work}; student {STUDENT[0]}, {engine}", shown(seconds[f"student, {engine}"]),
            _named(peer), shown(seconds[peer]), ratio(seconds, f"student, {engine}", peer),
            note="random weights",
        )
        for engine in engines
        for peer in peers
    ]  # fmt: skip


def _named(peer: str) -> str:
    if peer.startswith("teacher"):
        return peer.replace("teacher", f"the teacher {TEACHER[0]} (init_filters 32)")
    return "nnU-Net 2.8's predictor, its default network, no mirroring, torch resampling"


if __name__ == "__main__":
    main(rows, ("onnxruntime", "openvino", "nnunetv2"))
