"""Cells of overlapping regions, and of networks that see slices: as all others, end to end."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from blobs import CASES, make_job, make_run
from torch import Tensor, nn

from kdpipe import discover
from kdpipe.composition import check_method
from kdpipe.data.store import StoredCase, sample_foreground, write_case
from kdpipe.data.targets import Targets
from kdpipe.engine.loop import Trainer
from kdpipe.engine.signals import StopRequest
from kdpipe.engine.state import weights_digest
from kdpipe.engine.train import assemble, train
from kdpipe.engine.validate import Validator
from kdpipe.errors import ConfigError, Interrupted
from kdpipe.infer.model import load_model
from kdpipe.infer.predict import predict_cases
from kdpipe.lock import FolderLock
from kdpipe.metrics.overlap import dice
from kdpipe.settings import Inference

COST = ["seconds", "energy_j"]
REGIONS = [[1, 2, 3], [2, 3], [3]]
SHORT: dict[str, Any] = {"epochs": 1, "steps_per_epoch": 2}
RES_UNET = ("nets", "res_unet", {"channels": [4, 8, 16], "strides": [2, 2]})
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "kd": {},
    "cwd": {},
    "hbd": {},
    "acf_bckd": {},
    "dkd": {},
    "hlfd": {},
    "sum": {
        "parts": [
            {"name": "cwd", "label": "cwd", "params": {}},
            {"name": "hbd", "label": "hbd", "params": {}},
        ]
    },
}


def _write(store: Path, name: str, seed: int) -> None:
    """Three balls, one in the other; brighter inside."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(17, 21, 3))
    distance = sum((axis - n / 2) ** 2 for axis, n in zip(np.indices(shape), shape, strict=True))
    label = np.digitize(-distance, [-49, -25, -9]).astype(np.uint8)
    geometry = {
        "pad_value": 0.0,
        "digest": name,
        **{
            grid: {
                "size": shape,
                "spacing": (1.0, 1.0, 1.0),
                "origin": (0.0, 0.0, 0.0),
                "direction": tuple(np.eye(3).ravel().tolist()),
            }
            for grid in ("native", "prepared")
        },
    }
    image = (label + rng.normal(0, 0.2, shape))[None]
    write_case(store / name, image, label, geometry, sample_foreground(label, 4))


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of cases with three nested structures."""
    folder: Path = tmp_path_factory.mktemp("nested")
    for seed, name in enumerate(CASES):
        _write(folder, name, seed)
    return folder


def run_of(
    method: str = "none", *, sides: int = 3, regions: bool = True, **training: Any
) -> dict[str, Any]:
    run = make_run(**(SHORT | training))
    run["method"] = {"name": method, "params": check_method(method, METHODS.get(method, {}))}
    run["patch"] = [16] * sides
    run["network"]["out_channels"] = 3 if regions else 4
    run["targets"] = {"n_labels": 4, "regions": REGIONS if regions else None}
    return run


Teachers = dict[tuple[int, bool], Path]


@pytest.fixture(scope="module")
def teachers(nested: Path, tmp_path_factory: pytest.TempPathFactory) -> Teachers:
    """A trained model for each kind of cell."""
    found = {}
    for sides in (2, 3):
        for regions in (True, False):
            folder = tmp_path_factory.mktemp(f"teacher-{sides}-{regions}")
            run = run_of(sides=sides, regions=regions)
            run["network"] |= {"name": "res_unet", "params": discover.check_params(*RES_UNET)}
            job = make_job(nested, folder, run)
            train(job)
            found[sides, regions] = job.model
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("sides", "regions"), [(3, True), (2, True), (2, False)])
def test_methods_train_on_regions_and_on_slices(
    nested: Path, tmp_path: Path, teachers: Teachers, method: str, sides: int, regions: bool
) -> None:
    run = run_of(method, sides=sides, regions=regions)
    job = make_job(nested, tmp_path, run, teachers[sides, regions])
    train(job)
    history = pd.read_csv(tmp_path / "train.csv")
    terms = history.drop(columns=["validation_dice"]).iloc[0]
    assert np.isfinite(terms.to_numpy(float)).all()
    assert 0 <= history["validation_dice"][0] <= 1
    model = load_model(job.model)
    weights = model.network.state_dict().values()
    assert {weight.dim() - 2 for weight in weights if weight.dim() > 2} == {sides}
    assert all(torch.isfinite(weight).all() for weight in weights)


@pytest.mark.parametrize("sides", [2, 3])
def test_the_methods_of_a_region_cell_start_alike(
    nested: Path, tmp_path: Path, teachers: Teachers, sides: int
) -> None:
    first = []
    for method in ("none", "kd", "hbd"):
        run = run_of(method, sides=sides, steps_per_epoch=1)
        train(make_job(nested, tmp_path / method, run, teachers[sides, True]))
        first.append(pd.read_csv(tmp_path / method / "train.csv")["segmentation"][0])
    assert first[0] == first[1] == first[2]


@pytest.mark.parametrize("sides", [2, 3])
@pytest.mark.parametrize("regions", [True, False])
def test_the_balls_are_learnt(nested: Path, tmp_path: Path, sides: int, regions: bool) -> None:
    """Channels, targets, validation and prediction agree on what is what."""
    easy = {
        "steps_per_epoch": 120,
        "learning_rate": 0.02,
        "batch_size": 2 if sides == 3 else 8,
        "augmentation": {"affine_probability": 0, "intensity_probability": 0},
    }
    job = make_job(nested, tmp_path, run_of(sides=sides, regions=regions, **easy))
    train(job)
    assert pd.read_csv(tmp_path / "train.csv")["validation_dice"].max() > 0.5
    out = tmp_path / "predictions"
    predict_cases(job.model, nested, CASES[5:], Inference(), out, torch.device("cpu"))
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "case_5.nii.gz"))).T
    _, label = StoredCase(nested / "case_5").whole()
    assert np.mean(list(dice(label, found, Targets(4, REGIONS).structures).values())) > 0.6


@pytest.mark.parametrize("sides", [2, 3])
def test_an_epoch_without_given_steps_passes_every_image(
    nested: Path, tmp_path: Path, sides: int
) -> None:
    run = run_of(sides=sides, steps_per_epoch=None, batch_size=3)
    job = make_job(nested, tmp_path, run)
    trainer = assemble(job, torch.device("cpu"), StopRequest(), FolderLock(job.state))
    images = sum(StoredCase(nested / case).shape[2] for case in CASES[:4]) if sides == 2 else 4
    assert trainer.steps_per_epoch == math.ceil(images / 3)


class Fixed(nn.Module):
    """Says whatever it was given, for the case whose image it is shown."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)

    def forward(self, image: Tensor) -> Tensor:
        return self.scores[None]


