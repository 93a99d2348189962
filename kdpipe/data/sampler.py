"""Training crops as a function of (seed, epoch, index), so that they can be replayed.

Which case is drawn, where it is cropped and how it is changed depend on nothing else: not on the
method, the number of workers, or where an interrupted training went on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from kdpipe.config import Augmentation
from kdpipe.data.store import StoredCase


@dataclass(frozen=True)
class CropRecipe:
    """How crops are drawn. `patch` in voxels; `foreground` is the share centred on structures."""

    patch: tuple[int, ...]
    foreground: float
    augmentation: Augmentation
    seed: int


class CropDataset(Dataset[dict[str, Tensor]]):
    """Random crops of prepared cases, addressed by ``(epoch, index)``.

    An item is ``{"image": (C, *S) float32, "label": (*S) int64}``.
    """

    def __init__(self, store: Path, cases: Sequence[str], num_classes: int, recipe: CropRecipe):
        self.cases = [StoredCase(store / case) for case in cases]
        self.classes = range(1, num_classes)
        self.recipe = recipe
        self._augment = _augmentation(recipe.augmentation, len(recipe.patch))
        self._voxels: dict[int, list[np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = key
        number = self._case_number(epoch, index)
        rng = np.random.default_rng([self.recipe.seed, epoch, index])
        image, label = self.cases[number].crop(self._corner(number, rng), self.recipe.patch)
        item = {
            "image": torch.from_numpy(np.ascontiguousarray(image, np.float32)),
            "label": torch.from_numpy(np.ascontiguousarray(label, np.int64)[None]),
        }
        self._augment.set_random_state(seed=int(rng.integers(2**31)))
        item = self._augment(item)
        return {"image": item["image"], "label": item["label"][0].long()}

    def _case_number(self, epoch: int, index: int) -> int:
        """Walk through a fresh order of all cases as often as an epoch needs."""
        walk, place = divmod(index, len(self.cases))
        order = np.random.default_rng([self.recipe.seed, epoch, walk, 1]).permutation(len(self))
        return int(order[place])

    def _foreground(self, number: int) -> list[np.ndarray]:
        """Sampled voxels ``(N, 3)`` of each structure that the case has, read once."""
        if number not in self._voxels:
            case = self.cases[number]
            self._voxels[number] = [case.foreground(c) for c in self.classes if c in case.classes]
        return self._voxels[number]

    def _corner(self, number: int, rng: np.random.Generator) -> tuple[int, ...]:
        """First voxel of a crop; crops stay inside the volume where it is large enough."""
        shape, patch = self.cases[number].shape, self.recipe.patch
        structures = self._foreground(number)
        if structures and rng.random() < self.recipe.foreground:
            voxels = structures[rng.integers(len(structures))]
            centre = voxels[rng.integers(len(voxels))]
            wanted = [int(c) - side // 2 for c, side in zip(centre, patch, strict=True)]
        else:
            wanted = [
                int(rng.integers(max(size - side, 0) + 1))
                for size, side in zip(shape, patch, strict=True)
            ]
        return tuple(
            min(max(first, 0), size - side) if size >= side else (size - side) // 2
            for first, size, side in zip(wanted, shape, patch, strict=True)
        )


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Yield the keys of each batch from `start` (a global step) to the last."""

    def __init__(self, start: int, epochs: int, steps_per_epoch: int, batch_size: int):
        self.steps = range(start, epochs * steps_per_epoch)
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            epoch, place = divmod(step, self.steps_per_epoch)
            first = place * self.batch_size
            yield [(epoch, index) for index in range(first, first + self.batch_size)]


def _augmentation(settings: Augmentation, dims: int) -> Any:
    """Build MONAI's transforms; those of probability 0 are left out."""
    from monai import transforms
    from monai.data.meta_obj import set_track_meta

    set_track_meta(False)  # plain tensors: no bookkeeping of affines that nobody reads
    steps: list[Any] = []
    both, image = ["image", "label"], ["image"]
    if settings.affine_probability > 0:
        angle = float(np.deg2rad(settings.rotation_degrees))
        steps.append(
            transforms.RandAffined(
                both,
                prob=settings.affine_probability,
                rotate_range=[angle] * (dims if dims == 3 else 1),
                scale_range=[settings.zoom] * dims,
                mode=["bilinear", "nearest"],
                padding_mode="border",
            )
        )
    if settings.flip_probability > 0:
        for axis in settings.flip_axes:
            steps.append(transforms.RandFlipd(both, settings.flip_probability, axis))
    if settings.intensity_probability > 0:
        chance = settings.intensity_probability
        steps += [
            transforms.RandScaleIntensityd(image, settings.intensity_scale, chance),
            transforms.RandShiftIntensityd(image, settings.intensity_shift, prob=chance),
            transforms.RandGaussianNoised(image, chance, std=settings.noise_sd),
        ]
    return transforms.Compose(steps)
