"""The sliding window: MONAI's scores to the bit, in less memory, and air only once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from allocations import LargestTensor
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

from kdpipe.data.targets import Targets
from kdpipe.infer.blending import Sums, window_starts
from kdpipe.infer.window import sliding_labels, sliding_scores, sliding_slabs
from kdpipe.nets.base import build_network

VOLUMES = [(20, 9, 11), (5, 8, 3), (8, 8, 8), (9, 30, 8), (31, 8, 7), (17, 13, 25)]


class Blur(nn.Module):
    """Scores that depend on the whole window and on the place in it."""

    def __init__(self, dims: int, channels: int = 2, classes: int = 5):
        super().__init__()
        torch.manual_seed(0)
        kind = nn.Conv3d if dims == 3 else nn.Conv2d
        norm = nn.InstanceNorm3d if dims == 3 else nn.InstanceNorm2d
        self.layers = nn.Sequential(
            kind(channels, 6, 3, padding=1), norm(6), nn.ReLU(), kind(6, classes, 3, padding=1)
        )
        self.windows: list[int] = []

    def forward(self, image: Tensor) -> Tensor:
        self.windows.append(len(image))
        return self.layers(image)


def image_of(shape: Sequence[int], channels: int = 2) -> Tensor:
    return torch.randn(channels, *shape, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def by_monai(network: nn.Module, images: Tensor, patch: Sequence[int], **options: Any) -> Tensor:
    """As kdpipe called it before it had a window of its own."""
    return sliding_window_inference(
        images,
        roi_size=tuple(patch),
        sw_batch_size=options["window_batch"],
        predictor=network,
        overlap=options["overlap"],
        mode="gaussian",
        cval=options["pad_value"],
    ).float()


@pytest.mark.parametrize("shape", VOLUMES)
@pytest.mark.parametrize("patch", [(8, 8, 8), (8, 6, 4)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize(("window_batch", "jit"), [(1, "1"), (4, "1"), (4, "0")])
def test_scores_are_monais_to_the_bit(
    shape: tuple[int, ...],
    patch: tuple[int, ...],
    overlap: float,
    window_batch: int,
    jit: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KDPIPE_JIT", jit)
    network, image = Blur(3).eval(), image_of(shape)
    options = {"overlap": overlap, "window_batch": window_batch, "pad_value": -1.5}
    expected = by_monai(network, image[None], patch, **options)[0]
    passed = network.windows.copy()
    network.windows.clear()
    assert torch.equal(sliding_scores(network, image, patch, **options), expected)
    assert network.windows == passed, "the same windows in the same batches"


@pytest.mark.parametrize("shape", [(20, 9, 11), (5, 8, 3), (8, 6, 1)])
@pytest.mark.parametrize(("window_batch", "jit"), [(1, "1"), (3, "1"), (3, "0")])
def test_scores_of_slices_are_monais_to_the_bit(
    shape: tuple[int, ...], window_batch: int, jit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDPIPE_JIT", jit)
    network, image = Blur(2).eval(), image_of(shape)
    options = {"overlap": 0.5, "window_batch": window_batch, "pad_value": 0.5}
    blocks = image.movedim(-1, 0).split(window_batch)
    parts = [by_monai(network, block, (8, 6), **options) for block in blocks]
    expected = torch.cat(parts).movedim(0, -1)
    assert torch.equal(sliding_scores(network, image, (8, 6), **options), expected)


def test_scores_in_half_precision_are_monais_to_the_bit() -> None:
    network, image = Blur(3).eval(), image_of((20, 9, 11))
    options = {"overlap": 0.5, "window_batch": 2, "pad_value": 0.0}
    with torch.autocast("cpu", torch.bfloat16):
        expected = by_monai(network, image[None], (8, 8, 8), **options)[0]
        found = sliding_scores(network, image, (8, 8, 8), **options)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["unet_tiny", "segresnet"])
def test_labels_of_networks_are_monais(name: str) -> None:
    """What a validation scores, and so which checkpoint it chooses, stays what it was."""
    torch.manual_seed(0)
    network = build_network(name, {}, 1, 4).eval()
    image = image_of((70, 40, 33), channels=1)
    options = {"overlap": 0.25, "window_batch": 4, "pad_value": 0.0}
    expected = by_monai(network, image[None], (32, 32, 32), **options)[0]
    found = sliding_scores(network, image, (32, 32, 32), **options)
    assert torch.equal(found.argmax(0), expected.argmax(0))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("shape", "patch"), [((40, 9, 11), (8, 8, 8)), ((8, 9, 12), (8, 8))])
def test_slabs_follow_one_another_and_share_a_plane(
    shape: tuple[int, ...], patch: tuple[int, ...]
) -> None:
    network, image = Blur(len(patch)).eval(), image_of(shape)
    whole = sliding_scores(network, image, patch, 0.5)
    end = 0
    for slab in sliding_slabs(network, image, patch, 0.5):
        axis, length = slab.axis, slab.scores.shape[1 + slab.axis]
        assert slab.start == max(0, end - 1)
        assert torch.equal(slab.scores, whole.narrow(1 + axis, slab.start, length))
        assert length <= max(patch[0] + 1, 5)
        end = slab.start + length
    assert end == image.shape[1 + axis]


def test_only_the_planes_that_windows_reach_are_kept() -> None:
    """Ten times as long a volume needs no larger sums."""
    sums = Sums((800, 16, 16), (8, 8, 8))
    for start in window_starts((800, 16, 16), (8, 8, 8), 0.5):
        if start[0] > sums.begin:
            sums.finish(start[0])
            sums.move(start[0])
        sums.add(start, torch.ones(3, 8, 8, 8))
    assert sums._scores.shape == (3, 9, 16, 16)


@pytest.mark.parametrize("window_batch", [1, 3])
def test_windows_of_one_value_are_computed_once(window_batch: int) -> None:
    """Air that was clipped: the labels are those of computing all windows, by construction."""
    network, image = Blur(3).eval(), image_of((64, 16, 16))
    image[:, 20:] = -2.0
    image[:, 44:50] = 3.0
    options = {"overlap": 0.5, "window_batch": window_batch, "pad_value": 0.0}
    expected = by_monai(network, image[None], (8, 8, 8), **options)[0]
    passed = sum(network.windows)
    network.windows.clear()
    found = sliding_scores(network, image, (8, 8, 8), **options)
    torch.testing.assert_close(found, expected)  # other batches, so not to the bit
    assert torch.equal(found.argmax(0), expected.argmax(0))
    constant = sum(
        bool((image[:, x : x + 8, y : y + 8, z : z + 8].unique()).numel() == 1)
        for x, y, z in window_starts((64, 16, 16), (8, 8, 8), 0.5)
    )
    assert sum(network.windows) == passed - constant + 1


def test_a_network_that_trains_sees_every_window() -> None:
    """Its dropout would differ from window to window."""
    network = Blur(3).train()
    sliding_scores(network, torch.zeros(2, 24, 8, 8), (8, 8, 8), 0.5, 1)
    assert sum(network.windows) == 5


@pytest.mark.parametrize("targets", [Targets(5), Targets(4, ((1, 2, 3), (1, 3), (3,)))])
@pytest.mark.parametrize(("shape", "patch"), [((40, 9, 11), (8, 8, 8)), ((8, 9, 12), (8, 8))])
def test_labels_are_those_of_the_whole_scores(
    targets: Targets, shape: tuple[int, ...], patch: tuple[int, ...]
) -> None:
    """What a validation scores: as it was when it decoded MONAI's scores of the whole volume."""
    channels = 5 if targets.regions is None else 3
    network, image = Blur(len(patch), classes=channels).eval(), image_of(shape)
    expected = targets.decode_tensor(sliding_scores(network, image, patch, 0.25))
    found = sliding_labels(sliding_slabs(network, image, patch, 0.25), shape, targets)
    np.testing.assert_array_equal(found, expected.numpy())


def test_a_network_that_diverged_has_labels() -> None:
    """A training that went wrong is told by its loss and its Dice, not by an error here."""
    network = Blur(3).eval()
    with torch.no_grad():
        network.layers[-1].bias[2] = torch.nan
    slabs = sliding_slabs(network, image_of((20, 8, 8)), (8, 8, 8), 0.5)
    assert (sliding_labels(slabs, (20, 8, 8), Targets(5)) == 2).all()


def test_no_tensor_is_as_large_as_the_scores_of_the_volume() -> None:
    network, image = Blur(3, classes=10).eval(), image_of((100, 16, 16))
    with LargestTensor() as largest:
        slabs = sliding_slabs(network, image, (8, 8, 8), 0.5, 1)
        sliding_labels(slabs, (100, 16, 16), Targets(10))
    assert largest.elements <= max(image.numel(), 10 * 9 * 16 * 16)
