"""Named protocols: every rule for missing structures, unions, and new entries as data."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import surface_distance
import torch
from medpy.metric.binary import assd, dc, jc
from medpy.metric.binary import hd as medpy_hd
from medpy.metric.binary import hd95 as medpy_hd95
from monai.metrics import (
    DiceMetric,
    HausdorffDistanceMetric,
    MeanIoU,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
)
from monai.transforms import AsDiscrete

from kdpipe.errors import ConfigError
from kdpipe.metrics import case
from kdpipe.metrics.protocol import MEASURES, PROTOCOLS, Score, score_case
from kdpipe.protocols import QUANTITIES, Scoring

SPACING = (3.0, 4.0)
STRUCTURES = {"both": (1,), "missed": (2,), "invented": (3,), "absent": (4,)}
STATUS = {
    "both": "ok",
    "missed": "missing_in_prediction",
    "invented": "missing_in_reference",
    "absent": "missing_in_both",
}


def _volumes() -> tuple[np.ndarray, np.ndarray]:
    reference, prediction = np.zeros((2, 4, 3), dtype=np.uint8)
    reference[0, 0], prediction[0, 1] = 1, 1
    reference[3, 2] = 2
    prediction[3, 1] = 3
    return reference, prediction


def _by_key(scores: list[Score]) -> dict[tuple[str, str], Score]:
    return {(s.structure, s.metric): s for s in scores}


NAN, INF, DIAGONAL = math.nan, math.inf, math.hypot(4 * 3.0, 3 * 4.0)
# both, missed, invented, absent; "both" are two single pixels, 4 mm apart along the last axis
STRICT_DISTANCE = (4.0, DIAGONAL, DIAGONAL, NAN)
ZERO = (0.0, 0.0, 0.0, NAN)
EXPECTED: dict[str, dict[str, tuple[float, ...]]] = {
    "strict_mm": {
        "dice": ZERO,
        "iou": ZERO,
        "hd95_pooled": STRICT_DISTANCE,
        "hd95_max": STRICT_DISTANCE,
        "hd100": STRICT_DISTANCE,
        "assd": STRICT_DISTANCE,
        "nsd": ZERO,
        "volume_error": (0.0, -1.0, NAN, NAN),
        "abs_volume_error": (0.0, 1.0, NAN, NAN),
        "reference_ml": (1.0, 1.0, NAN, NAN),  # pixels: a slice has no volume
    },
    "medpy": {
        "dice": ZERO,
        "iou": (0.0, 0.0, 0.0, 1.0),
        "hd95_pooled": (4.0, NAN, NAN, NAN),
        "hd100": (4.0, NAN, NAN, NAN),
        "assd": (4.0, NAN, NAN, NAN),
    },
    "monai": {
        "dice": (0.0, 0.0, NAN, NAN),
        "iou": (0.0, 0.0, NAN, NAN),
        "hd95_max": (4.0, NAN, NAN, NAN),
    },
    "deepmind": {
        "dice": ZERO,
        "hd95_area": (4.0, INF, INF, NAN),
        "hd100_area": (4.0, INF, INF, NAN),
        "nsd_area": (0.5, 0.0, 0.0, NAN),  # the meshes of the two pixels share an element
    },
    "acf_bckd": {
        "dice": (0.0, 0.0, NAN, NAN),
        "iou": (0.0, 0.0, NAN, NAN),
        "hd95_max": (1.0, NAN, NAN, NAN),
    },
    "transunet": {"dice": (0.0, 0.0, 1.0, 0.0), "hd95_pooled": (1.0, 0.0, 0.0, 0.0)},
    "nnformer": {"dice": (0.0, 0.0, 0.0, 1.0), "hd95_pooled": (1.0, 0.0, 0.0, 0.0)},
    "word": {"dice": (0.0, 0.0, 0.0, 0.0), "hd95_pooled": (4.0, 50.0, 50.0, 50.0)},
    "brats": {"dice": (0.0, 0.0, 0.0, 1.0), "hd95_max": (4.0, DIAGONAL, DIAGONAL, 0.0)},
    "kits": {"dice": (0.0, 0.0, 0.0, 1.0), "surface_dice": (0.5, 0.0, 0.0, 1.0)},
    "hlfd": {
        "dice": (1 / 3, 1 / 2, NAN, NAN),
        "voe": (1.0, 0.0, NAN, NAN),
        "rvd": (0.0, -1.0, NAN, NAN),
    },
    # the boundary runs through the centre of the one pixel, 0 mm inside; the next ones are 3 and
    # 4 mm away; the prediction labels one of the latter
    "boundary_bands": {
        "error_in_4_up": (NAN, NAN, NAN, NAN),
        "error_in_2_4": (NAN, NAN, NAN, NAN),
        "error_in_1_2": (NAN, NAN, NAN, NAN),
        "error_in_0_1": (1.0, 1.0, NAN, NAN),
        "error_out_0_1": (NAN, NAN, NAN, NAN),
        "error_out_1_2": (NAN, NAN, NAN, NAN),
        "error_out_2_4": (1 / 2, 0.0, NAN, NAN),
        "error_out_4_8": (0.0, 0.0, NAN, NAN),
    },
}


def test_every_protocol_has_its_empty_rules_tested() -> None:
    assert set(EXPECTED) == set(PROTOCOLS)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_empty_rules(name: str) -> None:
    scores = _by_key(score_case(*_volumes(), SPACING, STRUCTURES, name))
    expected = EXPECTED[name]
    assert list(scores) == [(s, m) for s in STRUCTURES for m in expected]
    for (structure, metric), score in scores.items():
        wanted = expected[metric][list(STRUCTURES).index(structure)]
        assert score.value == pytest.approx(wanted, nan_ok=True), score
        assert score.status == STATUS[structure]
        assert score.protocol == name


@pytest.mark.filterwarnings("ignore")
def test_the_monai_rules_are_what_monai_returns() -> None:
    reference, prediction = _volumes()
    scores = _by_key(score_case(reference, prediction, SPACING, STRUCTURES, "monai"))
    for structure, (label,) in STRUCTURES.items():
        one_hot = [torch.from_numpy(v == label)[None, None].float() for v in _volumes()[::-1]]
        found = {
            "dice": compute_dice(*one_hot, include_background=True),
            "iou": compute_iou(*one_hot, include_background=True),
            "hd95_max": compute_hausdorff_distance(
                *one_hot, include_background=True, percentile=95, spacing=list(SPACING)
            ),
        }
        for metric, value in found.items():
            assert scores[structure, metric].value == pytest.approx(value.item(), nan_ok=True)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_the_medpy_rules_are_what_medpy_returns_or_refuses() -> None:
    reference, prediction = _volumes()
    scores = _by_key(score_case(reference, prediction, SPACING, STRUCTURES, "medpy"))
    for structure, (label,) in STRUCTURES.items():
        masks = prediction == label, reference == label
        assert scores[structure, "dice"].value == pytest.approx(dc(*masks), nan_ok=True)
        assert scores[structure, "iou"].value == pytest.approx(jc(*masks), nan_ok=True)
        for metric, theirs in {"hd95_pooled": medpy_hd95, "hd100": medpy_hd, "assd": assd}.items():
            value = scores[structure, metric].value
            if structure == "both":
                assert value == theirs(*masks, SPACING)
            else:
                assert math.isnan(value)
                with pytest.raises(RuntimeError, match="does not contain any binary object"):
                    theirs(*masks, SPACING)


@pytest.mark.filterwarnings("ignore")
def test_the_deepmind_rules_are_what_the_library_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Inf", "NaN"):  # it is older than NumPy 2
        monkeypatch.setitem(vars(np), name, getattr(np, name.lower()))
    reference, prediction = np.zeros((2, 5, 6, 7), dtype=np.uint8)
    reference[1:3, 1:4, 1:5], prediction[1:4, 1:4, 2:6] = 1, 1
    reference[4, 5, 6], prediction[0, 0, 0] = 2, 3
    spacing = (3.0, 0.7, 0.7)
    scores = _by_key(
        score_case(reference, prediction, spacing, STRUCTURES, "deepmind", {"both": 0.8})
    )
    for structure, (label,) in STRUCTURES.items():
        masks = reference == label, prediction == label
        distances = surface_distance.compute_surface_distances(*masks, spacing)
        tolerance = 0.8 if structure == "both" else 1.0
        found = {
            "dice": surface_distance.compute_dice_coefficient(*masks),
            "hd95_area": surface_distance.compute_robust_hausdorff(distances, 95),
            "hd100_area": surface_distance.compute_robust_hausdorff(distances, 100),
            "nsd_area": surface_distance.compute_surface_dice_at_tolerance(distances, tolerance),
        }
        if structure == "absent":  # infinite there; nothing is to be compared
            found["hd95_area"] = found["hd100_area"] = NAN
        for metric, value in found.items():
            assert scores[structure, metric].value == pytest.approx(value, nan_ok=True), metric


@pytest.mark.filterwarnings("ignore")
def test_acf_bckd_is_what_its_code_gets_from_monai() -> None:
    """The very calls of its `MonaiMetric`: lists of one-hot volumes, no spacing, the buffers."""
    rng = np.random.default_rng(0)
    structures = {str(label): (label,) for label in range(1, 5)}
    to_one_hot = AsDiscrete(to_onehot=5)
    for trial in range(6):
        reference = np.repeat(np.repeat(rng.integers(0, 5, (4, 5, 6)), 3, 1), 2, 2)
        noise = rng.random(reference.shape) < 0.2
        prediction = np.where(noise, rng.integers(0, 5, reference.shape), reference)
        reference[reference == trial] = 0  # missing in the one,
        prediction[prediction == trial + 1] = 0  # in the other, and in both
        prediction[prediction == trial] = 0 if trial == 2 else trial
        pair = [[to_one_hot(torch.from_numpy(v)[None])] for v in (prediction, reference)]
        scores = _by_key(score_case(reference, prediction, (5, 2, 1), structures, "acf_bckd"))
        for name, metric in {
            "dice": DiceMetric(include_background=False, get_not_nans=True),
            "iou": MeanIoU(include_background=False, get_not_nans=True),
            "hd95_max": HausdorffDistanceMetric(
                include_background=False, percentile=95, get_not_nans=True
            ),
        }.items():
            metric(y_pred=pair[0], y=pair[1])
            theirs = metric.get_buffer()[0].numpy()
            ours = [scores[structure, name].value for structure in structures]
            # float32 there, the position between two ranks included
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)
            mean = np.nanmean(theirs)  # what the paper reports of a case
            assert np.nanmean(ours) == pytest.approx(mean, rel=1e-5)


def _transunet(prediction: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """The rules of TransUNet's script, in words of our own."""
    if prediction.any() and reference.any():
        return dc(prediction, reference), medpy_hd95(prediction, reference)
    return (1.0 if prediction.any() else 0.0), 0.0


