"""Export of a trained network: every form is checked on real cases, or nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ship.models import turned
from torch import nn
from toy import LABELS, Toy

from kdpipe.cli import main
from kdpipe.data.store import StoredCase
from kdpipe.errors import ConfigError, DataError
from kdpipe.infer.description import Description
from kdpipe.infer.model import TrainedModel, load_model, save_model
from kdpipe.infer.window import sliding_scores
from kdpipe.ship import export as stage
from kdpipe.ship.forms import load_form
from kdpipe.ship.parity import CASES, WINDOWS, Reference, check
from kdpipe.ship.reading import read_network
from kdpipe.ship.windows import draw_windows

CPU = torch.device("cpu")
FORMS = ("onnx", "int8", "torchscript", "program")
FLOAT = ("onnx", "torchscript", "program")


def arguments(toy: Toy, out: Path, *more: object) -> list[str]:
    paths = ("--model", toy.model, "--prepared", toy.prepared, "--split", toy.split, "--out", out)
    return ["export", *map(str, (*paths, *more))]


@pytest.fixture(scope="module")
def exported(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``kdpipe export`` writes of the toy."""
    folder = tmp_path_factory.mktemp("export")
    run = {"labels": LABELS, "overlap": 0.25, "forms": FORMS, "provenance": {"study": "toy"}}
    (folder / "run.json").write_text(json.dumps(run))
    assert main(arguments(toy, folder / "out", "--run", folder / "run.json")) == 0
    return folder / "out"


def facts_of(exported: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((exported / "parity.json").read_text())
    return facts


def test_the_folder_holds_the_model_and_all_forms(toy: Toy, exported: Path) -> None:
    files = {load_form(form).FILE for form in FORMS}
    assert {path.name for path in exported.iterdir()} == files | {
        "model.pt",
        "description.json",
        "parity.json",
    }
    assert (exported / "model.pt").read_bytes() == toy.model.read_bytes()


def test_forms_in_float_are_checked_to_be_the_same(toy: Toy, exported: Path) -> None:
    facts = facts_of(exported)
    assert set(facts["forms"]) == set(FORMS)
    for form in FLOAT:
        found = facts["forms"][form]
        assert found["largest_difference"] <= 1e-4 and found["same_labels"] >= 0.9999
        assert set(found["cases"]) == set(toy.cases["val"])
        assert found["dice_loss"] == pytest.approx(0, abs=1e-4)
        assert found["bytes"] == (exported / found["file"]).stat().st_size
    assert facts["reference"]["dice"] > 0.3  # the toy has learnt something


def test_what_eight_bits_lose_is_reported(exported: Path) -> None:
    facts = facts_of(exported)
    found = facts["forms"]["int8"]
    assert found["largest_difference"] > 1e-3
    assert found["dice_loss"] == pytest.approx(facts["reference"]["dice"] - found["dice"])
    assert abs(found["dice_loss"]) < 0.02
    assert found["bytes"] < facts["forms"]["onnx"]["bytes"]


def test_latency_is_the_median_of_calls_in_turns_with_torch(exported: Path) -> None:
    facts = facts_of(exported)
    for found in facts["forms"].values():
        for which in ("", "torch_"):
            times = found[f"{which}latencies_ms"]
            assert len(times) == facts["timing"]["repeats"] >= 5 and min(times) > 0
            assert found[f"{which}latency_ms"] == sorted(times)[len(times) // 2]
    assert facts["timing"]["threads"] == 1


def test_dice_is_that_of_the_stored_labels(toy: Toy, exported: Path) -> None:
    loaded = read_network(exported / "model.onnx", "auto", CPU)
    case = StoredCase(toy.prepared / "cases" / toy.cases["val"][0])
    image, label = case.whole()
    scores = sliding_scores(loaded.network, torch.from_numpy(image), (16,) * 3, 0.25)
    found = scores.argmax(0).numpy()
    dices = [
        2 * ((found == k) & (label == k)).sum() / ((found == k).sum() + (label == k).sum())
        for k in (1, 2, 3)
    ]
    reported = facts_of(exported)["forms"]["onnx"]["cases"][toy.cases["val"][0]]["dice"]
    assert reported == pytest.approx(np.mean(dices))


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "backend", "form"),
    [
        (".", "auto", "torch"),
        (".", "torch", "torch"),
        (".", "onnxruntime", "onnx"),
        (".", "openvino", "torch"),
        ("model.pt", "auto", "torch"),
        ("model.onnx", "onnxruntime", "onnx"),
        ("model.int8.onnx", "auto", "int8"),
        ("model.ts", "torch", "torchscript"),
        ("model.pt2", "auto", "program"),
    ],
)
def test_what_was_exported_is_read(exported: Path, name: str, backend: str, form: str) -> None:
    if backend == "openvino" and find_spec("openvino") is None:
        pytest.skip("needs openvino")
    loaded = read_network(exported / name, backend, CPU)
    assert loaded.form == form and loaded.window_batch >= 1
    named = name != "model.pt"  # the study's own file knows no names
    assert loaded.description.labels == (LABELS if named else numbered())
    assert loaded.description.overlap == (0.25 if named else 0.5)
    assert (loaded.description.provenance.get("study") == "toy") is named
    trained = load_model(exported / "model.pt")
    windows = torch.rand(loaded.window_batch, 1, 16, 16, 16)
    with torch.inference_mode():
        apart = (loaded.network(windows) - trained.network(windows)).abs().max()
    assert apart < (1.0 if form == "int8" else 1e-4)


