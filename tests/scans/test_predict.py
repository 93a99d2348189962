"""``kdpipe predict`` of raw scans: the labels of the study, a file a scan, and what went wrong."""

from __future__ import annotations

import gc
import json
import resource
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from raw_scans import WINDOW, volume, write_model, write_series

from kdpipe.atomic import write_json
from kdpipe.cli import main
from kdpipe.data.geometry import Grid
from kdpipe.data.manifest import Case
from kdpipe.data.preparation.prepare import prepare_case
from kdpipe.images.files import write_image
from kdpipe.infer.window import Network
from kdpipe.labels import Labels
from kdpipe.presets import Preparation
from kdpipe.provenance import digest, file_digest
from kdpipe.scans import batch
from kdpipe.ship import reading

CPU = torch.device("cpu")


def predict(model: Path, out: Path, *arguments: object) -> int:
    fixed = ["predict", "--model", model, "--out", out, "--device", "cpu"]
    return main([str(argument) for argument in (*fixed, *arguments)])


def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return found


def statuses(out: Path) -> dict[str, str]:
    return {entry["scan"]: entry["status"] for entry in report(out)["scans"]}


def voxels(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def write_scans(folder: Path, names: Sequence[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        sitk.WriteImage(volume(seed), str(folder / name))
    return folder


@pytest.fixture
def frozen() -> Iterator[None]:
    """Spare the preparation from looking through all of torch for cycles after each image."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.pt", spacing=(1.5, 1.5, 2.0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the study would use the GPU")
@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize(
    ("images", "patch", "preset"),
    [
        (1, (16, 16, 16), {"spacing": (1.5, 1.5, 2.0)}),
        (1, (16, 16, 16), {"spacing": (1.5, 1.5, 2.0), "crop_foreground": True}),
        (1, (16, 16, 16), {"orientation": None, "intensity": {"kind": "zscore"}}),
        (2, (16, 16, 16), {"spacing": (2.0, 2.0, 2.0), "intensity": {"kind": "zscore"}}),
        (2, (16, 16), {"intensity": [WINDOW, {"kind": "zscore", "nonzero": False}]}),
        (1, (16, 16, 16), {"spacing": (1.5, 1.5, 2.0), "intensity": {"kind": "unchanged"}}),
        (1, (16, 16), {"intensity": {"kind": "rescale"}, "image_interpolation": "linear"}),
    ],
    ids=["CT", "CT cropped", "MR", "two channels", "slices", "unchanged", "rescaled slices"],
)
def test_labels_are_those_of_the_study(
    tmp_path: Path, images: int, patch: tuple[int, ...], preset: dict[str, Any]
) -> None:
    channels = ["T1", "T2"][:images]
    model = write_model(tmp_path / "model.pt", patch, channels, **preset)
    raw = tmp_path / "raw"
    raw.mkdir()
    labels = Labels(raw={0: "background", 1: "organ1", 2: "organ2"}, may_be_absent="all")
    for seed, name in enumerate(("one", "two")):
        files = tuple(raw / f"{name}_000{i}.nii.gz" for i in range(images))
        for i, file in enumerate(files):
            sitk.WriteImage(volume(2 * seed + i, (30 + seed, 22, 9)), str(file))
        label = sitk.Cast(volume(seed, (30 + seed, 22, 9)) > 100, sitk.sitkUInt8)
        sitk.WriteImage(label, str(tmp_path / f"{name}.nii.gz"))
        case = Case(name, name, files, tmp_path / f"{name}.nii.gz", "0")
        preparation = Preparation.model_validate({"intensity": WINDOW} | preset)
        prepare_case(case, preparation, labels, channels, tmp_path / "cases", "digest")
    parts = {"train": [], "val": [], "test": ["one", "two"]}
    write_json(tmp_path / "split.json", parts | {"sha256": digest(parts)})
    write_json(tmp_path / "run.json", {"overlap": 0.5, "window_batch": 4})
    graph = [f"--{name}={tmp_path / name}.json" for name in ("run", "split")]
    study = ["--model", str(model), "--prepared", str(tmp_path), "--out", str(tmp_path / "study")]
    assert main(["predict", *graph, *study]) == 0
    assert predict(model, tmp_path / "raw_out", raw) == 0
    for name in ("one", "two"):
        found, expected = (
            nibabel.load(tmp_path / folder / f"{name}.nii.gz") for folder in ("raw_out", "study")
        )
        np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
        np.testing.assert_array_equal(found.affine, expected.affine)
        assert found.get_data_dtype() == np.uint8
        assert len(np.unique(np.asarray(found.dataobj))) > 1


def test_a_dicom_series_has_the_labels_of_its_volume(tmp_path: Path, model: Path) -> None:
    image = volume(5, (26, 22, 14))
    write_series(image, tmp_path / "series", rescale=(1, -1024))
    sitk.WriteImage(image, str(tmp_path / "volume.nii.gz"))
    assert predict(model, tmp_path / "out", tmp_path / "series", tmp_path / "volume.nii.gz") == 0
    dicom, nifti = (
        sitk.ReadImage(str(tmp_path / "out" / f"{name}.nii.gz")) for name in ("series", "volume")
    )
    np.testing.assert_array_equal(sitk.GetArrayFromImage(dicom), sitk.GetArrayFromImage(nifti))
    assert set(np.unique(sitk.GetArrayViewFromImage(dicom))) == {0, 1, 2}
    for found in (dicom, nifti):
        away = np.abs(Grid.of(found).corners() - Grid.of(image).corners())
        assert away.max() < 1e-3
        assert found.GetSize() == image.GetSize()


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii.gz"])
def test_labels_come_in_the_format_that_is_asked_for(
    tmp_path: Path, model: Path, suffix: str
) -> None:
    scans = write_scans(tmp_path / "scans", ["a.mhd", "b.nrrd", "c.mha", "d.hdr"])
    assert predict(model, tmp_path / "out", scans, "--suffix", suffix) == 0
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert files == [*(f"{name}{suffix}" for name in "abcd"), "report.json"]
    image = sitk.ReadImage(str(tmp_path / "out" / f"b{suffix}"))
    assert image.GetPixelID() == sitk.sitkUInt8
    assert np.abs(Grid.of(image).corners() - Grid.of(volume()).corners()).max() < 1e-3


def spoilt(folder: Path) -> dict[str, str]:
    """Write scans that cannot be used; return a part of what is said of each."""
    good = volume()
    whole = folder / "whole.nii.gz"
    sitk.WriteImage(good, str(whole))
    (folder / "cut.nii.gz").write_bytes(whole.read_bytes()[:5000])
    whole.unlink()
    sitk.WriteImage(good, str(folder / "pair.hdr"))
    (folder / "pair.img").write_bytes((folder / "pair.img").read_bytes()[:5000])
    sitk.WriteImage(good, str(folder / "short.nrrd"), False)
    (folder / "short.nrrd").write_bytes((folder / "short.nrrd").read_bytes()[:5000])
    sitk.WriteImage(good * 0 + 3, str(folder / "constant.nii.gz"))
    for name in ("nan.nii.gz", "nan2.mha"):
        array = sitk.GetArrayFromImage(good).astype(np.float32)
        array[0, 0, :2] = np.nan
        sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / name))
    sitk.WriteImage(sitk.JoinSeries([good, good]), str(folder / "two.nii.gz"))
    far = sitk.Image(good)
    far.SetSpacing((2000.0, 2000.0, 2000.0))
    sitk.WriteImage(far, str(folder / "far.nii.gz"))
    outside = sitk.Cast(good > 40, sitk.sitkInt16) * 100 + 2000
    sitk.WriteImage(outside, str(folder / "metal.nii.gz"))
    (folder / "text.nii").write_text("no image")
    sitk.WriteImage(good, str(folder / "back\\slash.mha"))
    files = write_series(good, folder / "series")
    files[3].unlink()
    return {
        "cut": "damaged",
        "pair": "damaged (5000 bytes of voxels, the header promises",
        "short": "not readable",
        "constant": "constant image, every voxel is 3",
        "nan": "2 voxels are NaN or infinite",
        "nan2": "2 voxels are NaN or infinite",
        "two": "2 channel(s) found, the network takes 1: CT; store the volume that is meant by it",
        "far": "voxels of 2000 x 2000 x 2000 mm; prepared it would be 32000 x 26667 x 12000 voxels",
        "metal": "on one side of the window",
        "text": "no NIfTI header",
        "back\\slash": "not usable as the name of a file",
        "series": "slices are missing between",
    }


def test_bad_scans_are_named_and_the_others_done(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scans = write_scans(tmp_path / "scans", ["a.nii.gz", "z.nii.gz"])
    expected = spoilt(scans)
    assert predict(model, tmp_path / "out", scans) == 3
    said = capfd.readouterr().err
    assert "12 of 14 scans could not be segmented, the others are done" in said
    found = report(tmp_path / "out")
    assert found["status"] == "failed"
    for entry in found["scans"]:
        if entry["scan"] in expected:
            assert entry["status"] == "failed"
            assert expected[entry["scan"]] in entry["error"]
            assert expected[entry["scan"]] in said
            assert not Path(entry["out"]).exists()
    assert {name for name, status in statuses(tmp_path / "out").items() if status == "done"} == {
        "a",
        "z",
    }
    alone = tmp_path / "alone"
    assert predict(model, alone, scans / "z.nii.gz") == 0
    np.testing.assert_array_equal(voxels(alone / "z.nii.gz"), voxels(tmp_path / "out" / "z.nii.gz"))


def test_the_report_says_what_was_found_and_by_what(tmp_path: Path, model: Path) -> None:
    scans = write_scans(tmp_path / "scans", ["a.nii.gz"])
    report_file = tmp_path / "elsewhere" / "run.json"
    options = ("--report", report_file, "--overlap", "0.25", "--threads", torch.get_num_threads())
    assert predict(model, tmp_path / "out", scans, *options) == 0
    found = json.loads(report_file.read_text(encoding="utf-8"))
    assert not (tmp_path / "out" / "report.json").exists()
    assert found["status"] == "done"
    assert found["model"]["sha256"] == file_digest(model)
    assert found["model"]["form"] == "torch"
    assert found["model"]["description"]["labels"]["2"] == "organ2"
    assert found["settings"]["overlap"] == 0.25
    assert found["device"]["type"] == "cpu"
    assert found["versions"]["torch"] == torch.__version__
    (entry,) = found["scans"]
    assert entry["files"] == [str(scans / "a.nii.gz")]
    assert entry["seconds"] > 0
    assert entry["native"]["shape"] == [24, 20, 12]
    np.testing.assert_allclose(entry["native"]["spacing_mm"], [1.1, 0.9, 2.5], rtol=1e-6)
    assert entry["native"]["orientation"] == "LPS"
    counts = np.bincount(voxels(Path(entry["out"])).ravel(), minlength=3)
    for index in (1, 2):
        structure = entry["structures"][f"organ{index}"]
        assert structure["voxels"] == counts[index] > 0
        assert structure["ml"] == pytest.approx(counts[index] * 1.1 * 0.9 * 2.5 / 1000, rel=1e-4)


def test_the_largest_component_is_kept_on_request(tmp_path: Path, model: Path) -> None:
    from scipy import ndimage

    scans = write_scans(tmp_path / "scans", ["a.nii.gz"])
    for out, options in (
        ("plain", ()),
        ("one", ("--largest-component", "organ2")),
        ("all", ("--largest-component",)),
    ):
        assert predict(model, tmp_path / out, scans, *options) == 0
    plain, one, both = (voxels(tmp_path / out / "a.nii.gz") for out in ("plain", "one", "all"))
    np.testing.assert_array_equal(one == 1, plain == 1)
    for index, found in ((2, one), (1, both), (2, both)):
        components, count = ndimage.label(plain == index, np.ones((3, 3, 3)))
        assert count > 1
        sizes = np.bincount(components.ravel())[1:]
        np.testing.assert_array_equal(found == index, components == sizes.argmax() + 1)
    assert report(tmp_path / "all")["settings"]["largest_component"] == ["organ1", "organ2"]
    assert predict(model, tmp_path / "none", scans, "--largest-component", "organ3") == 2
    assert not (tmp_path / "none").exists()


def test_label_maps_that_are_there_are_kept_or_replaced_only_on_request(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scans, out = write_scans(tmp_path / "scans", ["a.nii.gz", "b.nii.gz"]), tmp_path / "out"
    assert predict(model, out, scans / "a.nii.gz") == 0
    made, mark = voxels(out / "a.nii.gz"), (out / "a.nii.gz").stat().st_ino
    assert predict(model, out, scans) == 2
    assert "a.nii.gz: there already; use --continue" in capfd.readouterr().err
    assert not (out / "b.nii.gz").exists()
    assert predict(model, out, scans, "--continue") == 0
    assert (out / "a.nii.gz").stat().st_ino == mark
    assert statuses(out) == {"a": "done", "b": "done"}
    assert report(out)["scans"][0]["structures"]
    assert predict(model, out, scans, "--overwrite") == 0
    assert (out / "a.nii.gz").stat().st_ino != mark
    np.testing.assert_array_equal(voxels(out / "a.nii.gz"), made)
    assert predict(model, out, scans, "--overwrite", "--continue") == 2


def test_only_what_the_report_vouches_for_is_continued(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scans, out = write_scans(tmp_path / "scans", ["a.nii.gz", "b.nii.gz"]), tmp_path / "out"
    out.mkdir()
    shutil.copy(scans / "b.nii.gz", out / "b.nii.gz")
    assert predict(model, out, scans, "--continue") == 2
    assert "its report does not say that they are of these scans" in capfd.readouterr().err
    (out / "b.nii.gz").unlink()
    assert predict(model, out, scans) == 0
    assert predict(model, out, scans, "--continue", "--overlap", "0.1") == 2
    assert "report.json is of another setting" in capfd.readouterr().err
    other = write_model(tmp_path / "other.pt", classes=4)
    assert predict(other, out, scans, "--continue") == 2
    assert "report.json is of another model" in capfd.readouterr().err
    (out / "a.nii.gz").unlink()
    mark = (out / "b.nii.gz").stat().st_ino
    assert predict(model, out, scans, "--continue") == 0
    assert (out / "a.nii.gz").exists()
    assert (out / "b.nii.gz").stat().st_ino == mark
    (out / "report.json").write_text("[]")
    assert predict(model, out, scans, "--continue") == 2


def test_a_scan_that_was_replaced_is_segmented_anew(tmp_path: Path, model: Path) -> None:
    scans, out = write_scans(tmp_path / "scans", ["a.nii.gz", "b.nii.gz"]), tmp_path / "out"
    assert predict(model, out, scans) == 0
    mark, stale = (out / "a.nii.gz").stat().st_ino, voxels(out / "b.nii.gz")
    sitk.WriteImage(volume(7), str(scans / "b.nii.gz"))
    assert predict(model, out, scans, "--continue") == 0
    assert (out / "a.nii.gz").stat().st_ino == mark
    assert (voxels(out / "b.nii.gz") != stale).any()


def test_a_scan_is_never_replaced_by_what_is_written(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scans = write_scans(tmp_path / "scans", ["a.nii.gz", "b.mha"])
    before = {file.name: file.read_bytes() for file in scans.iterdir()}
    for out, given in (
        (scans, [scans / "a.nii.gz", "--overwrite"]),
        (scans, [scans, "--overwrite"]),
        (scans, [scans, "--suffix", ".nrrd"]),
        (scans / "a.nii.gz", [scans]),
        (scans / "a.nii.gz" / "below", [scans]),
        (tmp_path / "out", [scans, "--report", scans / "a.nii.gz"]),
        (tmp_path / "out", [scans, "--report", tmp_path]),
    ):
        assert predict(model, out, *given) == 2
        assert "kdpipe predict: error: " in capfd.readouterr().err
    assert {file.name: file.read_bytes() for file in scans.iterdir()} == before
    assert not (tmp_path / "out").exists()


def test_a_label_map_that_the_report_does_not_have_yet_is_made_again(
    tmp_path: Path, model: Path
) -> None:
    """A run was killed between the two."""
    scans, out = write_scans(tmp_path / "scans", ["a.nii.gz", "b.nii.gz"]), tmp_path / "out"
    assert predict(model, out, scans) == 0
    content = report(out)
    content["scans"][1]["status"] = "waiting"
    write_json(out / "report.json", content)
    marks = [(out / f"{name}.nii.gz").stat().st_ino for name in "ab"]
    assert predict(model, out, scans, "--continue") == 0
    assert (out / "a.nii.gz").stat().st_ino == marks[0]
    assert (out / "b.nii.gz").stat().st_ino != marks[1]
    assert statuses(out) == {"a": "done", "b": "done"}


class Stopping:
    """A network at whose third scan a signal comes."""

    def __init__(self, network: Network) -> None:
        self.network, self.calls = network, 0

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 3:
            signal.raise_signal(signal.SIGTERM)
        return self.network(windows)


def test_a_signal_leaves_whole_files_and_a_report(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = [f"{letter}.nii.gz" for letter in "abcd"]
    scans, out = write_scans(tmp_path / "scans", names), tmp_path / "out"
    segment = batch.segment

    def counted(images: Any, network: Network, *rest: Any) -> sitk.Image:
        return segment(images, stopping, *rest)

    stopping = Stopping(reading.read_network(model, "torch", CPU).network)
    monkeypatch.setattr(batch, "segment", counted)
    options = ("--window-batch", "1000")  # one call a scan
    assert predict(model, out, scans, *options) == 75
    assert "stopped by SIGTERM" in capfd.readouterr().err
    assert "2 of 4 scans are done; with --continue they are kept" in caplog.text
    assert report(out)["status"] == "stopped"
    assert statuses(out) == {"a": "done", "b": "done", "c": "stopped", "d": "waiting"}
    assert sorted(file.name for file in out.iterdir()) == [*names[:2], "report.json"]
    monkeypatch.undo()
    assert predict(model, out, scans, *options, "--continue") == 0
    assert set(statuses(out).values()) == {"done"}
    assert predict(model, tmp_path / "whole", scans, *options) == 0
    for name in names:
        np.testing.assert_array_equal(voxels(out / name), voxels(tmp_path / "whole" / name))


def test_a_network_that_fails_is_told_for_each_scan(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(images: Any, *rest: Any) -> sitk.Image:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(batch, "segment", fails)
    scans = write_scans(tmp_path / "scans", ["a.nii.gz", "b.nii.gz"])
    assert predict(model, tmp_path / "out", scans) == 3
    for entry in report(tmp_path / "out")["scans"]:
        assert "not enough memory; lower --window-batch" in entry["error"]


@pytest.mark.parametrize("suffix", batch.SUFFIXES)
def test_a_full_disk_is_noticed_in_every_format(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 40)).astype(np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises((OSError, RuntimeError)):
            write_image(sitk.GetImageFromArray(noise), tmp_path / f"a{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    write_image(sitk.GetImageFromArray(noise), tmp_path / f"a{suffix}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--overlap", "1"], "a share in [0, 1) is expected"),
        (["--window-batch", "0"], "at least 1 is expected"),
        (["--threads", "0"], "at least 1 is expected"),
        (["--run", "run.json"], "--run, --prepared and --split go together"),
        (["--backend", "openvino", "--window-batch", "2"], "takes windows one by one"),
    ],
)
def test_wrong_options_are_refused(
    tmp_path: Path,
    model: Path,
    capfd: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    scans = write_scans(tmp_path / "scans", ["a.nii.gz"])
    assert predict(model, tmp_path / "out", scans, *options) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scans = write_scans(tmp_path / "scans", ["a.nii.gz"])
    assert predict(model, tmp_path / "out", scans, "--device", "cuda") == 2
    assert "torch finds no GPU here" in capfd.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_nearly_the_same_labels(tmp_path: Path, model: Path) -> None:
    scans = write_scans(tmp_path / "scans", ["a.nii.gz"])
    for device in ("cpu", "cuda"):
        assert predict(model, tmp_path / device, scans, "--device", device) == 0
    found = [voxels(tmp_path / device / "a.nii.gz") for device in ("cpu", "cuda")]
    assert (found[0] == found[1]).mean() > 0.995
