"""The labels of scans are the same whatever form the network has, and whatever runs it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import SimpleITK as sitk
from raw_scans import volume, write_model

from kdpipe.cli import main
from kdpipe.infer.description import Description
from kdpipe.infer.model import load_model
from kdpipe.ship.forms import load_form
from kdpipe.ship.reading import DESCRIPTION, MODEL

NAMES = {0: "background", 1: "liver", 2: "spleen"}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``kdpipe export`` writes it, with the forms that are quickly written."""
    folder = tmp_path_factory.mktemp("export")
    trained = load_model(write_model(folder / MODEL, spacing=(1.5, 1.5, 2.0)))
    description = Description.of_run(trained.run, trained.preparation, NAMES)
    (folder / DESCRIPTION).write_text(description.to_json(), encoding="utf-8")
    for name in ("torchscript", "onnx"):
        form = load_form(name)
        form.write(trained, description, folder / form.FILE, [])
    return folder


def predict(model: Path, scan: Path, out: Path, *options: str) -> sitk.Image:
    fixed = ["--model", str(model), "--out", str(out), "--device", "cpu", *options]
    assert main(["predict", str(scan), *fixed]) == 0
    return sitk.ReadImage(str(out / scan.name))


def test_every_backend_gives_the_same_labels(tmp_path: Path, export: Path) -> None:
    pytest.importorskip("onnxruntime")
    if find_spec("openvino") is None:  # to import it here would also import its telemetry
        pytest.skip("needs openvino")
    scan = tmp_path / "scan.nii.gz"
    sitk.WriteImage(volume(3, (30, 26, 14)), str(scan))
    expected = sitk.GetArrayFromImage(predict(export / MODEL, scan, tmp_path / "plain"))
    assert len({*expected.ravel().tolist()}) == 3
    ways = {
        "torch": (export, "torch", "torch"),
        "onnx": (export / "model.onnx", "auto", "onnx"),
        "onnx of the folder": (export, "onnxruntime", "onnx"),
        "openvino": (export, "openvino", "torch"),
        "torchscript": (export / "model.ts", "auto", "torchscript"),
    }
    for name, (model, backend, form) in ways.items():
        found = predict(model, scan, tmp_path / name, "--backend", backend)
        assert (sitk.GetArrayFromImage(found) == expected).mean() >= 0.9995, name
        assert found.GetDirection() == pytest.approx(volume().GetDirection(), abs=1e-6)
        report = json.loads((tmp_path / name / "report.json").read_text(encoding="utf-8"))
        assert set(report["scans"][0]["structures"]) == {"liver", "spleen"}
        assert report["backend"] == backend
        assert report["model"]["form"] == form


def test_structures_are_named_as_the_export_names_them(tmp_path: Path, export: Path) -> None:
    scan = tmp_path / "scan.nii.gz"
    sitk.WriteImage(volume(3, (20, 18, 12)), str(scan))
    predict(export, scan, tmp_path / "out", "--largest-component", "spleen")
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["settings"]["largest_component"] == ["spleen"]
    given = ["--model", str(export), "--out", str(tmp_path / "other"), "--device", "cpu"]
    assert main(["predict", str(scan), *given, "--largest-component", "kidney"]) == 2