def test_papers_in_voxels_do_not_look_at_the_spacing() -> None:
    rng = np.random.default_rng(1)
    reference, prediction = rng.integers(0, 4, (2, 6, 7, 8))
    prediction[prediction == 3], reference[reference == 2] = 0, 0
    structures = {str(label): (label,) for label in (1, 2, 3, 9)}
    for spacing in ((1.0, 1.0, 1.0), (5.0, 0.7, 0.9)):
        scores = _by_key(score_case(reference, prediction, spacing, structures, "transunet"))
        for name, (label,) in structures.items():
            found = scores[name, "dice"].value, scores[name, "hd95_pooled"].value
            assert found == _transunet(prediction == label, reference == label)
        nnformer = _by_key(score_case(reference, prediction, spacing, structures, "nnformer"))
        assert nnformer["1", "hd95_pooled"].value == scores["1", "hd95_pooled"].value
    word = _by_key(score_case(reference, prediction, spacing, structures, "word"))
    masks = prediction == 1, reference == 1
    assert word["1", "hd95_pooled"].value == medpy_hd95(*masks, spacing)
    assert [word[name, "hd95_pooled"].value for name in ("2", "3", "9")] == [50.0] * 3


def test_kits_by_hand() -> None:
    """Two slabs of unit voxels, one a voxel thicker: a tolerance decides one of its two faces."""
    reference, prediction = np.zeros((2, 12, 40, 40), dtype=np.uint8)
    reference[2:6], prediction[2:7] = 2, 2
    regions = {"kidney_and_mass": (1, 2, 3), "mass": (2, 3), "tumor": (2,)}
    tolerances = {"kidney_and_mass": 1.0331, "mass": 0.9}
    scores = _by_key(
        score_case(reference, prediction, (1.0, 1.0, 1.0), regions, "kits", tolerances)
    )
    assert scores["mass", "dice"].value == pytest.approx(8 / 9)
    assert scores["kidney_and_mass", "surface_dice"].value == 1.0
    assert scores["tumor", "surface_dice"].value == 1.0  # 1 mm where the card says nothing
    assert 0.4 < scores["mass", "surface_dice"].value < 0.6


