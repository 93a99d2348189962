"""Phantoms are well-formed, reproducible, anatomical, and as hard as they should be."""

from __future__ import annotations

import json
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from kdpipe.cards import load_card
from kdpipe.data.phantoms._common import ORIENTATIONS
from kdpipe.data.phantoms.abdomen import (
    DUCT,
    KIDNEY,
    LIVER,
    SPLEEN,
    TUMOUR,
    generate,
    make_case,
)
from kdpipe.errors import ConfigError
from kdpipe.labels import Labels
from kdpipe.sources import CtAbdomen

CARD = load_card("phantom_ct")
assert CARD.generator is not None
N_CASES = CARD.generator.n_cases


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The data set of the card, and the seconds of processor time that it took."""
    folder = tmp_path_factory.mktemp("phantom")
    start = time.process_time()
    generate(folder, CARD.generator, CARD.labels)
    return folder, time.process_time() - start


@pytest.fixture(scope="module")
def cases(written: tuple[Path, float]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """HU, label ids and spacing of each case as read back and turned to RAS+."""
    found = []
    for index in range(N_CASES):
        image, label = (
            nib.as_closest_canonical(nib.load(written[0] / part / f"phantom_{index:03d}.nii.gz"))
            for part in ("imagesTr", "labelsTr")
        )
        hu, ids = np.asanyarray(image.dataobj), np.asanyarray(label.dataobj)
        found.append((hu, ids, np.array(image.header.get_zooms())))
    return found


def test_layout_and_types(written: tuple[Path, float]) -> None:
    folder, seconds = written
    description = json.loads((folder / "dataset.json").read_text())
    assert description["numTraining"] == len(description["training"]) == N_CASES
    assert description["labels"]["5"] == "tumour"
    axes, origins = set(), []
    for entry in description["training"]:
        image, label = nib.load(folder / entry["image"]), nib.load(folder / entry["label"])
        assert image.get_data_dtype() == np.int16
        assert label.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(image.affine, label.affine)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
        assert (image.header["qform_code"], image.header["sform_code"]) == (1, 1)
        axes.add("".join(nib.aff2axcodes(image.affine)))
        origins.append(np.abs(image.affine[:3, 3]).max())
    assert axes <= set(ORIENTATIONS)
    assert len(axes) >= 4
    assert min(origins) > 1
    assert seconds < 30  # about 6 on a free core; a slip to a slow method would show


def test_grids_vary_within_the_limits(cases: list) -> None:
    shapes = {hu.shape for hu, _, _ in cases}
    low, high = np.array(CARD.generator.shape_min), np.array(CARD.generator.shape_max)
    assert len(shapes) > N_CASES // 2
    assert all((low <= shape).all() and (shape <= high).all() for shape in map(np.array, shapes))
    spacings = {tuple(np.round(spacing.astype(float), 4).tolist()) for _, _, spacing in cases}
    assert spacings == set(CARD.generator.spacings)


def test_intensities_are_those_of_the_tissues(cases: list) -> None:
    means = {name: [] for name in ("liver", "kidney", "spleen", "duct", "tumour")}
    for hu, ids, _ in cases:
        corners = hu[:3, :3].ravel()
        assert abs(corners.mean() + 1000) < 30
        for name, index in CARD.labels.structures.items():
            if (ids == index).any():
                means[name].append(hu[ids == index].mean())
    middle = {name: np.mean(values) for name, values in means.items()}
    assert middle["duct"] < middle["tumour"] < middle["liver"] < middle["spleen"]
    assert middle["spleen"] < middle["kidney"]
    assert max(means["liver"]) > min(means["spleen"]), "the ranges of the patients should overlap"


def test_anatomy(cases: list) -> None:
    volumes = {index: [] for index in (LIVER, KIDNEY, SPLEEN, DUCT, TUMOUR)}
    for _, ids, spacing in cases:
        x = {i: np.argwhere(ids == i)[:, 0].mean() for i in (LIVER, SPLEEN) if (ids == i).any()}
        assert x[LIVER] > x.get(SPLEEN, -1), "RAS+: the liver is on the right"
        for index, found in volumes.items():
            if (ids == index).any():
                found.append((ids == index).sum() * spacing.prod())
        if (ids == TUMOUR).any():
            around = ndimage.binary_dilation(ids == TUMOUR) & (ids != TUMOUR)
            assert (ids[around] == LIVER).mean() > 0.6, "tumours are inside the liver"
        parts, n_parts = ndimage.label(ids == DUCT, np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel())[1:]
        assert sizes.max() > 0.6 * sizes.sum(), f"the duct fell into {n_parts} parts"
    median = {index: np.median(found) for index, found in volumes.items()}
    assert median[LIVER] > 2 * median[SPLEEN] > 2 * median[DUCT]
    assert median[LIVER] > 15 * median[TUMOUR]


def test_every_nth_case_lacks_one_structure_in_turn(cases: list) -> None:
    lacking = {
        index: sorted(set(range(6)) - set(np.unique(ids).tolist()))
        for index, (_, ids, _) in enumerate(cases)
    }
    expected = {5: [TUMOUR], 11: [KIDNEY], 17: [SPLEEN], 23: [TUMOUR]}
    assert lacking == {index: expected.get(index, []) for index in range(N_CASES)}
    complete = make_case(CtAbdomen(absent_every=0), 5)[1]
    assert set(np.unique(complete).tolist()) == set(range(6))


def test_edges_blend_and_noise_is_what_was_asked() -> None:
    clean = make_case(CtAbdomen(noise_sd=0), 0)[0].astype(float)
    noisy = make_case(CtAbdomen(noise_sd=40), 0)[0].astype(float)
    inner = np.s_[10:-10, 10:-10, 5:-5]  # air is clipped at -1024, so not counted
    assert 36 < (noisy - clean)[inner].std() < 44
    profile = clean[:, clean.shape[1] // 2, clean.shape[2] // 2]
    blended = ((profile > -900) & (profile < -200)).sum()
    assert 1 <= blended <= 8, "skin voxels are a mixture of air and fat"


def test_a_case_depends_on_seed_and_index_only(tmp_path: Path, written: tuple[Path, float]) -> None:
    fewer = CARD.generator.model_copy(update={"n_cases": 3})
    generate(tmp_path, fewer, CARD.labels)
    for file in sorted(tmp_path.glob("*/*.nii.gz")):
        same = written[0] / file.parent.name / file.name
        assert file.read_bytes() == same.read_bytes(), file.name
    first, other = make_case(CtAbdomen(seed=0), 0)[0], make_case(CtAbdomen(seed=1), 0)[0]
    assert first.shape != other.shape or (first != other).any()


def test_label_ids_go_by_name(tmp_path: Path) -> None:
    """A card may order the structures its own way, or leave some out."""
    generator = CtAbdomen(n_cases=3, absent_every=0)
    generate(tmp_path, generator, Labels(raw={0: "background", 1: "spleen", 2: "liver"}))
    stored = nib.as_closest_canonical(nib.load(tmp_path / "labelsTr/phantom_000.nii.gz"))
    ids, structures = np.asanyarray(stored.dataobj), make_case(generator, 0)[1]
    np.testing.assert_array_equal(ids == 1, structures == SPLEEN)
    np.testing.assert_array_equal(ids == 2, np.isin(structures, (LIVER, TUMOUR)))
    assert ids.max() == 2


@pytest.mark.parametrize(
    ("generator", "labels", "message"),
    [
        ({}, {0: "background", 1: "livr"}, r"makes no 'livr': did you mean 'liver'\?"),
        ({"shape_min": (80, 56, 28)}, {0: "background", 1: "liver"}, r"\(80, 72\)"),
        ({"shape_min": (8, 56, 28)}, {0: "background", 1: "liver"}, r"need 16 <= min"),
    ],
)
def test_wrong_cards(tmp_path: Path, generator: dict, labels: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(tmp_path, CtAbdomen(**generator), Labels(raw=labels))
    assert not list(tmp_path.iterdir())
