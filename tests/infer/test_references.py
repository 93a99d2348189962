"""Protocols that score on the prepared grid: from the prediction to the table."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from kdpipe import cli
from kdpipe.data.manifest import Case, write_manifest
from kdpipe.data.preparation.prepare import prepare_case
from kdpipe.data.store import StoredCase
from kdpipe.errors import DataError
from kdpipe.infer import predict
from kdpipe.infer.model import TrainedModel
from kdpipe.infer.references import stored_labels, stored_references
from kdpipe.labels import Labels
from kdpipe.metrics.protocol import get_protocol, score_case
from kdpipe.presets import Preparation, Window
from kdpipe.provenance import digest

AFFINE = np.array([[0, -1.5, 0, 10], [2.0, 0, 0, -20], [0, 0, -3.0, 5], [0, 0, 0, 1]])
SHAPE = (24, 20, 14)
CASES = ("one", "two")


class Bright(nn.Module):
    """Class 1 where the image is bright."""

    def forward(self, image: Tensor) -> Tensor:
        margin = 20 * (image[:, :1] - 0.4)
        return torch.cat([-margin, margin], dim=1)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two prepared cases with another spacing, orientation and size than the native ones."""
    preparation = Preparation(
        orientation="RAS",
        spacing=(2.5, 2.5, 2.0),
        crop_foreground=True,
        intensity=Window(kind="window", low=0, high=100),
    )
    labels, manifest = Labels(raw={0: "background", 1: "bright"}), []
    centre = np.indices(SHAPE) - np.array([11, 9, 5])[:, None, None, None]
    for seed, name in enumerate(CASES):
        rng = np.random.default_rng(seed)
        label = ((centre**2).sum(0) < 12 + 6 * seed).astype(np.uint8)
        image = 80 * label + rng.integers(1, 60, SHAPE)
        image[:4] = image[:, :, -3:] = 0
        files = (tmp_path / f"{name}_image.nii.gz", tmp_path / f"{name}_label.nii.gz")
        nib.save(nib.Nifti1Image(image.astype(np.int16), AFFINE), files[0])
        nib.save(nib.Nifti1Image(label, AFFINE), files[1])
        manifest.append(Case(name, name, (files[0],), files[1], "0"))
        prepare_case(manifest[-1], preparation, labels, ["CT"], tmp_path / "prep/cases", "digest")
    write_manifest(tmp_path / "manifest.tsv", manifest)
    parts = {"train": [], "val": [], "test": list(CASES)}
    write(tmp_path / "split.json", parts | {"sha256": digest(parts)})
    write(tmp_path / "cell.json", {"cell": {"method": "kd", "seed": 0}})
    facts = {"patch": [8, 8, 8], "targets": {"n_labels": 2, "regions": None}}
    trained = TrainedModel(Bright().eval(), facts, {})
    monkeypatch.setattr(predict, "load_model", lambda path: trained)
    return tmp_path


def write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content))


def predicted(study: Path, prepared: bool) -> Path:
    run = {"overlap": 0.5, "window_batch": 4} | ({"prepared": True} if prepared else {})
    write(study / "predict.json", run)
    out = study / "predictions"
    arguments = ["predict", "--run", "predict.json", "--model", "model.pt", "--prepared", "prep"]
    arguments += ["--split", "split.json", "--out", "predictions"]
    assert cli.main(in_folder(study, arguments)) == 0
    return out


def evaluated(study: Path, protocols: list[str], *more: str) -> int:
    run = {
        "structures": {"bright": [1]},
        "protocols": [get_protocol(p).scoring.model_dump(mode="json") for p in protocols],
        "tolerances_mm": {"bright": 2.0},
        "has_spacing": True,
    }
    write(study / "evaluate.json", run)
    arguments = ["evaluate", "--run", "evaluate.json", "--cell", "cell.json"]
    arguments += ["--prediction", "predictions", "--split", "split.json"]
    arguments += ["--manifest", "manifest.tsv", "--out", "metrics.csv", *more]
    return cli.main(in_folder(study, arguments))


def in_folder(folder: Path, arguments: list[str]) -> list[str]:
    """Paths follow flags."""
    return [
        str(folder / word) if before.startswith("--") else word
        for before, word in zip(["", *arguments], arguments, strict=False)
    ]


def test_labels_on_the_prepared_grid_are_written_only_where_asked_for(study: Path) -> None:
    out = predicted(study, prepared=False)
    assert sorted(path.name for path in out.iterdir()) == ["one.nii.gz", "two.nii.gz"]
    native = {name: (out / f"{name}.nii.gz").read_bytes() for name in CASES}
    out = predicted(study, prepared=True)
    assert sorted(path.name for path in out.iterdir()) == ["one.nii.gz", "prepared", "two.nii.gz"]
    for name in CASES:
        assert (out / f"{name}.nii.gz").read_bytes() == native[name]
        image = nib.load(out / "prepared" / f"{name}.nii.gz")
        assert image.header.get_zooms() == pytest.approx((2.5, 2.5, 2.0))
        stored = StoredCase(study / "prep/cases" / name)
        np.testing.assert_array_equal(np.asarray(image.dataobj), stored.image()[0] > 0.4)


def test_the_prepared_grid_is_scored_against_the_stored_labels(study: Path) -> None:
    predicted(study, prepared=True)
    names = ["strict_mm", "acf_bckd", "boundary_bands"]
    assert evaluated(study, names, "--prepared", "prep") == 0
    table = pd.read_csv(study / "metrics.csv")
    assert set(table["protocol"]) == set(names)
    assert set(table["method"]) == {"kd"}
    for name in CASES:
        stored = StoredCase(study / "prep/cases" / name)
        scores = score_case(
            stored.label(),
            (stored.image()[0] > 0.4).astype(np.uint8),
            (2.5, 2.5, 2.0),
            {"bright": (1,)},
            "acf_bckd",
        )
        rows = table[(table["case"] == name) & (table["protocol"] == "acf_bckd")]
        assert list(rows["metric"]) == [score.metric for score in scores]
        assert list(rows["value"]) == pytest.approx([score.value for score in scores])
        assert set(rows["unit"]) == {"fraction", "voxel"}
    dice = table[table["metric"] == "dice"].pivot(index="case", columns="protocol", values="value")
    assert (dice["strict_mm"] != dice["acf_bckd"]).all(), "two grids, two scores"


def test_stored_labels_lie_where_the_image_does(study: Path) -> None:
    for name, read in stored_references(study / "prep/cases", CASES).items():
        found = read()
        stored = StoredCase(study / "prep/cases" / name)
        assert found.labels.shape == stored.shape[::-1]
        inside = np.argwhere(found.labels)[:, ::-1].mean(axis=0)  # x, y, z
        centre = np.array(found.origin) + found.direction @ (inside * found.spacing_mm[::-1])
        native = np.argwhere(nib.load(study / f"{name}_label.nii.gz").get_fdata()).mean(axis=0)
        expected = (AFFINE @ [*native, 1])[:3] * [-1, -1, 1]  # from RAS to LPS
        np.testing.assert_allclose(centre, expected, atol=0.5)
    with pytest.raises(DataError, match="case 'three'"):
        stored_labels(study / "prep/cases" / "three")


def test_the_prepared_folder_has_to_be_named(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predicted(study, prepared=False)
    assert evaluated(study, ["strict_mm"]) == 0
    assert evaluated(study, ["acf_bckd"]) == 2
    assert "--run also needs --prepared" in capsys.readouterr().err
    assert evaluated(study, ["acf_bckd"], "--prepared", "prep") == 3
    assert "predictions/prepared is no folder" in capsys.readouterr().err