def test_hlfd_by_hand() -> None:
    reference, prediction = np.zeros((2, 1, 10), dtype=np.uint8)
    reference[0, :6], prediction[0, 4:8] = 1, 1  # G 6, P 4, I 2
    scores = _by_key(score_case(reference, prediction, (1.0, 1.0), {"tumour": (1,)}, "hlfd"))
    assert [s.value for s in scores.values()] == pytest.approx([5 / 11, 2 * 2 / 10, 4 / 6 - 1])


def test_strict_mm_by_hand() -> None:
    reference, prediction = np.zeros((2, 4, 10, 10), dtype=np.uint8)
    reference[1:3, 2:6, 2:6], prediction[1:3, 2:6, 2:8] = 1, 1
    scores = _by_key(
        score_case(reference, prediction, (5.0, 2.0, 2.0), {"x": (1,)}, "strict_mm", {"x": 2.0})
    )
    values = {metric: score.value for (_, metric), score in scores.items()}
    assert values["dice"] == pytest.approx(2 * 32 / (32 + 48))
    assert values["iou"] == pytest.approx(32 / 48)
    assert values["hd100"] == 4.0
    assert values["volume_error"] == values["abs_volume_error"] == pytest.approx(0.5)
    assert values["reference_ml"] == pytest.approx(32 * 5 * 2 * 2 / 1000)
    # all 32 and 48 voxels are surface; 16 of the prediction's are off by 2 or 4 mm, 8 each
    assert values["nsd"] == pytest.approx(1 - 8 / 80)
    assert values["assd"] == pytest.approx((8 * 2 + 8 * 4) / 48 / 2, abs=0.2)
    assert scores["x", "reference_ml"].unit == "ml"


