"""Folder evaluation on files that the tests write."""

from __future__ import annotations

import csv
import logging
import math
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from kdpipe.errors import ConfigError, DataError
from kdpipe.metrics import folders
from kdpipe.metrics.folders import COLUMNS, PREPARED, evaluate_folders
from kdpipe.metrics.labelmaps import LabelMap, read_label_map
from kdpipe.metrics.protocol import get_protocol, score_case

STRUCTURES = {"organ": (1,), "tumour": (2,), "whole": (1, 2)}
SPACING_XYZ = (0.7, 0.8, 2.5)


def _write(path: Path, labels: np.ndarray, **geometry) -> None:
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(geometry.get("spacing", SPACING_XYZ[: labels.ndim]))
    image.SetOrigin(geometry.get("origin", (-120.5, 33.25, 801.0)[: labels.ndim]))
    if "direction" in geometry:
        image.SetDirection(geometry["direction"])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=geometry.get("compress", True))


def _labels(seed: int, shape: tuple[int, ...] = (6, 12, 10)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)


@pytest.fixture
def study(tmp_path: Path) -> tuple[Path, Path]:
    """Three cases in two folders, in different file formats."""
    for case, (left, right) in {
        "a": (".nii.gz", ".nii.gz"),
        "b": (".nrrd", ".nii"),
        "c.1": (".mha", ".nrrd"),
    }.items():
        _write(tmp_path / "ref" / f"{case}{left}", _labels(ord(case[0])))
        _write(tmp_path / "pred" / f"{case}{right}", _labels(ord(case[0]) + 50))
    return tmp_path / "ref", tmp_path / "pred"


def _evaluate(study: tuple[Path, Path], **options) -> pd.DataFrame:
    return evaluate_folders(*study, STRUCTURES, "strict_mm", None, **options)


def test_table_holds_what_score_case_says(study) -> None:
    table = evaluate_folders(*study, STRUCTURES, "strict_mm", None)
    assert list(table.columns) == list(COLUMNS)
    expected = [
        (case, s.structure, s.metric, "strict_mm", s.value, s.unit, s.status)
        for case in ("a", "b", "c.1")
        for s in score_case(
            _labels(ord(case[0])),
            _labels(ord(case[0]) + 50),
            SPACING_XYZ[::-1],
            STRUCTURES,
            "strict_mm",
        )
    ]
    values = table.pop("value")
    assert list(values) == pytest.approx([row[4] for row in expected], rel=1e-6)  # float32 header
    assert [tuple(row) for row in table.to_numpy()] == [row[:4] + row[5:] for row in expected]


