"""Prediction: labels on the native grid, as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdpipe.data.manifest import Case
from kdpipe.data.preparation.prepare import prepare_case
from kdpipe.errors import DataError
from kdpipe.infer import predict
from kdpipe.infer.model import TrainedModel
from kdpipe.infer.window import sliding_scores
from kdpipe.labels import Labels
from kdpipe.presets import Preparation, Window
from kdpipe.settings import Inference

AFFINE = np.array([[0, -1.5, 0, 10], [2.0, 0, 0, -20], [0, 0, -3.0, 5], [0, 0, 0, 1]])
SHAPE = (14, 20, 6)


class Threshold(nn.Module):
    """Class 1 where the image is bright: a network whose right answer is known."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))

    def forward(self, image: Tensor) -> Tensor:
        margin = 20 * (image[:, :1] - self.level)
        return torch.cat([-margin, margin], dim=1)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two cases, stored with permuted and flipped axes, narrower than the patch in z."""
    folder = tmp_path / "cases"
    preparation = Preparation(intensity=Window(kind="window", low=0, high=100))
    for seed, name in enumerate(("one", "two")):
        rng = np.random.default_rng(seed)
        label = (rng.random(SHAPE) > 0.7).astype(np.uint8)
        files = (tmp_path / f"{name}_image.nii.gz", tmp_path / f"{name}_label.nii.gz")
        nib.save(nib.Nifti1Image(label.astype(np.float32) * 100, AFFINE), files[0])
        nib.save(nib.Nifti1Image(label, AFFINE), files[1])
        case = Case(name, name, (files[0],), files[1], "0")
        labels = Labels(raw={0: "background", 1: "bright"})
        prepare_case(case, preparation, labels, ["CT"], folder, "digest")
    return folder


def trained() -> TrainedModel:
    return TrainedModel(
        Threshold().eval(), {"patch": [8, 8, 8], "targets": {"n_labels": 2, "regions": None}}, {}
    )


def run(store: Path, cases: list[str], out: Path) -> None:
    cpu = torch.device("cpu")
    predict.predict_cases(out / "unused.pt", store, cases, Inference(), out, cpu)


def test_labels_come_back_on_the_native_grid(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "load_model", lambda path: trained())
    out = tmp_path / "predictions"
    out.mkdir()
    (out / "old.nii.gz").touch()
    run(store, ["one", "two"], out)
    assert sorted(file.name for file in out.iterdir()) == ["one.nii.gz", "two.nii.gz"]
    for name in ("one", "two"):
        found, expected = (
            nib.load(out / f"{name}.nii.gz"),
            nib.load(tmp_path / f"{name}_label.nii.gz"),
        )
        np.testing.assert_allclose(found.affine, AFFINE, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))


def test_no_folder_appears_when_a_case_fails(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "load_model", lambda path: trained())
    with pytest.raises(DataError, match="'missing'"):
        run(store, ["one", "missing"], tmp_path / "predictions")
    assert not (tmp_path / "predictions").exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_labels_are_not_opened(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "load_model", lambda path: trained())
    (store / "one" / "label.b2nd").unlink()
    run(store, ["one"], tmp_path / "predictions")
    assert (tmp_path / "predictions" / "one.nii.gz").exists()


@pytest.mark.parametrize("shape", [(20, 9, 11), (5, 8, 3)])
def test_scores_cover_volumes_larger_and_smaller_than_the_patch(shape: tuple[int, ...]) -> None:
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    network = Threshold()
    scores = sliding_scores(network, image, (8, 8, 8), overlap=0.5)
    assert scores.shape == (2, *shape)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, network(image[None])[0].detach(), atol=1e-4, rtol=1e-4)


class Mean(nn.Module):
    """Scores that depend on the whole window, of two channels."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([image[:, 0], image[:, 1] - image.mean((1, 2, 3))[:, None, None]], 1)


@pytest.mark.parametrize("shape", [(20, 9, 11), (5, 17, 3), (8, 8, 1), (3, 4, 2)])
@pytest.mark.parametrize("window_batch", [1, 3, 50])
def test_slices_are_predicted_one_by_one(shape: tuple[int, ...], window_batch: int) -> None:
    """What one slice shows changes nothing in another, however many are passed at once."""
    image = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    options = {"overlap": 0.5, "window_batch": window_batch, "pad_value": -1.0}
    scores = sliding_scores(Mean(), image, (8, 6), **options)
    assert scores.shape == (2, *shape)
    assert scores.dtype == torch.float32
    for z in range(shape[2]):
        alone = sliding_scores(Mean(), image[..., z : z + 1], (8, 6), **options)
        torch.testing.assert_close(scores[..., z], alone[..., 0])
        flat = sliding_scores(Mean(), image[..., z], (8, 6), **options)
        torch.testing.assert_close(scores[..., z], flat)
    if shape[:2] == (8, 8):
        windows = [Mean()(image[None, :, :, :6, 0]), Mean()(image[None, :, :, 2:, 0])]
        torch.testing.assert_close(scores[:, :, 0, 0], windows[0][0, :, :, 0])
        torch.testing.assert_close(scores[:, :, -1, 0], windows[1][0, :, :, -1])


def test_padding_has_the_value_of_the_case() -> None:
    image = torch.zeros(2, 3, 4, 2)
    (first, second) = (
        sliding_scores(Mean(), image, (8, 6), overlap=0.5, pad_value=value) for value in (0.0, 1.0)
    )
    assert (first[1] == 0).all()
    torch.testing.assert_close(second[1], torch.full((3, 4, 2), 12 / 48 - 1))
