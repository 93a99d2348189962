"""What the tests of the networks compare with: a small version, published sizes, stages.

Every network of the catalogue has an entry in `ZOO`; the tests in this folder run over it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Stages = dict[str, tuple[int, int | tuple[int, ...]]]


@dataclass(frozen=True)
class Sample:
    """How a network is tested.

    Attributes:
        patch: a patch that fits the default network (sides differ), in its own dimensions.
        stages: stage -> (channels, stride), with default parameters, 14 classes, at `patch`.
        small: parameters of a version that runs in a fraction of a second.
        small_patch: a patch that fits it.
        published: (image channels, classes, patch, parameters, GMACs; None if not published),
            with default parameters; `rel` of the GMACs in tests: 1 %.
        copies: stages that are recorded as copies, since the network overwrites them.
    """

    patch: tuple[int, ...]
    stages: Stages
    small: dict[str, Any]
    small_patch: tuple[int, ...]
    published: tuple[tuple[int, int, tuple[int, ...], int, float | None], ...] = ()
    copies: frozenset[str] = field(default_factory=frozenset)


CUBE = (96, 96, 96)

ZOO: dict[str, Sample] = {}

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