def test_several_protocols_are_scored_from_one_reading(study, monkeypatch) -> None:
    read: list[Path] = []

    def reader(path: Path, case: str) -> LabelMap:
        read.append(path)
        return read_label_map(path, case)

    names = ["medpy", "transunet", "boundary_bands"]
    alone = [evaluate_folders(*study, STRUCTURES, name) for name in names]
    monkeypatch.setattr(folders, "read_label_map", reader)
    together = evaluate_folders(*study, STRUCTURES, names)
    assert len(read) == 2 * 3
    assert list(together["case"]) == sorted(together["case"])
    for name, table in zip(names, alone, strict=True):
        same = together[together["protocol"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(same, table, check_exact=True)


def _as_stored(path: Path, case: str) -> LabelMap:
    return read_label_map(path, case)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_prepared_grid_is_scored_beside_the_native_one(study, tmp_path, workers) -> None:
    cases = ("a", "b", "c.1")
    for case in cases:  # coarser, and with other labels, so that no mix-up stays hidden
        _write(tmp_path / "stored" / f"{case}.nii.gz", _labels(1, (3, 6, 5)), spacing=(2, 2, 2))
        prediction = study[1] / PREPARED / f"{case}.nii.gz"
        _write(prediction, _labels(2, (3, 6, 5)), spacing=(2, 2, 2))
    stored = {
        case: partial(_as_stored, tmp_path / "stored" / f"{case}.nii.gz", case) for case in cases
    }
    both = evaluate_folders(
        *study, STRUCTURES, ["strict_mm", "acf_bckd"], prepared=stored, workers=workers
    )
    native = evaluate_folders(*study, STRUCTURES, "strict_mm")
    coarse = evaluate_folders(
        tmp_path / "stored", study[1] / PREPARED, STRUCTURES, "acf_bckd"
    )  # by hand: the folders are scored as they are
    assert list(both["case"]) == sorted(both["case"])
    for name, expected in (("strict_mm", native), ("acf_bckd", coarse)):
        same = both[both["protocol"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(same, expected, check_exact=True)
    (study[1] / PREPARED / "b.nii.gz").unlink()
    with pytest.raises(DataError, match=r"no prediction in .*prepared for 1 case: b\."):
        evaluate_folders(*study, STRUCTURES, "acf_bckd", prepared=stored)


def test_tolerances_are_of_the_structure(study) -> None:
    tolerances = {"organ": 100.0, "whole": 0.1}
    table = evaluate_folders(*study, STRUCTURES, "strict_mm", tolerances_mm=tolerances)
    shares = table[table["metric"] == "nsd"].pivot(
        index="case", columns="structure", values="value"
    )
    assert (shares["organ"] == 1).all()
    assert (shares["tumour"] < 1).all()


def test_csv_round_trips_to_the_bit_with_keys_first(study, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "metrics.csv"
    structures = STRUCTURES | {"absent": (9,)}
    keys = {"dataset": "phantom", "method": "cwd"}
    table = evaluate_folders(*study, structures, "strict_mm", out, keys=keys)
    with out.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == list(table.columns) == ["dataset", "method", *COLUMNS]
    back = pd.DataFrame(rows).astype({"value": float})
    pd.testing.assert_frame_equal(back, table, check_exact=True, check_dtype=False)
    assert {row["method"] for row in rows} == {"cwd"}
    absent = [row for row in rows if row["structure"] == "absent"]
    assert {(row["value"], row["status"]) for row in absent} == {("nan", "missing_in_both")}
    assert [p.name for p in out.parent.iterdir()] == ["metrics.csv"]


def test_workers_give_the_same_table_and_the_same_errors(study) -> None:
    alone = _evaluate(study)
    pd.testing.assert_frame_equal(_evaluate(study, workers=2), alone, check_exact=True)
    _write(study[1] / "b.nii", _labels(1, (6, 12, 11)))
    with pytest.raises(DataError, match="case b: .*different sizes"):
        _evaluate(study, workers=2)


def test_an_old_csv_survives_a_failing_evaluation(study, tmp_path: Path) -> None:
    out = tmp_path / "metrics.csv"
    out.write_text("old")
    _write(study[1] / "b.nii", _labels(1, (6, 12, 11)))
    with pytest.raises(DataError):
        evaluate_folders(*study, STRUCTURES, "strict_mm", out)
    assert out.read_text() == "old"


def test_two_dimensional_images(tmp_path: Path) -> None:
    reference, prediction = np.zeros((2, 8, 9), dtype=np.uint8)
    reference[2, 1], prediction[5, 1] = 1, 1
    _write(tmp_path / "ref" / "x.nii.gz", reference, spacing=(0.5, 2.0))
    _write(tmp_path / "pred" / "x.nii.gz", prediction, spacing=(0.5, 2.0))
    table = evaluate_folders(
        tmp_path / "ref", tmp_path / "pred", {"organ": (1,)}, "monai", None
    ).set_index("metric")
    assert table.loc["hd95_max", "value"] == 6.0  # three rows of 2 mm: axes in array order


def test_cases_pick_and_extra_predictions_are_named(study, caplog) -> None:
    with caplog.at_level(logging.INFO, logger=folders.__name__):
        table = _evaluate(study, cases=["c.1", "a", "a"])
    assert list(dict.fromkeys(table["case"])) == ["a", "c.1"]
    assert "not among the cases: b" in caplog.text


def test_references_may_lie_anywhere(study, tmp_path: Path) -> None:
    _write(tmp_path / "elsewhere" / "patient7" / "seg.nii.gz", _labels(ord("a")))
    references = {"a": tmp_path / "elsewhere" / "patient7" / "seg.nii.gz"}
    table = evaluate_folders(None, study[1], STRUCTURES, "medpy", references=references)
    direct = evaluate_folders(*study, STRUCTURES, "medpy", cases=["a"])
    pd.testing.assert_frame_equal(table, direct, check_exact=True)
    references["b"] = tmp_path / "gone.nii.gz"
    with pytest.raises(DataError, match="case b: there is no file .*gone.nii.gz"):
        evaluate_folders(None, study[1], STRUCTURES, "medpy", references=references)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_whole_floats_are_labels_and_fractions_are_not(study, suffix: str, dtype: type) -> None:
    expected = _evaluate(study, cases=["a"])
    labels = _labels(ord("a") + 50).astype(dtype)
    (study[1] / "a.nii.gz").unlink()
    path = study[1] / f"a{suffix}"
    _write(path, labels)
    pd.testing.assert_frame_equal(_evaluate(study, cases=["a"]), expected)
    for wrong in (0.5, math.nan, math.inf):
        labels[0, 0, :2] = wrong
        _write(path, labels)
        example = wrong if math.isfinite(wrong) else f"({wrong}|NaN or infinity)"
        with pytest.raises(
            DataError, match=f"case a: .*2 values .* for example {example};.*neares"
        ):
            _evaluate(study, cases=["a"])


@pytest.mark.parametrize("wrong", [-1, 70000])
def test_labels_out_of_range(study, wrong: int) -> None:
    labels = _labels(0).astype(np.int32)
    labels[0, 0, 0] = wrong
    _write(study[1] / "a.nii.gz", labels)
    with pytest.raises(DataError, match=rf"case a: labels of .* {wrong}.* in \[0, 65535\]"):
        _evaluate(study)


def test_missing_predictions_are_all_listed(study) -> None:
    (study[1] / "a.nii.gz").unlink()
    (study[1] / "c.1.nrrd").unlink()
    (study[1] / ".tmp-c.1.nrrd").write_bytes(b"half written")
    with pytest.raises(DataError, match=r"for 2 cases: a, c\.1\. Predict them"):
        _evaluate(study)
    assert set(_evaluate(study, cases=["b"])["case"]) == {"b"}


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ({"origin": (-120.5, 33.25, 801.03)}, r"0.03 mm apart.*801\.0\).*801\.03"),
        ({"spacing": (0.7, 0.8, 2.6)}, r"0\.55 mm apart.*2\.5\).*2\.6"),
        ({"direction": (-1, 0, 0, 0, -1, 0, 0, 0, 1)}, r"1\.0, 0\.0.*direction \(-1\.0, 0\.0"),
    ],
)
def test_other_geometry_is_refused_with_both_values(study, geometry, message: str) -> None:
    _write(study[1] / "a.mha", _labels(ord("a") + 50), **geometry)  # mha keeps doubles
    (study[1] / "a.nii.gz").unlink()
    with pytest.raises(DataError, match=f"(?s)case a: .*{message}.*Resample"):
        _evaluate(study)


def test_other_size_is_refused_with_both_values(study) -> None:
    _write(study[1] / "a.nii.gz", _labels(1, (6, 12, 9)))
    with pytest.raises(DataError, match=r"(?s)different sizes.*size \(10, 12, 6\).*\(9, 12, 6\)"):
        _evaluate(study)


def test_rounding_in_the_header_is_no_other_geometry(study) -> None:
    _write(study[1] / "a.nii.gz", _labels(3), origin=(-120.5 + 9e-3, 33.25, 801.0))
    rows = len(STRUCTURES) * len(get_protocol("strict_mm").metrics)
    assert len(_evaluate(study, cases=["a"])) == rows


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.9, -1])
@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".nii.gz", True), (".nii", False), (".nrrd", True), (".mha", True), (".mha", False)],
)
def test_truncated_files_are_refused(study, suffix: str, compress: bool, kept: float) -> None:
    (study[1] / "a.nii.gz").unlink()
    path = study[1] / f"a{suffix}"
    _write(path, _labels(ord("a"), (12, 40, 30)), compress=compress)
    whole = path.read_bytes()
    path.write_bytes(whole[: -16 if kept < 0 else int(kept * len(whole))])
    with pytest.raises(DataError, match=f"case a: cannot read .*a{suffix}: .*truncated"):
        _evaluate(study)


