"""Patches a second of one core against MONAI's data sets; `data.py` prepares the case.

Both sides load in this process, with one thread, timed by the processor's clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import Row, in_turns, ratio

from kdpipe.data.crops.sampler import CropDataset, CropRecipe
from kdpipe.data.store import N_FOREGROUND
from kdpipe.data.targets import Targets
from kdpipe.settings import Augmentation

CLASSES, CROP, PATCHES = 14, (96, 96, 96), 20


def _some(voxels: Any) -> Any:
    """As many as kdpipe keeps; MONAI copies the list for each crop."""
    return voxels[:: max(1, len(voxels) // N_FOREGROUND)]


def _monai_transforms(augmentation: Augmentation, tuned: bool) -> list[Any]:
    """The same augmentation; foreground voxels are listed once, as MONAI advises."""
    from monai import transforms as t

    both, image, chance = ["image", "label"], ["image"], augmentation.intensity_probability
    return [
        t.LoadImaged(both, reader="NumpyReader", image_only=True),
        t.EnsureChannelFirstd(both, channel_dim="no_channel"),
        t.FgBgToIndicesd("label"),
        *([t.Lambdad(["label_fg_indices", "label_bg_indices"], _some)] if tuned else []),
        t.RandCropByPosNegLabeld(
            both, "label", CROP, 1, 1, 1,
            fg_indices_key="label_fg_indices", bg_indices_key="label_bg_indices",
        ),
        t.RandAffined(
            both, prob=augmentation.affine_probability, mode=["bilinear", "nearest"],
            rotate_range=[float(np.deg2rad(augmentation.rotation_degrees))] * 3,
            scale_range=[augmentation.zoom] * 3, padding_mode="border",
        ),
        *[t.RandFlipd(both, augmentation.flip_probability, axis) for axis in range(3)],
        t.RandScaleIntensityd(image, augmentation.intensity_scale, chance),
        t.RandShiftIntensityd(image, augmentation.intensity_shift, prob=chance),
        t.RandGaussianNoised(image, chance, std=augmentation.noise_sd),
    ]  # fmt: skip


def loader_rows(image: np.ndarray, label: np.ndarray, folder: Path, rounds: int) -> list[Row]:
    """Patches a second of one core, in this process."""
    from monai.data import CacheDataset, PersistentDataset

    augmentation = Augmentation()
    recipe = CropRecipe(CROP, 0.5, augmentation, 0)
    ours = CropDataset(folder, ["kdpipe"], Targets(CLASSES), recipe)
    np.save(folder / "image.npy", image[0])
    np.save(folder / "label.npy", label)
    files = [{key: str(folder / f"{key}.npy") for key in ("image", "label")}]
    tuned, plain = (_monai_transforms(augmentation, tuned) for tuned in (True, False))
    made: dict[str, Callable[[], Any]] = {
        "MONAI CacheDataset, tuned (no copies, 5000 voxels)": lambda: CacheDataset(
            files, tuned, progress=False, copy_cache=False
        ),
        "MONAI PersistentDataset, tuned": lambda: PersistentDataset(
            files, tuned, folder / "persistent"
        ),
        "MONAI CacheDataset, its defaults": lambda: CacheDataset(files, plain, progress=False),
    }
    data, warm = {}, {}
    for name, make in made.items():
        begin = time.process_time()
        data[name] = make()
        data[name][0]
        warm[name] = time.process_time() - begin
    epoch = iter(range(10**6))

    def mine() -> None:
        number = next(epoch)
        for index in range(PATCHES):
            ours[number, index]

    ways: dict[str, Callable[[], object]] = {
        "kdpipe": mine,
    }
    for name, theirs in data.items():
        ways[name] = lambda theirs=theirs: [theirs[0] for _ in range(PATCHES)]  # type: ignore
    mine()  # as the others: compiled loops are loaded
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers of a loader
    seconds = in_turns(ways, rounds, time.process_time)
    torch.set_num_threads(threads)
    rates = {name: PATCHES / np.median(found) for name, found in seconds.items()}
    return [
        Row("loader", "patches of 96³ a second and core, augmented", f"{rates['kdpipe']:.0f} /s",
            name, f"{rates[name]:.0f} /s", ratio(seconds, "kdpipe", name), 3,
            "numpy's uniform draws for the noise are a tenth of ours",
            "bits of MONAI's transforms", f"{warm[name]:.1f} s a case before the first crop")
        for name in warm
    ]  # fmt: skip
