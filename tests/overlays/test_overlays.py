"""Pictures of single cases: which cases, networks and slices are chosen, and what is drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from kdpipe.data.manifest import Case, write_manifest
from kdpipe.errors import DataError
from kdpipe.metrics.labelmaps import LabelMap
from kdpipe.overlays import write as overlays
from kdpipe.overlays.outlines import draw_errors, draw_structures, errors_of, styles_of
from kdpipe.overlays.slices import frame_of, grey_window, to_grey, view_of
from kdpipe.overlays.write import write_overlays

STRUCTURES = {"liver": [1], "cyst": [2]}
SIZE = (6, 20, 24)  # z, y, x
SPACING = (5.0, 1.0, 0.8)
#: (teacher, method) -> case -> Dice of the first seed; the second has 0.1 less
DICE = {
    ("no_teacher", "none"): {"a": 0.7, "b": 0.5, "c": 0.9, "d": 0.5},
    ("big", "kd"): {"a": 0.8, "b": 0.6, "c": 0.9, "d": 0.6},
    ("big", "cwd"): {"a": 0.9, "b": 0.7, "c": 0.9, "d": 0.7},
    ("big", "at"): {"a": 0.7, "b": 0.6, "c": 0.6, "d": 0.6},
    ("no_teacher", "ps_kd"): {"a": 0.1, "b": 0.1, "c": 0.1, "d": 0.1},
}


def _write(array: np.ndarray, file: Path, spacing: tuple[float, ...] = SPACING) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(file))


def _labels() -> np.ndarray:
    labels = np.zeros(SIZE, np.uint8)
    labels[1:4, 4:14, 5:12] = 1
    labels[2, 6:9, 6:9] = 2
    labels[2, 15, 5:12] = 1
    return labels


def _row(keys: dict[str, Any], case: str, structure: str, value: float) -> dict[str, Any]:
    score = {"metric": "dice", "protocol": "strict_mm", "value": value}
    rest = {"unit": "fraction", "status": "ok"}
    return {**keys, "case": case, "structure": structure, **score, **rest}


class Study:
    """Scores and predictions of two seeds; cases a and b are tested in fold 0, c and d in fold 1.

    Every student but the undistilled one misses the liver in slice 3.
    """

    def __init__(self, root: Path):
        self.root, self.cells, self.rows = root, [], []
        cases = []
        for case in "abcd":
            image, label = root / f"{case}.nii.gz", root / "labels" / f"{case}.nii.gz"
            _write(np.random.default_rng(0).normal(size=SIZE).astype(np.float32), image)
            _write(_labels(), label)
            cases.append(Case(case, case, (image,), label))
        write_manifest(root / "manifest.tsv", cases)
        for fold, tested in enumerate(("ab", "cd")):
            teacher = {"role": "teacher", "teacher": "big", "student": "", "method": ""}
            self.cell(fold, teacher, 0, dict.fromkeys(tested, 0.95))
            for (name, method), dice in DICE.items():
                arm = {"role": "student", "teacher": name, "student": "tiny", "method": method}
                for seed in (0, 1):
                    self.cell(fold, arm, seed, {c: dice[c] - 0.1 * seed for c in tested})
        self.run: dict[str, Any] = {
            "study": "s",
            "cells": self.cells,
            "protocols": ["strict_mm"],
            "entries": {"methods": {"none": {"name": "none", "params": {}}}},
            "datasets": {
                "toy": {
                    "channels": ["T1", "T2"],
                    "structures": STRUCTURES,
                    "has_spacing": True,
                    "manifest": str(root / "manifest.tsv"),
                }
            },
        }

    def cell(self, fold: int, arm: dict[str, Any], seed: int, dice: dict[str, float]) -> None:
        keys = {"dataset": "toy", "split": "kfold2", "fold": fold, **arm, "seed": seed}
        folder = self.root / "_".join(str(value) for value in keys.values())
        self.cells.append({"folder": str(folder), "profile": "", **keys})
        for case, value in dice.items():
            predicted = _labels()
            if arm["method"] not in ("", "none"):
                predicted[3] = 0
            _write(predicted, folder / "predictions" / f"{case}.nii.gz")
            self.rows += [_row(keys, case, "liver", value), _row(keys, case, "cyst", np.nan)]

    def draw(self, out: Path) -> list[dict[str, Any]]:
        pd.DataFrame(self.rows).to_csv(self.root / "scores.csv", index=False, na_rep="nan")
        write_overlays(self.run, self.root, out)
        return json.loads((out / "overlays.json").read_text())


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study whose pictures are drawn, coarsely."""
    monkeypatch.setattr("kdpipe.overlays.panels._DPI", 60)
    return Study(tmp_path / "study")