def test_a_flipped_bit_in_a_packed_nifti_is_refused(study) -> None:
    path = study[1] / "a.nii.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    with pytest.raises(DataError, match="case a: cannot read"):
        _evaluate(study)


def test_foreign_content_is_refused(study) -> None:
    (study[1] / "a.nii.gz").write_text("<html>login</html>" * 100)
    with pytest.raises(DataError, match="case a: cannot read"):
        _evaluate(study)


def test_channels_and_four_axes_are_refused(study) -> None:
    path = study[1] / "a.nii.gz"
    rgb = sitk.GetImageFromArray(np.zeros((6, 12, 10, 3), dtype=np.uint8), isVector=True)
    sitk.WriteImage(rgb, str(path))
    with pytest.raises(DataError, match="case a: .*3 values a voxel; a label map is 2D or 3D"):
        _evaluate(study)
    series = sitk.GetImageFromArray(np.zeros((2, 6, 12, 10), dtype=np.uint8), isVector=False)
    sitk.WriteImage(series, str(path))
    with pytest.raises(DataError, match=r"case a: .*size \(10, 12, 6, 2\)"):
        _evaluate(study)


def test_two_files_for_one_case_are_refused(study) -> None:
    _write(study[0] / "a.nrrd", _labels(0))
    with pytest.raises(DataError, match="case a: two label maps in .*a.nii.gz and a.nrrd"):
        _evaluate(study)


def test_folders_without_cases_are_refused(study, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="no case to score: .*empty holds no label map"):
        _evaluate((empty, study[1]))
    with pytest.raises(DataError, match="nowhere is no folder"):
        _evaluate((study[0], tmp_path / "nowhere"))
    with pytest.raises(DataError, match="the list of cases is empty"):
        _evaluate(study, cases=[])
    with pytest.raises(DataError, match="no reference for 2 cases: y, z"):
        _evaluate(study, cases=["z", "a", "y"])


def test_wrong_arguments_are_refused(study) -> None:
    with pytest.raises(ConfigError, match="did you mean 'monai'"):
        evaluate_folders(*study, STRUCTURES, "mona", None)
    with pytest.raises(ConfigError, match="workers must be at least 1, got 0"):
        _evaluate(study, workers=0)
    with pytest.raises(ConfigError, match=r"keys \['case', 'value'\] are columns"):
        _evaluate(study, keys={"value": "1", "case": "x", "seed": "0"})
    with pytest.raises(ConfigError, match="no references"):
        _evaluate((None, study[1]))
    with pytest.raises(ConfigError, match="'organ' needs distinct labels"):
        evaluate_folders(*study, {"organ": (0,)}, "strict_mm", None)
