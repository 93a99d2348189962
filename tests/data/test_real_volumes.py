"""Real images from the folder to the prepared store and back, where they are at hand."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from kdpipe.cards import load_card
from kdpipe.data.folders.layout import list_files
from kdpipe.data.manifest import Case
from kdpipe.data.preparation.prepare import prepare_case
from kdpipe.data.store import StoredCase
from kdpipe.data.targets import Targets
from kdpipe.infer.restore import restore_labels, write_labels
from kdpipe.metrics.folders import evaluate_folders


def test_all_cases_of_the_card_are_found(hippocampus: Path) -> None:
    card = load_card("msd_task04_hippocampus")
    cases = list_files(hippocampus, card.layout, len(card.channels))
    assert len(cases) == 260
    rule = card.split("default")
    assert rule.kind == "fixed_counts"
    assert rule.train + rule.val + rule.test == len(cases)


def test_a_real_label_comes_back_to_the_voxel(hippocampus: Path, tmp_path: Path) -> None:
    card = load_card("msd_task04_hippocampus")
    preparation = card.preset("default").preparation
    for case in list_files(hippocampus, card.layout, len(card.channels))[::65]:
        prepare_case(case, preparation, card.labels, card.channels, tmp_path, "digest")
        stored = StoredCase(tmp_path / case.case)
        image, label = stored.whole()
        assert abs(float(image[image != 0].mean())) < 0.05, "z-scored over its own voxels"
        assert stored.classes == (1, 2)

        scores = np.moveaxis(np.eye(3, dtype=np.float32)[label], -1, 0)
        found = restore_labels(scores, stored.geometry, Targets(3))
        native = nib.load(case.label)
        expected = np.asarray(native.dataobj)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found).T, expected)
        sitk.WriteImage(found, str(tmp_path / "found.nii.gz"))
        np.testing.assert_allclose(
            nib.load(tmp_path / "found.nii.gz").affine, native.affine, atol=1e-5
        )


def dice_of_a_perfect_prediction(
    card_id: str, preset: str, case: Case, folder: Path
) -> list[float]:
    """Prepare a case, take its prepared label for a prediction, and score that on file."""
    card = load_card(card_id)
    preparation = card.preset(preset).preparation
    prepare_case(case, preparation, card.labels, card.channels, folder / "cases", "digest")
    stored = StoredCase(folder / "cases" / case.case)
    targets = Targets(len(card.labels.raw), card.labels.region_ids)
    scores = np.moveaxis(np.eye(targets.n_labels, dtype=np.float32)[stored.whole()[1]], -1, 0)
    restored = restore_labels(scores, stored.geometry, targets)
    write_labels(restored, folder / "predictions", case.case)
    table = evaluate_folders(
        None, folder / "predictions", card.labels.scored, "strict_mm",
        references={case.case: case.label}, cases=[case.case], in_voxels=not card.has_spacing,
    )  # fmt: skip
    units = {"mm", "ml"} if card.has_spacing else {"voxel"}
    assert set(table["unit"]) == {"fraction", *units}
    return table[table["metric"] == "dice"]["value"].tolist()


@pytest.mark.parametrize("preset", ["default", "slices"])
def test_thick_slices_come_back_after_resampling_in_the_plane(
    chaos: Path, tmp_path: Path, preset: str
) -> None:
    card = load_card("chaos_mr_t2")
    cases = list_files(chaos, card.layout, len(card.channels))
    assert len(cases) == 20
    for case in cases[::11]:
        found = dice_of_a_perfect_prediction("chaos_mr_t2", preset, case, tmp_path)
        assert len(found) == 4
        assert min(found) > 0.97
        geometry = StoredCase(tmp_path / "cases" / case.case).geometry
        native, prepared = (geometry[name]["spacing"] for name in ("oriented", "prepared"))
        assert prepared == [1.5, 1.5, native[2]]
        assert prepared[2] > 5, "thick slices are kept"


def test_pictures_come_back_to_the_pixel(kits_slices: Path, tmp_path: Path) -> None:
    card = load_card("kits19_slices")
    cases = list_files(kits_slices, card.layout, len(card.channels))
    assert len(cases) == 24
    assert len({case.subject for case in cases}) == 5
    for case in cases[::13]:
        found = dice_of_a_perfect_prediction("kits19_slices", "default", case, tmp_path)
        assert set(np.nan_to_num(found, nan=1.0)) == {1.0}
        image, _ = StoredCase(tmp_path / "cases" / case.case).whole()
        assert image.shape == (1, 512, 512, 1)
        assert (image.min(), image.max()) == (0, 1)
