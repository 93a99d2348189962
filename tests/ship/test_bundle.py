"""A MONAI bundle: raw scans in, kdpipe's labels out, with MONAI's own commands and no kdpipe."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from toy import LABELS, Toy

from kdpipe import discover
from kdpipe.data.geometry import Grid
from kdpipe.errors import ConfigError, DataError
from kdpipe.infer.description import Description
from kdpipe.infer.model import TrainedModel, load_model
from kdpipe.infer.segment import segment
from kdpipe.nets.base import build_network, network_of
from kdpipe.ship.bundle import configs
from kdpipe.ship.forms import bundle

CPU = torch.device("cpu")
Bundle = tuple[Path, TrainedModel, Description]


@pytest.fixture(autouse=True)
def _nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bundle would be compiled anew, for seconds; labels are the same without."""
    monkeypatch.setenv("KDPIPE_JIT", "0")


@pytest.fixture(autouse=True)
def _tensors_with_metadata() -> Iterator[None]:
    """As MONAI starts; a training in the same process switches them off."""
    from monai.data.meta_obj import get_track_meta, set_track_meta

    before = get_track_meta()
    set_track_meta(True)
    yield
    set_track_meta(before)


@pytest.fixture(scope="module")
def made(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy student as a bundle."""
    trained = load_model(toy.model)
    description = Description.of_run(trained.run, trained.preparation, LABELS)
    return write(tmp_path_factory.mktemp("made"), trained, description), trained, description


def write(folder: Path, trained: TrainedModel, description: Description) -> Path:
    path = folder / bundle.FILE
    bundle.write(trained, description, path, [])
    return path


def untrained(folder: Path, **changes: Any) -> Bundle:
    """A bundle of a network with random weights, whose labels are as good for a comparison."""
    channels = changes.pop("channels", ["CT"])
    run = {
        "cell": {"dataset": "toy"},
        "network": {"name": "unet_tiny", "params": {"channels": [4, 8, 8], "strides": [2, 2]}},
        "patch": [16, 16, 16],
        "targets": {"n_labels": 3, "regions": None},
    } | changes
    outputs = len(run["targets"]["regions"] or range(run["targets"]["n_labels"]))
    run["network"] |= {"in_channels": len(channels), "out_channels": outputs}
    preset = {"spacing": [2, 2, 2], "intensity": {"kind": "zscore"}, "crop_foreground": True}
    preparation = {
        "channels": channels,
        "preset": preset,
        "labels": {"raw": {0: "background", 1: "one", 2: "two"}},
    }
    torch.manual_seed(0)
    trained = TrainedModel(network_of(run).eval(), run, preparation)
    description = Description.of_run(run, preparation)
    return write(folder, trained, description), trained, description


def scan(seed: int, axes: Sequence[float] = (1, 1, 1)) -> sitk.Image:
    """A volume with oblique axes and odd numbers in its header."""
    values = np.random.default_rng(seed).integers(0, 900, (17, 24, 30)).astype(np.uint16)
    values[:3] = 0
    image = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(values), 1.5)
    image = sitk.Cast(image, sitk.sitkUInt16)
    cosine, sine = np.cos(0.1), np.sin(0.1)
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) * axes
    image.SetDirection(turn.ravel().tolist())
    image.SetSpacing((1.37, 1.37, 2.9))
    image.SetOrigin((-103.2, 17.81, 5.003))
    return image


def save(image: sitk.Image, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file))
    return file


def workflow(path: Path, **options: Any) -> Any:
    """The bundle as MONAI runs it, in this process."""
    from monai.bundle.workflows import ConfigWorkflow

    config = str(path / "configs/inference.json")
    options |= {"bundle_root": str(path), "device": CPU}
    found = ConfigWorkflow(config, workflow_type="infer", logging_file=False, **options)
    found.initialize()
    return found


def same(found: Path, expected: sitk.Image) -> None:
    image = sitk.ReadImage(str(found))
    assert Grid.of(image) == Grid.of(through_a_file(expected, found.parent))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(expected))


def through_a_file(image: sitk.Image, folder: Path) -> sitk.Image:
    """NIfTI rounds what stands in its header."""
    return sitk.ReadImage(str(save(image, folder / "expected" / "one.nii.gz")))


@pytest.mark.slow
def test_monai_segments_raw_scans_without_kdpipe(made: Bundle, toy: Toy, tmp_path: Path) -> None:
    """As a stranger runs it; what is installed as kdpipe is of another version, and broken."""
    path, trained, description = made
    poison = tmp_path / "poison" / "kdpipe"
    poison.mkdir(parents=True)
    (poison / "__init__.py").write_text("raise ImportError('another kdpipe')")
    environment = os.environ | {"PYTHONPATH": str(poison.parent), "KDPIPE_JIT": "1"}

    def python(command: str, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command.split(), *more],
            cwd=path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    assert "another kdpipe" in python("-c", "import kdpipe").stderr  # else nothing is shown
    raw = toy.files / "imagesTr"
    done = python(
        "-m monai.bundle run --config_file configs/inference.json --bundle_root .",
        *("--dataset_dir", str(raw), "--output_dir", str(tmp_path / "out")),
    )
    assert done.returncode == 0, done.stderr
    names = sorted(file.name for file in raw.iterdir())
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == names
    for name in names[:2]:
        image = sitk.ReadImage(str(raw / name))
        expected = segment([image], trained.network, description, CPU)
        assert sitk.GetArrayViewFromImage(expected).any()
        same(tmp_path / "out" / name, expected)
        affines = [nib.load(file).affine for file in (raw / name, tmp_path / "out" / name)]
        np.testing.assert_array_equal(*affines)


@pytest.mark.slow
def test_raw_check_counts_the_voxels_that_differ_and_leaves_nothing_compiled(
    made: Bundle, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, trained, description = made
    path = write(tmp_path, trained, description)
    monkeypatch.setenv("KDPIPE_JIT", "1")
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    before = sorted(path.rglob("*"))
    files = {case: [toy.files / "imagesTr" / f"{case}.nii.gz"] for case in toy.cases["val"]}
    expected = {
        case: segment([sitk.ReadImage(str(file))], trained.network, description, CPU)
        for case, (file,) in files.items()
    }
    voxels = sum(image.GetNumberOfPixels() for image in expected.values())
    first = next(iter(expected.values()))
    first[0, 0, 0] = first[0, 0, 0] + 1
    assert bundle.check_raw(path, files, expected) == (voxels - 1) / voxels
    assert sorted(path.rglob("*")) == before


@pytest.mark.slow
def test_failed_raw_check_says_what_monai_says(made: Bundle, tmp_path: Path) -> None:
    nothing = {"one": [tmp_path / "missing.nii.gz"]}
    with pytest.raises(DataError, match="missing.nii.gz"):
        bundle.check_raw(made[0], nothing, {"one": scan(0)})


@pytest.mark.parametrize(
    ("changes", "layout"),
    [
        ({}, "plain"),
        ({"patch": [16, 16]}, "plain"),
        ({"channels": ["T1", "FLAIR"]}, "nnunet"),
        ({"channels": ["T1", "FLAIR"]}, "4D"),
        # of a patch that is longer than the scan, which is padded then
        ({"targets": {"n_labels": 3, "regions": [[1, 2], [2]]}, "patch": [32, 32, 32]}, "plain"),
    ],
    ids=["3D", "2D", "channels", "4D", "regions"],
)
def test_labels_are_those_of_predict(changes: dict[str, Any], layout: str, tmp_path: Path) -> None:
    path, trained, description = untrained(tmp_path, **changes)
    images = [scan(seed, (-1, 1, 1)) for seed in range(len(description.channels))]
    folder = tmp_path / "scans"
    if layout == "nnunet":
        files = [save(image, folder / f"a_000{i}.nii.gz") for i, image in enumerate(images)]
        images = [sitk.ReadImage(str(file)) for file in files]
    elif layout == "4D":
        file = save(sitk.JoinSeries(images), folder / "a.nii.gz")
        images = [sitk.ReadImage(str(file))[..., i] for i in range(2)]
    else:
        images = [sitk.ReadImage(str(save(images[0], folder / "a.mha")))]
    out = tmp_path / "out"
    flow = workflow(path, dataset_dir=str(folder), output_dir=str(out))
    assert flow.check_properties() == []
    flow.run()
    flow.finalize()
    expected = segment(images, trained.network, description, CPU)
    assert len(np.unique(sitk.GetArrayViewFromImage(expected))) > 1
    same(out / "a.nii.gz", expected)


def test_parts_work_on_an_image_that_another_program_has_loaded(tmp_path: Path) -> None:
    """As MONAI Label and Deploy do: own loading, then preprocessing, inferer, postprocessing."""
    from monai.transforms.io.dictionary import LoadImaged, SaveImaged

    path, trained, description = untrained(tmp_path)
    file = save(scan(3), tmp_path / "a.nii.gz")
    flow = workflow(path)  # without any data
    loading, prepare = flow.preprocessing.transforms
    restore, saving = flow.postprocessing.transforms
    assert isinstance(loading, LoadImaged)  # which is how they find what to leave out
    assert isinstance(saving, SaveImaged)
    data = prepare(LoadImaged("image", ensure_channel_first=True)({"image": str(file)}))
    with torch.no_grad():
        scores = flow.inferer(inputs=data["image"][None], network=trained.network)
    labels = restore(data | {"pred": scores[0]})["pred"]
    expected = segment([sitk.ReadImage(str(file))], trained.network, description, CPU)
    expected_array = sitk.GetArrayFromImage(expected).transpose(2, 1, 0)
    assert (labels[0].numpy() == expected_array).mean() > 0.9999
    np.testing.assert_allclose(labels.affine, nib.load(file).affine, atol=1e-4)


def test_run_without_scans_fails(tmp_path: Path) -> None:
    path, *_ = untrained(tmp_path)
    flow = workflow(path, dataset_dir=str(tmp_path / "misspelt"))
    with pytest.raises(RuntimeError, match="check_scans") as raised:
        flow.run()
    assert "--dataset_dir" in str(raised.value.__cause__)


def test_run_never_replaces_a_scan(tmp_path: Path) -> None:
    path, *_ = untrained(tmp_path)
    file = save(scan(0), tmp_path / "scans" / "a.nii.gz")
    content = file.read_bytes()
    here = str(file.parent)
    flow = workflow(path, dataset_dir=here, output_dir=f"{here}/../scans")
    with pytest.raises(RuntimeError, match="check_scans") as raised:
        flow.run()
    assert "lies in --output_dir" in str(raised.value.__cause__)
    assert file.read_bytes() == content


def test_grids_are_not_rounded_between_the_parts(tmp_path: Path) -> None:
    """Those of channels may differ by a hair, and an affine does not give a spacing to the bit."""
    from kdpipe.ship.bundle.parts import LoadImageScand
    from kdpipe.ship.bundle.tensors import images_of

    images = [scan(0), scan(1)]
    images[1].SetOrigin([place + 0.003 for place in images[0].GetOrigin()])
    files = [str(save(image, tmp_path / f"{i}.mha")) for i, image in enumerate(images)]
    loaded = LoadImageScand("image", ["T1", "FLAIR"])({"image": files})["image"]
    for image, file in zip(images_of(loaded, 2), files, strict=True):
        read = sitk.ReadImage(file)
        assert Grid.of(image) == Grid.of(read)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(read))


def test_scan_with_wrong_channels_is_refused(tmp_path: Path) -> None:
    path, *_ = untrained(tmp_path, channels=["T1", "FLAIR"])
    save(scan(0), tmp_path / "scans" / "a.nii.gz")
    flow = workflow(path, dataset_dir=str(tmp_path / "scans"), output_dir=str(tmp_path / "out"))
    with pytest.raises(RuntimeError) as raised:
        flow.run()
    error: BaseException | None = raised.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert "the network takes 2: T1, FLAIR" in str(error)


def test_metadata_have_what_monai_s_schema_requires(made: Bundle) -> None:
    path, trained, description = made
    meta = json.loads((path / "configs/metadata.json").read_text())
    texts = "schema version monai_version pytorch_version numpy_version task description authors"
    for key in f"{texts} copyright".split():
        assert meta[key] and isinstance(meta[key], str), key
    assert meta["version"] in meta["changelog"]
    needed = meta["required_packages_version"]
    assert {"simpleitk", "pydantic", "scipy", "pytorch-ignite", "fire"} <= {
        n.lower() for n in needed
    }
    assert not {"torch", "kdpipe", "numba"} & set(needed)
    io = meta["network_data_format"]
    for tensor in (io["inputs"]["image"], io["outputs"]["pred"]):
        assert isinstance(tensor["type"], str) and isinstance(tensor["format"], str)
        assert tensor["spatial_shape"] == list(description.patch)
        assert tensor["dtype"] == "float32"
        assert all(isinstance(bound, int | float) for bound in tensor["value_range"])
        assert len(tensor["channel_def"]) == tensor["num_channels"]
    assert io["outputs"]["pred"]["channel_def"] == {str(i): n for i, n in LABELS.items()}
    assert trained.run["network"]["out_channels"] == io["outputs"]["pred"]["num_channels"]


def test_network_has_the_shapes_of_the_metadata(made: Bundle) -> None:
    from monai.bundle.scripts import verify_net_in_out

    path = made[0]
    verify_net_in_out(
        "network_def",
        str(path / "configs/metadata.json"),
        str(path / "configs/inference.json"),
        "cpu",
        bundle_root=str(path),
    )


def test_torchscript_in_it_is_the_network(made: Bundle) -> None:
    path, trained, description = made
    window = torch.randn(3, *description.window[1:])
    program = torch.jit.load(str(path / "models/model.ts"))
    torch.testing.assert_close(program(window), trained.network(window), atol=1e-4, rtol=0)
    with zipfile.ZipFile(path / "models/model.ts") as archive:
        meta = json.loads(archive.read("model/extra/metadata.json"))
        sources = [name for name in archive.namelist() if name.endswith(".debug_pkl")]
    assert meta["task"].startswith("Segmentation of liver")
    assert not sources  # they name folders of this machine


def test_it_carries_one_network_and_no_more_of_kdpipe_than_runs(made: Bundle) -> None:
    (package,) = (made[0] / "code").iterdir()
    nets = {file.name for file in (package / "nets").glob("[!_]*.py")}
    assert nets == {"unet_tiny.py", "base.py"}
    assert not (package / "engine").exists()
    for folder in (made[0], package):
        assert (folder / "LICENSE").read_text().lstrip().startswith("Apache License")
    assert package.name in (made[0] / "docs/README.md").read_text()


def test_read_gives_the_network_back(made: Bundle) -> None:
    path, trained, description = made
    network, found = bundle.read(path, CPU)
    window = torch.randn(description.window)
    torch.testing.assert_close(network(window), trained.network(window), atol=0, rtol=0)
    assert found.to_json() == description.to_json()


def test_read_runs_nothing_of_the_bundle(tmp_path: Path) -> None:
    path, *_ = untrained(tmp_path)
    for file in (path / "code").rglob("*.py"):
        file.write_text("raise RuntimeError('the code of a stranger')")
    config = path / "configs/inference.json"
    config.write_text(json.dumps({"network_def": "$1 / 0", "imports": ["$import this"]}))
    bundle.read(path, CPU)
    assert "this" not in sys.modules


def test_read_refuses_a_network_of_another_project(tmp_path: Path) -> None:
    """Its parameters would name files, and a monai_bundle's expressions would be run."""
    path, _, description = untrained(tmp_path)
    foreign = dict(description.network) | {"name": "monai_bundle", "params": {"path": str(path)}}
    changed = dataclasses.replace(description, network=foreign)
    (path / bundle.DESCRIPTION).write_text(changed.to_json())
    with pytest.raises(DataError, match="another project's"):
        bundle.read(path, CPU)


def test_read_names_what_is_missing_or_damaged(tmp_path: Path) -> None:
    path, _, description = untrained(tmp_path)
    torch.save({"other": torch.zeros(1)}, path / bundle.WEIGHTS)
    with pytest.raises(DataError, match=r"models/model\.pt does not hold the network"):
        bundle.read(path, CPU)
    (path / bundle.WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"models/model\.pt does not hold the network"):
        bundle.read(path, CPU)
    (path / bundle.DESCRIPTION).unlink()
    with pytest.raises(DataError, match="no bundle of kdpipe"):
        bundle.read(path, CPU)


def test_bundle_is_a_teacher(made: Bundle) -> None:
    path, trained, description = made
    teacher = build_network("monai_bundle", {"path": str(path)}, 1, 4, 3)
    window = torch.randn(description.window)
    torch.testing.assert_close(teacher(window), trained.network(window), atol=0, rtol=0)
    decides = discover.trained_files("monai_bundle", {"path": str(path)})
    assert {"unet_tiny.py", "model.pt", "inference.json"} <= {file.name for file in decides}
    with pytest.raises(ConfigError, match="4 classes, the data set has 3"):
        build_network("monai_bundle", {"path": str(path)}, 1, 3, 3)


def test_names_of_labels_are_never_run(tmp_path: Path) -> None:
    """MONAI's parser runs each text that is an import, wherever it stands."""
    path, trained, description = untrained(tmp_path)
    names = {0: "background", 1: "$import this", 2: "%/etc/passwd"}
    hostile = dataclasses.replace(description, labels=names, channels=["$import this"])
    path = write(tmp_path / "hostile", trained, hostile)
    save(scan(0), tmp_path / "scans" / "a.nii.gz")
    flow = workflow(path, dataset_dir=str(tmp_path / "scans"), output_dir=str(tmp_path / "out"))
    flow.run()
    assert "this" not in sys.modules
    assert bundle.read(path, CPU)[1].labels == names


def test_parameters_that_monai_would_run_are_refused(tmp_path: Path) -> None:
    _, _, description = untrained(tmp_path)
    network = dict(description.network) | {"params": {"norm": ["$import this"]}}
    with pytest.raises(ConfigError, match="takes for code"):
        configs.inference(dataclasses.replace(description, network=network), "package")


def test_network_of_another_project_is_not_written(made: Bundle, tmp_path: Path) -> None:
    _, trained, description = made
    network = dict(description.network) | {"name": "torchscript", "params": {"path": "a.ts"}}
    with pytest.raises(ConfigError, match="another project's"):
        write(tmp_path, trained, dataclasses.replace(description, network=network))
