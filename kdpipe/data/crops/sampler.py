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

from kdpipe.data.store import StoredCase
from kdpipe.data.targets import Targets
from kdpipe.settings import Augmentation


@dataclass(frozen=True)
class CropRecipe:
    """How crops are drawn. `patch` in voxels; `foreground` is the share centred on structures.

    A patch of two sides cuts slices along the third axis.
    """

    patch: tuple[int, ...]
    foreground: float
    augmentation: Augmentation
    seed: int


class CropDataset(Dataset[dict[str, Tensor]]):
    """Random crops of prepared cases, addressed by ``(epoch, index)``.

    An item is ``{"image": (C, *S) float32, "label": ...}``, the label as `Targets.encode` gives
    it: ``(*S)`` int64, or for regions ``(R, *S)`` of 0 and 1.
    """

    def __init__(self, store: Path, cases: Sequence[str], targets: Targets, recipe: CropRecipe):
        self.cases = [StoredCase(store / case) for case in cases]
        self.targets = targets
        self.recipe = recipe
        self._box = (*recipe.patch, 1)[:3]  # what is cut out of the volume
        self._augment = _augmentation(recipe.augmentation, len(recipe.patch))
        self._voxels: dict[int, list[np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def n_images(self) -> int:
        """What a pass over the data shows: volumes, or for a patch of two sides slices."""
        if len(self.recipe.patch) == 3:
            return len(self.cases)
        return sum(case.shape[2] for case in self.cases)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = key
        number = self._case_number(epoch, index)
        rng = np.random.default_rng([self.recipe.seed, epoch, index])
        image, label = self.cases[number].crop(self._corner(number, rng), self._box)
        channels, sides = len(image), self.recipe.patch
        item = {
            "image": torch.from_numpy(image).reshape(channels, *sides),
            "label": torch.from_numpy(label).reshape(1, *sides),
        }
        self._augment.set_random_state(seed=int(rng.integers(2**31)))
        item = self._augment(item)
        return {"image": item["image"], "label": self.targets.encode(item["label"][0].long())}

    def _case_number(self, epoch: int, index: int) -> int:
        """Walk through a fresh order of all cases as often as an epoch needs."""
        walk, place = divmod(index, len(self.cases))
        order = np.random.default_rng([self.recipe.seed, epoch, walk, 1]).permutation(len(self))
        return int(order[place])

    def _foreground(self, number: int) -> list[np.ndarray]:
        """Sampled voxels ``(N, 3)`` of each structure that the case has, read once."""
        if number not in self._voxels:
            case = self.cases[number]
            classes = range(1, self.targets.n_labels)
            self._voxels[number] = [case.foreground(c) for c in classes if c in case.classes]
        return self._voxels[number]

    def _corner(self, number: int, rng: np.random.Generator) -> tuple[int, ...]:
        """First voxel of a crop; crops stay inside the volume where it is large enough."""
        shape, patch = self.cases[number].shape, self._box
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
    """Yield the keys of each batch from `start` (a global step) to the last.

    Of `world` processes that train together each has an equal share, in the order of `rank`.
    """

    def __init__(
        self,
        start: int,
        epochs: int,
        steps_per_epoch: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
    ):
        self.steps = range(start, epochs * steps_per_epoch)
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        share = batch_size // world
        self.mine = range(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            epoch, place = divmod(step, self.steps_per_epoch)
            first = place * self.batch_size
            yield [(epoch, first + index) for index in self.mine]


def _augmentation(settings: Augmentation, dims: int) -> Any:
    """Build MONAI's transforms; those of probability 0 are left out."""
    from monai import transforms
    from monai.data.meta_obj import set_track_meta

    from kdpipe.data.crops.noise import RandomNoise  # loads MONAI
    from kdpipe.data.crops.warp import RandomAffine

    set_track_meta(False)  # plain tensors: no bookkeeping of affines that nobody reads
    steps: list[Any] = []
    both, image = ["image", "label"], ["image"]
    if settings.affine_probability > 0:
        angle = float(np.deg2rad(settings.rotation_degrees))
        steps.append(
            RandomAffine(
                prob=settings.affine_probability,
                rotate_range=[angle] * (dims if dims == 3 else 1),
                scale_range=[settings.zoom] * dims,
            )
        )
    if settings.flip_probability > 0:
        for axis in (axis for axis in settings.flip_axes if axis < dims):
            steps.append(transforms.RandFlipd(both, settings.flip_probability, axis))
    if settings.rotate90_probability > 0:
        steps.append(transforms.RandRotate90d(both, settings.rotate90_probability, max_k=3))
    if settings.intensity_probability > 0:
        chance = settings.intensity_probability
        steps += [
            transforms.RandScaleIntensityd(image, settings.intensity_scale, chance),
            transforms.RandShiftIntensityd(image, settings.intensity_shift, prob=chance),
            RandomNoise(chance, settings.noise_sd),
        ]
    return transforms.Compose(steps)