@pytest.mark.parametrize("regions", [True, False])
def test_the_validation_dice_is_that_of_the_masks(
    nested: Path, tmp_path: Path, regions: bool
) -> None:
    targets = Targets(4, REGIONS if regions else None)
    _, label = StoredCase(nested / CASES[4]).whole()
    claimed = np.roll(label, 2, axis=0)
    claimed[claimed == 3] = 2  # the innermost is missed
    encoded = targets.encode(torch.from_numpy(claimed.astype(np.int64)))
    if not regions:
        encoded = nn.functional.one_hot(encoded, 4).movedim(-1, 0)
    network = Fixed(encoded.float() - 0.5)
    validator = Validator(nested, CASES[4:5], targets, label.shape, 0.0, None)
    expected = []
    for ids in REGIONS if regions else [[1], [2], [3]]:
        ours, theirs = np.isin(claimed, ids), np.isin(label, ids)
        expected.append(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))
    assert expected[2] == 0
    assert validator(network) == pytest.approx(np.mean(expected), abs=1e-12)


def test_a_region_absent_on_both_sides_is_left_out(tmp_path: Path) -> None:
    label = np.zeros((8, 8, 8), np.uint8)
    label[2:5] = 1
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 8))
    write_case(tmp_path / "one", image, label, {"pad_value": 0.0}, sample_foreground(label, 3))
    targets = Targets(3, [[1, 2], [2]])
    scores = 2.0 * targets.encode(torch.from_numpy(label.astype(np.int64))) - 1
    validator = Validator(tmp_path, ["one"], targets, (8, 8, 8), 0.0, None)
    assert validator(Fixed(scores)) == 1.0


@pytest.mark.parametrize("sides", [2, 3])
@pytest.mark.parametrize("method", ["sum", "hlfd"])
def test_a_stopped_region_cell_goes_on_to_the_same_bits(
    nested: Path,
    tmp_path: Path,
    teachers: Teachers,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    sides: int,
) -> None:
    run = run_of(method, sides=sides, epochs=3, steps_per_epoch=2, validate_every=1)
    whole, stopped = (
        make_job(nested, tmp_path / name, run, teachers[sides, True])
        for name in ("whole", "stopped")
    )
    train(whole)

    real = Trainer._train_step
    for at in (1, 4):

        def interrupted(self: Trainer, batch: dict[str, Tensor], at: int = at) -> dict[str, float]:
            values = real(self, batch)
            if self.step == at - 1:
                signal.raise_signal(signal.SIGTERM)
            return values

        monkeypatch.setattr(Trainer, "_train_step", interrupted)
        with pytest.raises(Interrupted, match=f"after step {at} of 6"):
            train(stopped)
        torch.manual_seed(at)
    monkeypatch.setattr(Trainer, "_train_step", real)
    train(stopped)

    digests = [
        weights_digest(load_model(job.model).network.state_dict()) for job in (whole, stopped)
    ]
    assert digests[0] == digests[1]
    histories = [
        pd.read_csv(tmp_path / name / "train.csv").drop(
            columns=["seconds", "energy_j"], errors="ignore"
        )
        for name in ("whole", "stopped")
    ]
    pd.testing.assert_frame_equal(*histories, check_exact=True)


@pytest.mark.parametrize("ours", [True, False])
def test_a_teacher_of_the_other_targets_is_refused(
    nested: Path, tmp_path: Path, teachers: Teachers, ours: bool
) -> None:
    job = make_job(nested, tmp_path, run_of("kd", regions=ours), teachers[3, not ours])
    with pytest.raises(ConfigError, match="the same data set, targets and dimensions"):
        train(job)
