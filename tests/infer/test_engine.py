"""Faster ways to run a network: the same labels, or torch in float32 after all."""

from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdpipe.data.manifest import Case
from kdpipe.data.preparation.prepare import prepare_case
from kdpipe.errors import ConfigError
from kdpipe.infer import engine, predict
from kdpipe.infer.engine import Engine, build_engine, checked_engine
from kdpipe.infer.model import TrainedModel
from kdpipe.infer.window import sliding_scores
from kdpipe.labels import Labels
from kdpipe.nets.base import build_network
from kdpipe.presets import Preparation, Window
from kdpipe.settings import Inference

CPU = torch.device("cpu")


class Bright(nn.Module):
    """Class 1 where the image is bright."""

    def forward(self, image: Tensor) -> Tensor:
        margin = 20 * (image[:, :1] - 0.5)
        return torch.cat([-margin, margin], dim=1)


def trained(network: nn.Module | None = None, classes: int = 2) -> TrainedModel:
    run = {
        "patch": [16, 16, 16],
        "targets": {"n_labels": classes, "regions": None},
        "network": {"in_channels": 1},
    }
    return TrainedModel((network or Bright()).eval(), run, {})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    preparation = Preparation(intensity=Window(kind="window", low=0, high=100))
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        label = (rng.random((20, 18, 16)) > 0.7).astype(np.uint8)
        files = tmp_path / f"{name}_image.nii.gz", tmp_path / f"{name}_label.nii.gz"
        for file, array in zip(files, (label * 100.0, label), strict=True):
            nib.save(nib.Nifti1Image(array, np.eye(4)), file)
        case = Case(name, name, files[:1], files[1], "0")
        labels = Labels(raw={0: "background", 1: "bright"})
        prepare_case(case, preparation, labels, ["CT"], tmp_path / "cases", "digest")
    return tmp_path / "cases"


@pytest.mark.parametrize("name", ["unet_tiny", "segresnet"])
def test_openvino_gives_the_same_labels(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(name, {}, 1, 6).eval()
    made = build_engine(trained(network, 6), "openvino", "fp32", 4, CPU)
    image = torch.randn(1, 40, 20, 17)
    scores, expected = (
        sliding_scores(run, image, (16, 16, 16), 0.5, 1) for run in (made.network, network)
    )
    assert (scores.argmax(0) == expected.argmax(0)).float().mean() > 0.9999
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-3)


def test_openvino_reports_nothing_to_its_maker() -> None:
    engine._openvino()
    assert sys.modules["openvino_telemetry"] is None


def test_openvino_reads_slices() -> None:
    network = build_network("unet_tiny", {}, 2, 3, 2).eval()
    run = engine.openvino_network(network, (1, 2, 16, 16), "fp32")
    image = torch.randn(2, 30, 20, 5)
    expected = sliding_scores(network, image, (16, 16), 0.5)
    found = sliding_scores(run, image, (16, 16), 0.5, 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_a_missing_openvino_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match=r"kdpipe\[openvino\]"):
        build_engine(trained(), "openvino", "fp32", 1, CPU)


def test_a_network_that_openvino_cannot_run_is_an_error_that_says_so() -> None:
    class Odd(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.linalg.svd(image.double())[1].float()

    with pytest.raises(ConfigError, match="set inference.engine to torch"):
        build_engine(trained(Odd()), "openvino", "fp32", 1, CPU)


@pytest.mark.parametrize("name", ["torch", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predictions_are_those_of_torch(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, precision: str
) -> None:
    """The right answer is known, and no precision can miss it."""
    monkeypatch.setattr(predict, "load_model", lambda path: trained())
    settings = Inference(engine=name, precision=precision)
    out = tmp_path / "predictions"
    predict.predict_cases(out, store, ["two"], settings, out, CPU, checked=["one"])
    found, expected = out / "two.nii.gz", tmp_path / "two_label.nii.gz"
    np.testing.assert_array_equal(*(np.asarray(nib.load(f).dataobj) for f in (found, expected)))


def worse(share: float) -> Any:
    """An engine that is wrong on a share of the voxels."""

    def build(model: TrainedModel, name: str, precision: str, *_: Any) -> Engine:
        plain = Engine(f"{name} {precision}", model.network, 1)
        if (name, precision) == ("torch", "fp32"):
            return plain

        def network(windows: Tensor) -> Tensor:
            scores = model.network(windows)
            wrong = torch.rand(scores[:, :1].shape, generator=torch.Generator().manual_seed(0))
            return torch.where(wrong < share, -scores, scores)

        return dataclasses.replace(plain, network=network)

    return build


@pytest.mark.parametrize(
    ("settings", "share", "kept"),
    [
        ({"engine": "openvino"}, 0.0, True),
        ({"engine": "openvino"}, 0.02, False),
        ({"precision": "bf16"}, 0.02, False),
        ({"precision": "bf16", "precision_margin_percent": 20}, 0.02, True),
    ],
)
def test_what_fails_its_check_is_not_used(
    store: Path,
    settings: dict[str, Any],
    share: float,
    kept: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(engine, "build_engine", worse(share))
    with caplog.at_level(logging.INFO):
        found = checked_engine(trained(), Inference(**settings), CPU, store, ["one", "two"])
    assert (found.name != "torch fp32") == kept
    assert ("not good enough" in caplog.text) != kept
    assert "Dice" in caplog.text


def test_nothing_is_checked_by_default(store: Path) -> None:
    assert checked_engine(trained(), Inference(), CPU, store / "missing", []).name == "torch fp32"


def test_a_check_needs_a_validation_case(store: Path) -> None:
    with pytest.raises(ConfigError, match="no validation case"):
        checked_engine(trained(), Inference(precision="bf16"), CPU, store, [])
