"""What the tests of the networks compare with: a small version, published sizes, stages.

Every network of the catalogue has a `Sample`: an entry in `ZOO`, or, as `kdpipe new net` writes it,
`SAMPLE` in its own ``test_<network>.py``. The tests in this folder run over all of them.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from nets.sample import Sample, Stages


def _samples_of_test_files() -> dict[str, Sample]:
    return {
        file.stem.removeprefix("test_"): importlib.import_module(f"nets.{file.stem}").SAMPLE
        for file in sorted(Path(__file__).parent.glob("test_*.py"))
        if "\nSAMPLE = " in file.read_text(encoding="utf-8")
    }


CUBE = (96, 96, 96)

ZOO: dict[str, Sample] = _samples_of_test_files()


def networks() -> list[Any]:
    """Return the names in `ZOO` for ``pytest.mark.parametrize``."""
    return [pytest.param(name, marks=_skip_without(sample.needs)) for name, sample in ZOO.items()]


def _skip_without(package: str) -> list[pytest.MarkDecorator]:
    missing = package != "" and importlib.util.find_spec(package) is None
    return [pytest.mark.skip(reason=f"needs {package}")] if missing else []


ZOO["res_unet"] = Sample(
    patch=(32, 48, 64),
    stages={
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
    small={"channels": [8, 16, 24, 32]},
    small_patch=(16, 24, 16),
    published=(
        (1, 14, CUBE, 18_992_149, 88.612),
        (1, 17, CUBE, 19_005_034, 91.980),
        (4, 3, CUBE, 18_959_430, 81.087),
    ),
)

ZOO["segresnet"] = Sample(
    patch=(32, 48, 64),
    stages={
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
    small={"init_filters": 8, "blocks_down": [1, 1, 1, 1]},
    small_patch=(16, 24, 16),
    published=(
        (1, 14, CUBE, 4_701_118, 61.450),
        (1, 17, CUBE, 4_701_169, 61.493),
        (4, 3, CUBE, 4_702_227, 62.441),
    ),
    copies=frozenset({"correction"}),
)

ZOO["unet_tiny"] = Sample(
    patch=(32, 48, 64),
    stages={
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
    small={"channels": [4, 8, 12, 16]},
    small_patch=(16, 24, 16),
    published=(
        (1, 14, CUBE, 1_961_012, 8.122),
        (1, 17, CUBE, 1_966_199, 8.695),
        (4, 3, CUBE, 1_944_585, 6.306),
    ),
)

ZOO["espnetv2"] = Sample(
    patch=(32, 48, 64),
    stages={
        "enc1": (32, 2),
        "enc2": (64, 4),
        "enc3": (128, 8),
        "bottleneck": (256, 16),
        "dec1": (64, 8),
        "dec2": (48, 4),
        "dec3": (32, 2),
        "pre_act": (32, 2),
        "penult": (32, 2),
        "logits": (14, 1),
    },
    small={"channels": [16, 32, 48, 64], "blocks": [1, 1], "decoder_channels": [12, 8, 8]},
    small_patch=(16, 32, 16),
    published=(
        (1, 14, CUBE, 284_438, 0.854),
        (1, 17, CUBE, 286_187, 0.923),
        (4, 3, CUBE, 279_262, 0.752),
    ),
    unused=("unused_activations",),
)

ZOO["mobile_unet"] = Sample(
    patch=(32, 64, 96),
    stages={
        "enc1": (16, 2),
        "enc2": (24, 4),
        "enc3": (32, 8),
        "enc4": (96, 16),
        "bottleneck": (1280, 32),
        "dec1": (96, 16),
        "dec2": (32, 8),
        "dec3": (24, 4),
        "dec4": (16, 2),
        "dec5": (16, 1),
        "pre_act": (16, 1),
        "penult": (16, 1),
        "logits": (14, 1),
    },
    small={"width": 0.25, "expansion": 2},
    small_patch=(32, 64, 32),
    published=(
        (1, 14, CUBE, 13_883_132, 2.348),
        (1, 17, CUBE, 13_883_183, 2.390),
        (4, 3, CUBE, 13_883_131, 2.211),
    ),
    unused=("unused_shortcuts",),
)

ZOO["lcovnet"] = Sample(
    patch=(32, 48, 64),
    stages={
        "enc1": (16, 1),
        "enc2": (32, 2),
        "enc3": (64, 4),
        "enc4": (128, 8),
        "bottleneck": (256, 16),
        "dec1": (128, 8),
        "dec2": (64, 4),
        "dec3": (32, 2),
        "dec4": (16, 1),
        "pre_act": (16, 1),
        "penult": (16, 1),
        "logits": (14, 1),
    },
    small={"channels": [4, 6, 8]},
    small_patch=(4, 16, 12),
    published=(
        (1, 14, CUBE, 815_984, 10.98),
        (1, 17, CUBE, 816_704, 11.02),
        (4, 3, CUBE, 813_488, 10.95),
    ),
    unused=("unused_heads",),
)

NNUNET_STAGES: Stages = {
    "enc1": (32, 1),
    "enc2": (64, 2),
    "enc3": (128, 4),
    "enc4": (256, 8),
    "enc5": (320, 16),
    "bottleneck": (320, 32),
    "dec1": (320, 16),
    "dec2": (256, 8),
    "dec3": (128, 4),
    "dec4": (64, 2),
    "dec5": (32, 1),
    "pre_act": (32, 1),
    "penult": (32, 1),
    "logits": (14, 1),
}
NNUNET_FLAT: Stages = {"enc5": (512, 16), "bottleneck": (512, 32), "dec1": (512, 16)}

ZOO["dynunet"] = Sample(
    patch=(64, 96, 128),
    stages=NNUNET_STAGES,
    flat=NNUNET_FLAT,
    small={"strides": [2, 2], "channels": [4, 8, 12]},
    small_patch=(8, 12, 16),
    published=((1, 14, CUBE, 31_189_806, None),),
)

ZOO["resenc_unet"] = Sample(
    patch=(64, 96, 128),
    stages=NNUNET_STAGES,
    flat=NNUNET_FLAT,
    small={"strides": [2, 2], "channels": [4, 8, 12], "blocks": [1, 2, 1]},
    small_patch=(8, 12, 16),
    published=((1, 14, CUBE, 102_348_622, None),),
    needs="dynamic_network_architectures",
)

ZOO["swin_unetr"] = Sample(
    patch=(64, 96, 128),
    stages={
        "enc1": (48, 1),
        "enc2": (48, 2),
        "enc3": (96, 4),
        "enc4": (192, 8),
        "enc5": (384, 16),
        "bottleneck": (768, 32),
        "dec1": (384, 16),
        "dec2": (192, 8),
        "dec3": (96, 4),
        "dec4": (48, 2),
        "dec5": (48, 1),
        "pre_act": (48, 1),
        "corrected": (48, 1),
        "correction": (48, 1),
        "penult": (48, 1),
        "logits": (14, 1),
    },
    small={"feature_size": 12, "depths": [1, 1, 1, 2], "window": 2},
    small_patch=(32, 32, 64),
    # 62.19 M is what papers state for BTCV and BraTS
    published=((1, 14, CUBE, 62_187_296, None), (4, 3, CUBE, 62_191_941, None)),
    copies=frozenset({"correction"}),
)

ZOO["unetr"] = Sample(
    patch=CUBE,
    stages={
        "enc1": (16, 1),
        "enc2": (32, 2),
        "enc3": (64, 4),
        "enc4": (128, 8),
        "bottleneck": (768, 16),
        "dec1": (128, 8),
        "dec2": (64, 4),
        "dec3": (32, 2),
        "dec4": (16, 1),
        "pre_act": (16, 1),
        "corrected": (16, 1),
        "correction": (16, 1),
        "penult": (16, 1),
        "logits": (14, 1),
    },
    small={"patch": [32, 32, 48], "feature_size": 4, "hidden": 24, "mlp": 48, "heads": 2},
    small_patch=(32, 32, 48),
    published=((1, 14, CUBE, 92_784_046, None),),
    copies=frozenset({"correction"}),
)

ZOO["enet"] = Sample(
    patch=(64, 96, 32),
    stages={
        "enc1": (16, 2),
        "enc2": (64, 4),
        "enc3": (128, 8),
        "bottleneck": (128, 8),
        "dec1": (64, 4),
        "dec2": (16, 2),
        "dec3": (14, 1),
        "pre_act": (16, 2),
        "corrected": (16, 2),
        "correction": (16, 2),
        "penult": (16, 2),
        "logits": (14, 1),
    },
    small={"channels": [8, 12, 16]},
    small_patch=(32, 48, 32),
    # the release in Caffe states 0.36 M for Cityscapes
    published=((3, 19, (512, 1024), 363_618, None),),
)

ZOO["erfnet"] = Sample(
    patch=(64, 96, 32),
    stages={
        "enc1": (16, 2),
        "enc2": (64, 4),
        "bottleneck": (128, 8),
        "dec1": (64, 4),
        "dec2": (16, 2),
        "dec3": (14, 1),
        "pre_act": (16, 2),
        "corrected": (16, 2),
        "correction": (16, 2),
        "penult": (16, 2),
        "logits": (14, 1),
    },
    small={"channels": [8, 12, 16]},
    small_patch=(32, 48, 32),
    # Graph Flow states 2.063 M, with the 258 parameters of the classifier on the encoder
    published=((1, 2, (256, 256), 2_062_872, None),),
)

ZOO["deeplabv3plus"] = Sample(
    patch=(64, 96, 32),
    stages={
        "enc1": (64, 2),
        "enc2": (256, 4),
        "enc3": (512, 8),
        "enc4": (1024, 16),
        "bottleneck": (2048, 16),
        "dec1": (256, 16),
        "dec2": (256, 4),
        "pre_act": (256, 4),
        "penult": (256, 4),
        "logits": (14, 1),
    },
    small={"encoder": "resnet18", "width": 8, "channels": 16, "rates": [1, 2]},
    small_patch=(32, 48, 32),
)

ZOO["pspnet"] = Sample(
    patch=(64, 96, 32),
    stages={
        "enc1": (64, 2),
        "enc2": (256, 4),
        "enc3": (512, 8),
        "enc4": (1024, 8),
        "bottleneck": (2048, 8),
        "dec1": (512, 8),
        "pre_act": (512, 8),
        "penult": (512, 8),
        "logits": (14, 1),
    },
    small={"encoder": "resnet18", "width": 8, "bins": [1, 2, 3]},
    small_patch=(32, 48, 32),
)

ZOO["unet"] = Sample(
    patch=(32, 48, 64),
    stages={
        "enc1": (64, 1),
        "enc2": (128, 2),
        "enc3": (256, 4),
        "enc4": (512, 8),
        "bottleneck": (1024, 16),
        "dec1": (512, 8),
        "dec2": (256, 4),
        "dec3": (128, 2),
        "dec4": (64, 1),
        "pre_act": (64, 1),
        "penult": (64, 1),
        "logits": (14, 1),
    },
    small={"width": 4, "depth": 3, "upsampling": "transposed"},
    small_patch=(8, 12, 16),
    published=((1, 2, (384, 384), 34_525_954, 146.9),),
)

ZOO["unetpp"] = Sample(
    patch=(32, 48, 64),
    stages={
        "enc1": (64, 1),
        "enc2": (128, 2),
        "enc3": (256, 4),
        "enc4": (512, 8),
        "bottleneck": (1024, 16),
        "dec1": (512, 8),
        "dec2": (256, 4),
        "dec3": (128, 2),
        "dec4": (64, 1),
        "x0_1": (64, 1),
        "x0_2": (64, 1),
        "x0_3": (64, 1),
        "x1_1": (128, 2),
        "x1_2": (128, 2),
        "x2_1": (256, 4),
        "pre_act": (64, 1),
        "penult": (64, 1),
        "logits": (14, 1),
    },
    small={"width": 4, "depth": 3},
    small_patch=(8, 12, 16),
    published=((1, 2, (384, 384), 36_628_546, 309.9),),
)

ZOO["resnet18"] = Sample(
    patch=(64, 96, 128),
    stages={
        "enc1": (64, 2),
        "enc2": (64, 4),
        "enc3": (128, 8),
        "enc4": (256, 16),
        "bottleneck": (512, 32),
        "pre_act": (512, 32),
        "penult": (512, 32),
        "logits": (14, 1),
    },
    small={"width": 8, "output_stride": 8},
    small_patch=(16, 24, 16),
    published=((1, 2, (384, 384), 11_177_538, 5.33),),
)

ZOO["unet_resnet"] = Sample(
    patch=(64, 96, 128),
    stages={
        "enc1": (64, 2),
        "enc2": (64, 4),
        "enc3": (128, 8),
        "enc4": (256, 16),
        "bottleneck": (512, 32),
        "dec1": (256, 16),
        "dec2": (128, 8),
        "dec3": (64, 4),
        "dec4": (32, 2),
        "pre_act": (32, 2),
        "penult": (32, 2),
        "logits": (14, 1),
    },
    small={"width": 8, "full_resolution": True},
    small_patch=(64, 96),
    published=((1, 2, (384, 384), 15_100_642, 12.24),),
)

ZOO["mobilenetv2"] = Sample(
    patch=(32, 48, 64),
    stages={
        "enc1": (16, 2),
        "enc2": (24, 2),
        "enc3": (32, 4),
        "enc4": (96, 4),
        "bottleneck": (320, 8),
        "pre_act": (1280, 8),
        "penult": (1280, 8),
        "logits": (14, 1),
    },
    small={"width": 0.25},
    small_patch=(16, 24, 16),
    published=((1, 2, (384, 384), 2_226_434, 9.57),),
)
