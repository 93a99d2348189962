"""Crops of two sides are slices of the volume; crops for regions hold a channel for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdpipe.data.crops.sampler import CropDataset, CropRecipe
from kdpipe.data.store import StoredCase, sample_foreground, write_case
from kdpipe.data.targets import Targets
from kdpipe.settings import Augmentation

PLAIN = Augmentation(flip_probability=0, affine_probability=0, intensity_probability=0)
SHAPES = {"a": (20, 17, 12), "b": (9, 30, 5), "c": (14, 14, 1)}
REGIONS = ((1, 2), (2,))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each voxel of an image is another number, so that a crop says where it is from."""
    folder: Path = tmp_path_factory.mktemp("store")
    for number, (case, shape) in enumerate(SHAPES.items()):
        label = np.zeros(shape, np.uint8)
        label[-4:, -4:, -2:] = 1
        label[-2:, -2:, -1:] = 2
        drawn = np.random.default_rng(number).permutation(label.size).reshape(shape)
        image = np.stack(np.divmod(drawn, 64))  # the store keeps whole numbers to 2048
        geometry = {"pad_value": -9.0}
        write_case(folder / case, image, label, geometry, sample_foreground(label, 3))
    return folder


def dataset(store: Path, regions: Any = None, cases: Any = SHAPES, **changes: Any) -> CropDataset:
    recipe = {"patch": (8, 6), "foreground": 0.5, "augmentation": PLAIN, "seed": 3} | changes
    return CropDataset(store, list(cases), Targets(3, regions), CropRecipe(**recipe))


def place(found: np.ndarray, image: np.ndarray) -> tuple[int, ...]:
    """First voxel of the only box of ``image`` (C, X, Y, Z) that equals ``found`` (C, x, y)."""
    (start,) = np.argwhere((image == found[:, 0, 0, None, None, None]).all(axis=0))
    return tuple(int(first) for first in start)


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_a_crop_is_a_part_of_one_slice(store: Path, case: str) -> None:
    image, label = StoredCase(store / case).whole()
    slices = set()
    for index in range(40):
        item = dataset(store, cases=[case])[0, index]
        assert item["image"].shape == (2, 8, 6)
        assert item["image"].dtype == torch.float32
        assert item["label"].shape == (8, 6)
        assert item["label"].dtype == torch.int64
        x, y, z = place(item["image"].numpy(), image)
        np.testing.assert_array_equal(item["image"], image[:, x : x + 8, y : y + 6, z])
        np.testing.assert_array_equal(item["label"], label[x : x + 8, y : y + 6, z])
        slices.add(z)
    assert slices == set(range(SHAPES[case][2])), "all slices are drawn"


def test_a_slice_narrower_than_the_patch_is_padded_on_both_sides(store: Path) -> None:
    item = dataset(store, cases=["b"], patch=(12, 32))[0, 0]
    image, _ = StoredCase(store / "b").whole()
    inner = item["image"][:, 2:11, 1:31].numpy()
    assert any(np.array_equal(inner, image[..., z]) for z in range(5))
    item["image"][:, 2:11, 1:31] = -9
    assert (item["image"] == -9).all()
    assert not item["label"][:2].any()
    assert not item["label"][-1:].any()


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_share_of_foreground_is_honoured(store: Path, share: float) -> None:
    """Of case a, 2 of 12 slices hold a structure, in a corner that few crops reach."""
    crops = dataset(store, cases=["a"], foreground=share, patch=(4, 4))
    found = np.mean([bool(crops[0, index]["label"].any()) for index in range(300)])
    assert share - 0.09 < found <= min(1.0, share + 0.12)


def test_each_structure_is_drawn_as_often(store: Path) -> None:
    crops = dataset(store, cases=["a"], foreground=1.0, patch=(1, 1))
    drawn = torch.stack([crops[0, index]["label"].squeeze() for index in range(300)])
    shares = torch.bincount(drawn, minlength=3) / 300
    assert shares[0] == 0
    assert 0.4 < shares[2] < 0.6


def test_a_pass_over_the_data_shows_every_slice(store: Path) -> None:
    assert dataset(store).n_images == 12 + 5 + 1
    assert dataset(store, patch=(8, 6, 4)).n_images == len(dataset(store)) == 3


def test_flips_of_an_axis_that_slices_lack_are_left_out(store: Path) -> None:
    always = {"flip_probability": 1.0, "affine_probability": 0, "intensity_probability": 0}
    for axes, turned in (((2,), ()), ((0, 2), (0,)), ((0, 1, 2), (0, 1))):
        flips = dataset(store, augmentation=Augmentation(flip_axes=axes, **always))
        for index in range(4):
            plain, flipped = dataset(store)[0, index], flips[0, index]
            assert torch.equal(plain["label"].flip(turned), flipped["label"])
            image_axes = tuple(axis + 1 for axis in turned)
            assert torch.equal(plain["image"].flip(image_axes), flipped["image"])


@pytest.mark.parametrize("patch", [(8, 6), (8, 6, 4)])
def test_regions_have_a_channel_each(store: Path, patch: tuple[int, ...]) -> None:
    strong = Augmentation(flip_probability=1, affine_probability=1, intensity_probability=1)
    for augmentation in (PLAIN, strong):
        change = {"patch": patch, "foreground": 1.0, "augmentation": augmentation}
        seen = torch.zeros(2)
        for index in range(6):
            classes = dataset(store, **change)[1, index]
            regions = dataset(store, REGIONS, **change)[1, index]
            assert torch.equal(classes["image"], regions["image"]), "the targets move no crop"
            assert regions["label"].shape == (2, *patch)
            assert regions["label"].dtype == torch.int64
            expected = torch.stack([classes["label"] > 0, classes["label"] == 2])
            assert torch.equal(regions["label"] == 1, expected)
            assert set(regions["label"].unique().tolist()) <= {0, 1}
            seen += expected.flatten(1).any(1)
        assert seen.all()


@pytest.mark.parametrize("regions", [None, REGIONS])
def test_slices_can_be_replayed_in_any_order(store: Path, regions: Any) -> None:
    change = {"augmentation": Augmentation(affine_probability=1, intensity_probability=1)}
    keys = [(epoch, index) for epoch in range(2) for index in range(6)]
    crops = dataset(store, regions, **change)
    first = {key: crops[key] for key in keys}
    again = dataset(store, regions, **change)
    torch.manual_seed(11)
    for key in reversed(keys):
        other = again[key]
        assert all(torch.equal(first[key][name], other[name]) for name in ("image", "label"))
    assert not torch.equal(first[0, 0]["image"], first[1, 0]["image"])
    other_seed = dataset(store, regions, **change, seed=4)[0, 0]
    assert not torch.equal(first[0, 0]["image"], other_seed["image"])