@pytest.fixture
def study(drawn: Study, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study whose pictures are empty files, for what is chosen does not depend on them."""
    monkeypatch.setattr(overlays, "draw", lambda picture, file: file.touch())
    return drawn


def test_worst_median_and_best_case_of_the_undistilled_student(
    drawn: Study, tmp_path: Path
) -> None:
    entries = drawn.draw(tmp_path / "out")
    cases = {entry["role"]: entry["case"] for entry in entries}
    assert cases == {"worst": "b", "median": "d", "best": "c"}  # b and d tie, by name
    assert {entry["file"] for entry in entries} | {"overlays.json"} == {
        file.name for file in (tmp_path / "out").iterdir()
    }
    for entry in entries:
        width, height = Image.open(tmp_path / "out" / entry["file"]).size
        assert width > 500 and height > 100
        assert entry["role"] in entry["caption"] and "4 test cases" in entry["caption"]


def test_columns_are_teacher_undistilled_and_the_three_best(study: Study, tmp_path: Path) -> None:
    entry = study.draw(tmp_path / "out")[0]
    assert [column["name"] for column in entry["columns"]] == [
        "big", "none (undistilled)", "cwd from big", "kd from big", "at from big",
    ]  # fmt: skip
    kinds = [column["kind"] for column in entry["columns"]]
    assert kinds == ["teacher", "none", "distilled", "distilled", "distilled"]
    undistilled = entry["columns"][1]
    assert undistilled["seed"] == 0
    assert undistilled["dice"] == {"liver": 0.5, "cyst": None, "mean": 0.5}


def test_slices_are_that_of_most_foreground_and_that_of_the_largest_difference(
    study: Study, tmp_path: Path
) -> None:
    entries = study.draw(tmp_path / "out")
    assert [(e["role"], e["slice"]) for e in entries[:2]] == [("worst", 2), ("worst", 3)]
    assert entries[0]["axis"] == 0 and entries[0]["plane"] == "axial"
    assert entries[0]["spacing"] == pytest.approx([5.0, 1.0, 0.8])
    assert "undistilled" in entries[1]["why"]


def test_a_case_is_read_from_the_fold_that_tests_it(study: Study, tmp_path: Path) -> None:
    for cell in study.cells:  # each has the predictions of its own fold only
        found = {file.name[0] for file in (Path(cell["folder"]) / "predictions").iterdir()}
        assert found == ({"a", "b"} if cell["fold"] == 0 else {"c", "d"})
    assert {entry["case"] for entry in study.draw(tmp_path / "out")} == {"b", "c", "d"}


@pytest.mark.parametrize(("kept", "roles"), [("a", ["median"]), ("ab", ["worst", "best"])])
def test_few_cases_are_shown_once(
    study: Study, tmp_path: Path, kept: str, roles: list[str]
) -> None:
    study.rows = [row for row in study.rows if row["case"] in kept]
    entries = study.draw(tmp_path / "out")
    assert list(dict.fromkeys(entry["role"] for entry in entries)) == roles


def test_without_an_undistilled_student_the_best_arm_ranks(study: Study, tmp_path: Path) -> None:
    study.rows = [row for row in study.rows if row["method"] != "none"]
    entries = study.draw(tmp_path / "out")
    assert "cwd from big" in entries[0]["caption"].split(".")[0]
    assert all(entry["why"] == "most reference foreground" for entry in entries)


def test_what_fails_leaves_the_earlier_pictures(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "pictures" / "s"
    before = study.draw(out)
    chosen = next(c for c in study.cells if c["method"] == "cwd" and c["fold"] == 1)
    (Path(chosen["folder"]) / "predictions" / "c.nii.gz").unlink()
    with pytest.raises(DataError, match=r"case c: there is no file .*cwd"):
        study.draw(out)
    assert json.loads((out / "overlays.json").read_text()) == before
    assert [path.name for path in out.parent.iterdir()] == ["s"]


def test_a_prediction_on_another_grid_is_refused(study: Study, tmp_path: Path) -> None:
    for cell in study.cells:
        if cell["method"] == "none":
            for file in (Path(cell["folder"]) / "predictions").iterdir():
                _write(_labels(), file, (4.0, 1.0, 0.8))
    with pytest.raises(DataError, match="different grids"):
        study.draw(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scores_without_the_protocol_are_refused(study: Study, tmp_path: Path) -> None:
    study.run["protocols"] = ["medpy"]
    with pytest.raises(DataError, match="no Dice by protocol 'medpy'"):
        study.draw(tmp_path / "out")


def test_colour_pictures(drawn: Study, tmp_path: Path) -> None:
    rng, cases = np.random.default_rng(0), []
    for case in "abcd":
        image, label = drawn.root / f"{case}.png", drawn.root / f"{case}_label.png"
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(image)
        Image.fromarray(_labels()[2]).save(label)
        cases.append(Case(case, case, (image,), label))
    write_manifest(drawn.root / "manifest.tsv", cases)
    drawn.run["datasets"]["toy"]["has_spacing"] = False
    for cell in drawn.cells:
        for file in (Path(cell["folder"]) / "predictions").iterdir():
            _write(_labels()[2:3], file, (1.0, 1.0, 1.0))
    entries = drawn.draw(tmp_path / "out")
    assert len(entries) == 3 and {entry["plane"] for entry in entries} == {"picture"}
    picture = np.asarray(Image.open(tmp_path / "out" / entries[0]["file"]).convert("RGB"), int)
    panel = picture[picture.shape[0] // 4, :90]  # of the image, which has no lines
    assert np.ptp(panel, axis=1).max() > 100


# slices


def _volume(codes: str, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> LabelMap:
    """A head whose right front top eighth is 1, stored in `codes` orientation (x, y, z)."""
    labels = np.zeros((8, 8, 8), np.uint8)  # LPS: x runs to the left, y to the back, z to the top
    labels[4:, :4, :4] = 1
    image = sitk.DICOMOrient(sitk.GetImageFromArray(labels), codes)
    image.SetSpacing(spacing[::-1])
    direction = np.array(image.GetDirection()).reshape(3, 3)
    return LabelMap(sitk.GetArrayFromImage(image), spacing, image.GetOrigin(), direction)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "RPI", "ASL", "SLP", "PIR"])
def test_axial_slices_have_the_right_on_the_left_and_the_front_at_the_top(codes: str) -> None:
    volume = _volume(codes)
    view = view_of(volume)
    axis = view.axes[0]
    top = 7 if codes[2 - axis] == "S" else 0
    shown = view.slice(volume.labels, top)
    assert view.name == "axial" and view.edges == ("R", "A")
    assert shown[:4, :4].all() and shown.sum() == 16


@pytest.mark.parametrize("codes", ["LPS", "RAS", "ASL", "PIR"])
@pytest.mark.parametrize(
    ("pair", "name", "edges", "near"),
    [("LR", "sagittal", ("A", "S"), "R"), ("PA", "coronal", ("R", "S"), "A")],
)
def test_slices_are_those_that_were_acquired(
    codes: str, pair: str, name: str, edges: tuple[str, str], near: str
) -> None:
    through = next(i for i in range(3) if codes[::-1][i] in pair)
    volume = _volume(codes, tuple(4.0 if i == through else 1.0 for i in range(3)))
    view = view_of(volume)
    shown = view.slice(volume.labels, 7 if codes[::-1][through] == near else 0)
    assert (view.name, view.edges, view.spacing) == (name, edges, (4.0, 1.0, 1.0))
    assert shown[:4, :4].all() and shown.sum() == 16


def test_window() -> None:
    ct = np.array([[[-1000.0, -175.0, 50.0, 275.0, np.nan, 3000.0]]])
    window = grey_window(ct, {"kind": "window", "low": -175, "high": 275})
    assert to_grey(ct, window).ravel().tolist() == [0.0, 0.0, 0.5, 1.0, 0.0, 1.0]
    assert grey_window(np.zeros((1, 4, 4), np.uint8), None) == (0.0, 255.0)
    low, high = grey_window(np.arange(1001.0).reshape(7, 11, 13), {"kind": "zscore"})
    assert (low, high) == (5.0, 995.0)
    low, high = grey_window(np.zeros((2, 2, 2)), None)
    assert high > low


def test_a_frame_holds_small_structures_and_keeps_to_the_reference_if_errors_are_far() -> None:
    small, far = np.zeros((100, 120), bool), np.zeros((100, 120), bool)
    small[40:50, 10:14] = True
    far[95:99, 115:119] = True
    frame, cut = frame_of([{"s": small}, {"s": small}], (1.0, 1.0))
    assert frame is not None and not cut
    assert frame.of(small).sum() == small.sum() and frame.of(small).size < 0.1 * small.size
    far_frame, cut = frame_of([{"s": small}, {"s": far}], (1.0, 1.0))
    assert far_frame == frame and cut
    assert frame_of([{"s": np.ones((9, 9), bool)}], (1.0, 1.0)) == (None, False)
    assert frame_of([{"s": np.zeros((9, 9), bool)}], (1.0, 1.0)) == (None, False)


# lines


def _axes() -> Any:
    figure = Figure(figsize=(2, 2))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 20)
    axes.set_ylim(20, 0)
    return axes


def test_outlines_lie_on_the_boundary_in_mm() -> None:
    mask = np.zeros((10, 10), bool)
    mask[2:5, 3:9] = True  # 4..10 mm down, 3..9 mm across
    axes = _axes()
    draw_structures(axes, {"s": mask}, (2.0, 1.0), styles_of(["s"]))
    (contour,) = axes.collections
    points = np.concatenate([path.vertices for path in contour.get_paths()])
    np.testing.assert_allclose(points.min(0), (3.0, 4.0), atol=0.4)
    np.testing.assert_allclose(points.max(0), (9.0, 10.0), atol=0.4)
    assert (points.min(0) >= (3.0, 4.0)).all() and (points.max(0) <= (9.0, 10.0)).all()


def test_nested_structures_are_drawn_from_the_largest() -> None:
    whole = np.ones((10, 10), bool)
    core = np.zeros((10, 10), bool)
    core[4:6, 4:6] = True
    axes = _axes()
    styles = styles_of(["core", "whole"])
    masks = {"core": core, "whole": whole, "absent": np.zeros_like(core)}
    draw_structures(axes, masks, (1.0, 1.0), styles)
    widths = [np.ptp(c.get_paths()[0].vertices[:, 0]) for c in axes.collections]
    assert len(widths) == 2 and widths[0] > 9 > 2 > widths[1]


def test_errors() -> None:
    reference = {"a": np.array([[1, 1, 0, 0]], bool), "b": np.array([[0, 0, 1, 0]], bool)}
    predicted = {"a": np.array([[1, 0, 1, 0]], bool), "b": np.array([[0, 0, 0, 1]], bool)}
    errors = errors_of(reference, predicted)
    assert {kind: mask.astype(int).tolist() for kind, mask in errors.items()} == {
        "missed": [[0, 1, 0, 0]],
        "false": [[0, 0, 0, 1]],
        "other": [[0, 0, 1, 0]],
    }
    axes = _axes()
    draw_errors(axes, errors, (2.0, 1.0))
    missed = np.array(axes.collections[0].get_segments())
    assert missed.shape == (4, 2, 2)  # one voxel, edge by edge
    assert missed.min((0, 1)).tolist() == [1.0, 0.0] and missed.max((0, 1)).tolist() == [2.0, 2.0]


def test_each_structure_has_a_line_of_its_own() -> None:
    names = [f"organ {i}" for i in range(20)]
    styles = styles_of(names)
    assert len({str(style) for style in styles.values()}) == 20
    assert styles_of(names[:4]) == {name: styles[name] for name in names[:4]}