def numbered() -> dict[int, str]:
    return {0: "background", 1: "label_1", 2: "label_2", 3: "label_3"}


@pytest.mark.parametrize(
    ("name", "backend", "message"),
    [
        ("gone.onnx", "auto", "gone.onnx is not there"),
        ("parity.json", "auto", r"no network; files of networks end with .*\.onnx"),
        ("model.pt", "onnxruntime", "for the backend torch or openvino, not for onnxruntime"),
        ("model.onnx", "torch", "for the backend onnxruntime, not for torch"),
        ("model.ts", "openvino", "for the backend torch, not for openvino"),
        ("model.pt", "tensorrt", "unknown backend 'tensorrt'"),
        ("..", "auto", "neither a folder that 'kdpipe export' wrote"),
    ],
)
def test_what_is_no_network_for_a_backend(
    exported: Path, name: str, backend: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_network(exported / name, backend, CPU)


def test_the_folder_of_a_cell_holds_a_model(toy: Toy) -> None:
    with pytest.raises(ConfigError, match=f"neither a folder.*; give {toy.model}"):
        read_network(toy.model.parent, "auto", CPU)


def test_a_folder_without_onnx_says_so(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "export")
    (tmp_path / "export" / "model.onnx").unlink()
    with pytest.raises(ConfigError, match="exported without the form 'onnx'"):
        read_network(tmp_path / "export", "onnxruntime", CPU)


def test_a_folder_with_another_network_is_refused(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "export")
    trained = load_model(exported / "model.pt")
    other = {**trained.preparation, "channels": ["MR"]}
    save_model(tmp_path / "export" / "model.pt", trained.network.state_dict(), trained.run, other)
    with pytest.raises(DataError, match=r"description\.json describes another network"):
        read_network(tmp_path / "export", "torch", CPU)


def test_damaged_files_of_a_folder(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "export")
    (tmp_path / "export" / "description.json").write_text("{}")
    with pytest.raises(DataError, match=r"description\.json: its description is not usable"):
        read_network(tmp_path / "export", "auto", CPU)
    (tmp_path / "export" / "model.pt").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a usable kdpipe model"):
        read_network(tmp_path / "export", "auto", CPU)


def test_a_bit_of_the_weights_that_turned_is_seen(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(turned(toy.model.read_bytes()))
    with pytest.raises(DataError, match=r"model\.pt: .*wrong checksum of"):
        read_network(tmp_path / "model.pt", "auto", CPU)


# --- a check that fails -------------------------------------------------------------------------


def wrong_by(shift: float) -> Any:
    """The form torchscript, but of a network with other logits for the first class."""
    own = load_form("torchscript")

    class Shifted(nn.Module):
        def __init__(self, network: nn.Module):
            super().__init__()
            self.network = network

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            logits = self.network(image)
            return torch.cat([logits[:, :1] + shift, logits[:, 1:]], 1)

    def write(
        trained: TrainedModel, description: Description, path: Path, windows: Sequence[np.ndarray]
    ) -> None:
        shifted = TrainedModel(Shifted(trained.network), trained.run, trained.preparation)
        own.write(shifted, description, path, windows)

    return SimpleNamespace(FILE=own.FILE, write=write)


def test_nothing_is_written_when_a_form_is_not_the_same(
    toy: Toy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(stage, "load_form", lambda name: wrong_by(1e-3))
    assert main(arguments(toy, tmp_path / "out", "--forms", "torchscript")) == 3
    assert not list(tmp_path.iterdir())
    said = capsys.readouterr().err
    first = toy.cases["val"][0]
    assert f"form 'torchscript', case '{first}': logits differ by up to 0.001" in said
    assert "at most 0.0001 is allowed" in said


def found(apart: float, same: float) -> dict[str, Any]:
    return {"cases": {"one": {"largest_difference": apart, "same_labels": same}}}


def test_limits() -> None:
    for form in ("onnx", "int8"):
        check(form, found(1e-4, 0.9999))
    check("int8", found(5.0, 0.5))
    with pytest.raises(DataError, match="'onnx', case 'one': logits differ by up to 0.00011"):
        check("onnx", found(1.1e-4, 1.0))
    with pytest.raises(DataError, match="'bundle', case 'one': 0.999800 of the labels"):
        check("bundle", found(0.0, 0.9998))
    for form in ("onnx", "int8"):
        with pytest.raises(DataError, match="not finite"):
            check(form, found(float("nan"), 1.0))


class Step(nn.Module):
    """Jumps where the image reaches a level, `inclusive` or not, and is linear elsewhere."""

    def __init__(self, level: float, inclusive: bool, shift: float = 0.0):
        super().__init__()
        self.level, self.inclusive, self.shift = level, inclusive, shift

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        above = image >= self.level if self.inclusive else image > self.level
        logits = above.to(image.dtype) + image / 8 + self.shift
        return torch.cat([logits, *[image] * 3], 1)


def test_windows_that_rounding_alone_changes_do_not_count(toy: Toy) -> None:
    trained = load_model(toy.model)
    description = Description.of_run(trained.run, trained.preparation)
    store, cases = toy.prepared / "cases", toy.cases["val"]
    windows = draw_windows(store, cases, description, WINDOWS, CASES)
    values, counts = np.unique(np.stack([w.image for w in windows]), return_counts=True)
    counts[(values < 0.2) | (values > 0.8)] = counts.max()  # where most of the tissue is not
    level = float(values[counts.argmin()])  # the rarest, which not all windows have
    hit = sum(bool((window.image == level).any()) for window in windows)
    assert 0 < hit < WINDOWS
    reference = Reference.of(Step(level, False), description, store, cases)
    facts = reference.compare(Step(level, True), 1)
    assert facts["unsteady_windows"] == hit and facts["largest_difference"] == 0
    facts = reference.compare(Step(level, True), 1, limited=False)
    assert facts["unsteady_windows"] == 0 and facts["largest_difference"] == pytest.approx(1)
    facts = reference.compare(Step(level, True, shift=1e-3), 1)
    assert facts["unsteady_windows"] == hit
    assert facts["largest_difference"] == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--forms", "onnyx"), 2, "did you mean 'onnx'"),
        (("--model", "gone.pt"), 2, "gone.pt is not there"),
        (("--prepared", "gone"), 2, "gone/run.json: not readable as JSON"),
        (("--prepared", "."), 2, "run.json: not the settings of this stage, preset, channels"),
        (("--run", "run.json"), 2, "name each of them"),
    ],
)
def test_bad_input(
    toy: Toy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = {"labels": {"0": "air", "1": "liver"}, "overlap": 0.5, "forms": ["onnx"]}
    Path("run.json").write_text(json.dumps(run))
    assert main(arguments(toy, tmp_path / "out", *more)) == code
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("name", ["precious", "precious/thesis.txt"])
def test_only_an_export_is_replaced(
    name: str, toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thesis = tmp_path / "precious" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("three years")
    assert main(arguments(toy, tmp_path / name, "--forms", "torchscript")) == 2
    assert "thesis.txt" in capsys.readouterr().err
    assert thesis.read_text() == "three years"
    for _ in ("written", "replaced"):
        assert main(arguments(toy, tmp_path / "out", "--forms", "torchscript")) == 0


def test_a_split_without_validation_cases_cannot_check(toy: Toy, tmp_path: Path) -> None:
    split = {**toy.cases, "val": []}
    with pytest.raises(ConfigError, match="no validation case to check"):
        stage.export(toy.model, toy.prepared, split, tmp_path / "out", ["torchscript"])


def test_images_of_another_preparation_are_refused(toy: Toy, tmp_path: Path) -> None:
    run = json.loads((toy.prepared / "run.json").read_text())
    run["preset"]["spacing"] = [1.0, 1.0, 1.0]
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(ConfigError, match="was prepared with the preset"):
        stage.export(toy.model, tmp_path, toy.cases, tmp_path / "out", ["torchscript"])


# --- windows ------------------------------------------------------------------------------------


def test_windows_are_of_all_cases_centred_on_structures_and_repeatable(toy: Toy) -> None:
    trained = load_model(toy.model)
    description = Description.of_run(trained.run, trained.preparation)
    store, cases = toy.prepared / "cases", toy.cases["train"]
    drawn, again = (draw_windows(store, cases, description, 8, 16) for _ in range(2))
    assert [window.case for window in drawn] == (sorted(cases) * 3)[:8]
    for one, other in zip(drawn, again, strict=True):
        assert one.image.shape == (1, 16, 16, 16) and one.image.dtype == np.float32
        np.testing.assert_array_equal(one.image, other.image)
    assert len({window.image.tobytes() for window in drawn}) == 8
    few = draw_windows(store, cases, description, 4, 2)
    assert [window.case for window in few] == [sorted(cases)[index] for index in (0, 1, 0, 1)]
    assert draw_windows(store, [], description, 4, 2) == []


def test_windows_of_two_sides_are_slices(toy: Toy) -> None:
    trained = load_model(toy.model)
    run = {**trained.run, "patch": [16, 12]}
    description = Description.of_run(run, trained.preparation)
    store, cases = toy.prepared / "cases", toy.cases["train"][:1]
    (window,) = draw_windows(store, cases, description, 1, 1)
    assert window.image.shape == (1, 16, 12)
    image = StoredCase(store / cases[0]).image()
    views = np.lib.stride_tricks.sliding_window_view(image[0], (16, 12), axis=(0, 1))
    assert (views == window.image[0]).all(axis=(-1, -2)).any()
