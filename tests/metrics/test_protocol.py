"""Named protocols: every rule for missing structures, unions, and new entries as data."""

from __future__ import annotations

import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from medpy.metric.binary import dc
from medpy.metric.binary import hd95 as medpy_hd95
from monai.metrics import compute_dice, compute_hausdorff_distance

from kdpipe.errors import ConfigError
from kdpipe.metrics import case
from kdpipe.metrics.protocol import (
    PROTOCOLS,
    EmptyRule,
    Metric,
    Protocol,
    Score,
    get_protocol,
    score_case,
)

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


NAN, DIAGONAL = math.nan, math.hypot(4 * 3.0, 3 * 4.0)
EXPECTED = {
    "strict_mm": {
        "dice": {"both": 0.0, "missed": 0.0, "invented": 0.0, "absent": NAN},
        "hd95_pooled": {"both": 4.0, "missed": DIAGONAL, "invented": DIAGONAL, "absent": NAN},
        "hd95_max": {"both": 4.0, "missed": DIAGONAL, "invented": DIAGONAL, "absent": NAN},
    },
    "medpy": {
        "dice": {"both": 0.0, "missed": 0.0, "invented": 0.0, "absent": NAN},
        "hd95_pooled": {"both": 4.0, "missed": NAN, "invented": NAN, "absent": NAN},
    },
    "monai": {
        "dice": {"both": 0.0, "missed": 0.0, "invented": NAN, "absent": NAN},
        "hd95_max": {"both": 4.0, "missed": NAN, "invented": NAN, "absent": NAN},
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
        assert score.value == pytest.approx(expected[metric][structure], nan_ok=True), score
        assert score.status == STATUS[structure]
        assert score.unit == ("fraction" if metric == "dice" else "mm")


@pytest.mark.filterwarnings("ignore")
def test_the_monai_rules_are_what_monai_returns() -> None:
    reference, prediction = _volumes()
    scores = _by_key(score_case(reference, prediction, SPACING, STRUCTURES, "monai"))
    for structure, (label,) in STRUCTURES.items():
        one_hot = [torch.from_numpy(v == label)[None, None].float() for v in _volumes()[::-1]]
        dice = compute_dice(*one_hot, include_background=True).item()
        hd95 = compute_hausdorff_distance(
            *one_hot, include_background=True, percentile=95, spacing=list(SPACING)
        ).item()
        assert scores[structure, "dice"].value == pytest.approx(dice, nan_ok=True)
        assert scores[structure, "hd95_max"].value == pytest.approx(hd95, nan_ok=True)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_the_medpy_rules_are_what_medpy_returns_or_refuses() -> None:
    reference, prediction = _volumes()
    scores = _by_key(score_case(reference, prediction, SPACING, STRUCTURES, "medpy"))
    for structure, (label,) in STRUCTURES.items():
        masks = prediction == label, reference == label
        assert scores[structure, "dice"].value == pytest.approx(dc(*masks), nan_ok=True)
        hd95 = scores[structure, "hd95_pooled"].value
        if structure == "both":
            assert hd95 == medpy_hd95(*masks, SPACING)
        else:
            assert math.isnan(hd95)
            with pytest.raises(RuntimeError, match="does not contain any binary object"):
                medpy_hd95(*masks, SPACING)


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
    assert scores["u", "hd95_max"] == Score("u", "hd95_max", 3.0, "mm", "ok")


def test_boolean_volumes_are_label_1() -> None:
    mask = np.eye(4, dtype=bool)
    scores = score_case(mask, mask, (1.0, 1.0), {"x": (1,)}, "medpy")
    assert [s.value for s in scores] == [1.0, 0.0]


def test_a_new_protocol_is_data() -> None:
    # the rules of TransUNet's code: voxel units, missing references rewarded with Dice 1
    zero = EmptyRule(0.0, 0.0, 0.0)
    protocol = Protocol(
        name="rewarding",
        version=1,
        definition="for this test",
        metrics=(
            Metric("dice", "dice", EmptyRule(0.0, 1.0, 0.0)),
            Metric("hd95", "hausdorff_pooled", zero, percentile=95.0),
            Metric("hd100", "hausdorff_max", EmptyRule("diagonal", 50.0, math.inf), 100.0),
        ),
        distance_unit="voxel",
    )
    protocol = pickle.loads(pickle.dumps(protocol))  # workers receive it
    scores = _by_key(score_case(*_volumes(), SPACING, STRUCTURES, protocol))
    assert [scores[s, "dice"].value for s in STRUCTURES] == [0.0, 0.0, 1.0, 0.0]
    assert [scores[s, "hd95"].value for s in STRUCTURES] == [1.0, 0.0, 0.0, 0.0]
    assert [scores[s, "hd100"].value for s in STRUCTURES] == [1.0, 5.0, 50.0, math.inf]
    assert {s.unit for s in scores.values()} == {"fraction", "voxel"}


def test_distances_are_computed_once_a_structure_and_only_if_asked_for(monkeypatch) -> None:
    calls = []
    compute = case.surface_distances
    monkeypatch.setattr(case, "surface_distances", lambda *a: calls.append(1) or compute(*a))
    score_case(*_volumes(), SPACING, STRUCTURES, "strict_mm")
    assert len(calls) == 1  # two metrics of the one structure that both volumes hold
    only_dice = dataclasses.replace(
        PROTOCOLS["strict_mm"], metrics=PROTOCOLS["strict_mm"].metrics[:1]
    )
    score_case(*_volumes(), SPACING, STRUCTURES, only_dice)
    assert len(calls) == 1


def test_protocols_are_frozen_and_named_as_their_key() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PROTOCOLS["strict_mm"].__setattr__("version", 2)
    for name, protocol in PROTOCOLS.items():
        assert get_protocol(name) is protocol
        assert protocol.name == name
        assert len({m.name for m in protocol.metrics}) == len(protocol.metrics)
        assert "HD95" in protocol.definition or "Hausdorff" in protocol.definition


def test_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'strict_m'; did you mean 'strict_mm'.*Valid: medpy"):
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
def test_wrong_structures_are_refused(structures, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        score_case(*_volumes(), SPACING, structures, "strict_mm")


def test_wrong_metrics_are_refused() -> None:
    rule = EmptyRule(0.0, 0.0, 0.0)
    with pytest.raises(ConfigError, match="'hausdorff'; did you mean 'hausdorff_"):
        Metric("hd", "hausdorff", rule, 95.0)
    with pytest.raises(ConfigError, match="'hd': percentile nan is not in"):
        Metric("hd", "hausdorff_max", rule)
    with pytest.raises(ConfigError, match=r"percentile 0 is not in \(0, 100\]"):
        Metric("hd", "hausdorff_max", rule, 0)
    with pytest.raises(ConfigError, match="'dice' takes no percentile"):
        Metric("dsc", "dice", rule, 95.0)


def test_wrong_spacing_and_shapes_are_refused() -> None:
    reference, prediction = _volumes()
    with pytest.raises(ValueError, match=r"2 positive finite numbers.*\(1.0, 1.0, 1.0\)"):
        score_case(reference, prediction, (1.0, 1.0, 1.0), STRUCTURES, "medpy")
    with pytest.raises(ValueError, match="differ in shape"):
        score_case(reference, prediction[:2], SPACING, STRUCTURES, "medpy")