def test_several_protocols_score_as_each_alone() -> None:
    rng = np.random.default_rng(2)
    reference, prediction = rng.integers(0, 3, (2, 5, 6, 7))
    names = sorted(PROTOCOLS)
    arguments = (reference, prediction, (2.0, 1.0, 0.5), {"a": (1,), "b": (2, 7), "c": (9,)})
    together = score_case(*arguments, names)
    alone = [score for name in names for score in score_case(*arguments, name)]
    assert [repr(score) for score in together] == [repr(score) for score in alone]


def test_diagonal_is_that_of_the_image_not_of_the_structures() -> None:
    brats = np.zeros((155, 240, 240), dtype=np.uint8)
    missed = brats.copy()
    missed[70, 100, 100] = 1
    scores = _by_key(score_case(missed, brats, (1.0, 1.0, 1.0), {"tumour": (1,)}, "strict_mm"))
    # 373.13 is the penalty that the BraTS organisers use for this grid
    assert scores["tumour", "hd95_pooled"].value == pytest.approx(373.13, abs=5e-3)


@pytest.mark.parametrize("ndim", [2, 3])
def test_multi_label_volumes_equal_medpy_structure_by_structure(ndim: int) -> None:
    rng = np.random.default_rng(ndim)
    spacing = (2.5, 0.8, 0.8)[:ndim]
    structures = {"a": (1,), "b": (300,), "a+b": (300, 1), "c": (7,), "rest": (9, 7)}
    for _ in range(20):
        shape = tuple(rng.integers(8, 20, ndim))
        reference, prediction = (
            rng.choice([0, 0, 0, 1, 7, 9, 300], shape).astype(np.int16) for _ in range(2)
        )
        scores = _by_key(score_case(reference, prediction, spacing, structures, "strict_mm"))
        for name, ids in structures.items():
            masks = np.isin(prediction, ids), np.isin(reference, ids)
            assert scores[name, "dice"].value == dc(*masks)
            assert scores[name, "hd95_pooled"].value == medpy_hd95(*masks, spacing)


