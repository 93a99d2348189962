"""Real MR volumes from the folder to the prepared store and back, where they are at hand."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from kdpipe.cards import load_card
from kdpipe.data.layout import list_files
from kdpipe.data.prepare import prepare_case
from kdpipe.data.store import StoredCase
from kdpipe.data.targets import Targets
from kdpipe.infer.restore import restore_labels


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
