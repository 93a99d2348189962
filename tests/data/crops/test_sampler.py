"""Crops depend on (seed, epoch, index) and on nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai import transforms
from torch.utils.data import DataLoader

from kdpipe.data.crops import noise, warp
from kdpipe.data.crops.noise import RandomNoise
from kdpipe.data.crops.sampler import CropDataset, CropRecipe, StepSampler
from kdpipe.data.crops.warp import RandomAffine
from kdpipe.data.store import sample_foreground, write_case
from kdpipe.data.targets import Targets
from kdpipe.settings import Augmentation

PLAIN = Augmentation(flip_probability=0, affine_probability=0, intensity_probability=0)
SHAPES = {"a": (20, 17, 12), "b": (9, 30, 14), "c": (14, 14, 14)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("store")
    for number, (case, shape) in enumerate(SHAPES.items(), 1):
        x, y, z = np.indices(shape)
        label = np.zeros(shape, np.uint8)
        label[-3:, -3:, -3:] = 1  # a corner: hardly ever in a random crop
        image = (1000 * number + x + 0.1 * y + 0.01 * z)[None]
        write_case(folder / case, image, label, {"pad_value": 0.0}, sample_foreground(label, 3))
    return folder


def dataset(store: Path, **changes: Any) -> CropDataset:
    recipe = {"patch": (12, 12, 12), "foreground": 0.5, "augmentation": Augmentation(), "seed": 3}
    return CropDataset(store, list(SHAPES), Targets(3), CropRecipe(**(recipe | changes)))


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in ("image", "label"))


def test_an_item_can_be_replayed_in_any_order(store: Path) -> None:
    keys = [(epoch, index) for epoch in range(2) for index in range(5)]
    first = {key: dataset(store)[key] for key in keys}
    again = dataset(store)
    np.random.seed(7)
    torch.manual_seed(7)
    assert all(equal(first[key], again[key]) for key in reversed(keys))
    assert not equal(first[0, 0], first[1, 0])


def test_the_seed_and_the_epoch_change_what_is_drawn(store: Path) -> None:
    images = [dataset(store, seed=seed)[epoch, 0]["image"] for seed in (3, 4) for epoch in (0, 1)]
    assert len({image.sum().item() for image in images}) == 4


def test_worker_processes_change_nothing(store: Path) -> None:
    def load(workers: int) -> list[dict[str, torch.Tensor]]:
        sampler = StepSampler(1, epochs=2, steps_per_epoch=2, batch_size=2)
        return list(DataLoader(dataset(store), batch_sampler=sampler, num_workers=workers))

    assert all(equal(a, b) for a, b in zip(load(0), load(2), strict=True))


def test_steps_go_on_where_they_stopped() -> None:
    whole = list(StepSampler(0, epochs=3, steps_per_epoch=2, batch_size=2))
    assert list(StepSampler(3, epochs=3, steps_per_epoch=2, batch_size=2)) == whole[3:]
    assert whole[3] == [(1, 2), (1, 3)]


def test_every_case_is_passed_once_an_epoch(store: Path) -> None:
    plain = dataset(store, augmentation=PLAIN)
    for epoch in range(3):
        origins = {int(plain[epoch, index]["image"].max()) // 1000 for index in range(3)}
        assert origins == {1, 2, 3}


def test_shapes_types_and_padding(store: Path) -> None:
    item = dataset(store, augmentation=PLAIN)[0, 0]
    assert item["image"].shape == (1, 12, 12, 12)
    assert item["image"].dtype == torch.float32
    assert item["label"].shape == (12, 12, 12)
    assert item["label"].dtype == torch.int64
    plain = dataset(store, augmentation=PLAIN)
    padded = next(
        item for index in range(3) if (item := plain[0, index])["image"].max() // 1000 == 2
    )
    assert (padded["image"] == 0).any(), "case b is narrower than the patch"


def test_foreground_crops_hold_a_structure(store: Path) -> None:
    always = dataset(store, augmentation=PLAIN, foreground=1.0)
    never = dataset(store, augmentation=PLAIN, foreground=0.0)
    assert all(always[0, index]["label"].any() for index in range(12))
    assert not all(never[0, index]["label"].any() for index in range(12))


def test_geometry_changes_image_and_label_together(store: Path) -> None:
    flips = Augmentation(flip_probability=1, affine_probability=0, intensity_probability=0)
    plain, flipped = dataset(store, augmentation=PLAIN), dataset(store, augmentation=flips)
    for index in range(6):
        one, other = plain[0, index], flipped[0, index]
        assert torch.equal(one["image"].flip(1, 2, 3), other["image"])
        assert torch.equal(one["label"].flip(0, 1, 2), other["label"])


def test_labels_stay_labels_under_every_change(store: Path) -> None:
    strong = Augmentation(affine_probability=1, intensity_probability=1)
    for index in range(9):
        item = dataset(store, augmentation=strong, foreground=1.0)[0, index]
        assert set(item["label"].unique().tolist()) <= {0, 1}
        assert torch.isfinite(item["image"]).all()


@pytest.mark.parametrize("jit", ["0", "1"])
@pytest.mark.parametrize("shape", [(1, 12, 13, 14), (2, 9, 16, 7), (1, 11, 8)])
def test_one_pass_over_both_gives_monais_bits(
    shape: tuple[int, ...], jit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDPIPE_JIT", jit)
    assert (warp.kernels() is not None) == (jit == "1"), "else one way is compared twice"
    dims, rng = len(shape) - 1, np.random.default_rng(0)
    settings: dict[str, Any] = {
        "prob": 0.8,
        "rotate_range": [0.6] * (dims if dims == 3 else 1),
        "scale_range": [0.4] * dims,
    }
    theirs = transforms.RandAffined(
        ["image", "label"], mode=["bilinear", "nearest"], padding_mode="border", **settings
    )
    ours = RandomAffine(**settings)
    for seed in range(12):
        image = torch.from_numpy(rng.normal(size=shape).astype(np.float32))
        label = torch.from_numpy(rng.integers(0, 14, (1, *shape[1:])).astype(np.uint8))
        found = [
            affine.set_random_state(seed)({"image": image, "label": label})
            for affine in (ours, theirs)
        ]
        assert torch.equal(*(torch.as_tensor(item["image"]) for item in found))
        assert torch.equal(*(torch.as_tensor(item["label"]).long() for item in found))


@pytest.mark.parametrize("jit", ["0", "1"])
@pytest.mark.parametrize("shape", [(1, 48, 49, 50), (2, 9, 15, 7), (1, 11, 8), (1, 1, 1)])
def test_noise_has_monais_bits(
    shape: tuple[int, ...], jit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDPIPE_JIT", jit)
    assert (noise.kernels() is not None) == (jit == "1"), "else one way is compared twice"
    ours, theirs = RandomNoise(0.8, 0.05), transforms.RandGaussianNoised(["image"], 0.8, std=0.05)
    for seed in range(12):
        values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        image = torch.from_numpy(values.copy())
        found = [step.set_random_state(seed)({"image": image})["image"] for step in (ours, theirs)]
        assert torch.equal(*(torch.as_tensor(noisy) for noisy in found))
        assert torch.equal(image, torch.from_numpy(values)), "what is given stays as it is"


def test_noise_of_other_bits_is_left_to_monai(monkeypatch: pytest.MonkeyPatch) -> None:
    noise._is_equal.cache_clear()
    monkeypatch.setattr(noise, "_noisy", lambda kernel, image, state, sd: image + np.float32(sd))
    assert noise.kernels() is None
    noise._is_equal.cache_clear()