def test_a_union_is_present_when_one_of_its_labels_is() -> None:
    reference, prediction = np.zeros((2, 5, 5), dtype=np.uint8)
    reference[0, 0], prediction[0, 3] = 1, 9
    scores = _by_key(score_case(reference, prediction, (1.0, 1.0), {"u": (1, 9, 20)}, "strict_mm"))
    assert scores["u", "hd95_max"] == Score("u", "hd95_max", "strict_mm", 3.0, "mm", "ok")


def test_boolean_volumes_are_label_1() -> None:
    mask = np.eye(4, dtype=bool)
    scores = score_case(mask, mask, (1.0, 1.0), {"x": (1,)}, "medpy")
    assert [s.value for s in scores] == [1.0, 1.0, 0.0, 0.0, 0.0]


def _scoring(**metrics: Any) -> Scoring:
    return Scoring.model_validate({"name": "mine", "version": 1, "metrics": metrics})


def test_a_new_protocol_is_data() -> None:
    rules = {"missing_in_prediction": "diagonal", "missing_in_reference": 50}
    protocol = _scoring(
        dice={"quantity": "dice", "empty": 0.25},
        hd100={
            "quantity": "hausdorff_max",
            "percentile": 100,
            "empty": rules | {"missing_in_both": "infinite"},
        },
    ).model_copy(update={"distance_unit": "voxel"})
    protocol = pickle.loads(pickle.dumps(protocol))  # workers receive it
    again = Scoring.model_validate_json(protocol.model_dump_json())  # as a run.json holds it
    assert again == protocol
    scores = _by_key(score_case(*_volumes(), SPACING, STRUCTURES, protocol))
    assert [scores[s, "dice"].value for s in STRUCTURES] == [0.0, 0.25, 0.25, 0.25]
    assert [scores[s, "hd100"].value for s in STRUCTURES] == [1.0, 5.0, 50.0, math.inf]
    assert {s.unit for s in scores.values()} == {"fraction", "voxel"}


def test_distances_are_computed_only_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pair: case.StructurePair) -> None:
        raise AssertionError("not asked for")

    for name in ("distances", "elements"):
        monkeypatch.setattr(case.StructurePair, name, property(refuse))
    only_dice = _scoring(dice={"quantity": "dice", "empty": 0})
    assert len(score_case(*_volumes(), SPACING, STRUCTURES, only_dice)) == len(STRUCTURES)
    with pytest.raises(AssertionError, match="not asked for"):
        score_case(*_volumes(), SPACING, STRUCTURES, "strict_mm")


def test_every_quantity_has_a_measure() -> None:
    assert MEASURES.keys() == QUANTITIES.keys()
    used = {metric.quantity for protocol in PROTOCOLS.values() for metric in protocol.metrics}
    assert used == QUANTITIES.keys()


def test_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'strict_m'; did you mean 'strict_mm'.*Valid: acf_bckd"):
        score_case(*_volumes(), SPACING, STRUCTURES, "strict_m")


@pytest.mark.parametrize(
    ("structures", "message"),
    [
        ({}, "no structure to score"),
        ({"liver": ()}, r"'liver' needs distinct labels .* got \(\)"),
        ({"liver": (1, 1)}, r"got \(1, 1\)"),
        ({"background": (0,)}, r"'background' needs distinct labels from 1 upwards, got \(0,\)"),
    ],
)
def test_wrong_structures_are_refused(structures: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        score_case(*_volumes(), SPACING, structures, "strict_mm")


def test_wrong_spacing_and_shapes_are_refused() -> None:
    reference, prediction = _volumes()
    with pytest.raises(ValueError, match=r"2 positive finite numbers.*\(1.0, 1.0, 1.0\)"):
        score_case(reference, prediction, (1.0, 1.0, 1.0), STRUCTURES, "medpy")
    with pytest.raises(ValueError, match="differ in shape"):
        score_case(reference, prediction[:2], SPACING, STRUCTURES, "medpy")
    with pytest.raises(TypeError, match="spacing_mm"):
        score_case(reference, prediction, structures=STRUCTURES, protocols="medpy")
