"""Arms whose real gaps are 0, 0.5, 1 and 2 Dice points must come out as what can be known of them.

Predictions are made from the references by boundary noise: as many voxels are taken from the rim
as are added around it, so the volume stays and Dice is 1 - taken / volume, to the voxel.
"""

import math

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from dicelike import DiceLike
from scipy import ndimage
from studies import RUN

from kdpipe.metrics.folders import evaluate_folders
from kdpipe.stats.compare import compare_scores
from kdpipe.stats.intervals import paired_mean, seed_scatter
from kdpipe.stats.pairing import Block
from kdpipe.stats.power import resolvable
from kdpipe.stats.significance import holm, rank_biserial, wilcoxon
from kdpipe.stats.verdict import decide

N_CASES = 30
#: method -> real gap to none, SD over cases of its paired difference; in Dice points
PLANTED = {"same": (0.0, 0.5), "small": (0.5, 3.0), "good": (1.0, 1.1), "great": (2.0, 1.4)}
EXPECTED = {"same": "equivalent", "small": "cannot tell", "good": "better", "great": "better"}
SEEDS = (0, 1)
STUDIES = 600
#: the stated power less two standard errors of its estimate
AT_POWER = 0.8 - 2 * math.sqrt(0.8 * 0.2 / STUDIES)


def _reference(rng: np.random.Generator) -> np.ndarray:
    """An ellipsoid of some thousand voxels."""
    grid = np.indices((26, 26, 26)) - 12.5 - rng.uniform(-1, 1, (3, 1, 1, 1))
    radii = rng.uniform(7.5, 10.5, (3, 1, 1, 1))
    return ((grid / radii) ** 2).sum(0) < 1


def _predict(reference: np.ndarray, dice: float, rng: np.random.Generator) -> np.ndarray:
    """A prediction of this Dice, rounded to a voxel; errors lie at the boundary."""
    moved = round((1 - dice) * int(reference.sum()))
    noise = ndimage.gaussian_filter(rng.standard_normal(reference.shape), 1) * 2
    inside = ndimage.distance_transform_edt(reference)
    outside = ndimage.distance_transform_edt(~reference)
    prediction = reference.copy()
    for region, distance, value in ((reference, inside, False), (~reference, outside, True)):
        candidates = np.flatnonzero(region)
        nearest = np.argsort((distance + noise).ravel()[candidates])[:moved]
        prediction.ravel()[candidates[nearest]] = value
    return prediction


def _planted_dice(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Dice by method, shape `(cases, seeds)`; a part of the scatter is the training's noise."""
    case = np.clip(rng.normal(0.85, 0.03, (N_CASES, 1)), 0.75, 0.92)
    shape = (N_CASES, len(SEEDS))
    found = {"none": np.repeat(case, len(SEEDS), axis=1)}
    for method, (gap, sd) in PLANTED.items():
        noise = rng.normal(0, 0.8 * sd, (N_CASES, 1)) + rng.normal(0, 0.6 * sd, shape) * math.sqrt(
            2
        )
        found[method] = np.clip(case + (gap + noise) / 100, 0.0, 0.99)
    return found


def _write(path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing((1.0, 1.0, 1.5))
    sitk.WriteImage(image, str(path))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Scores of a phantom study, measured from files, and the Dice that was planted."""
    folder = tmp_path_factory.mktemp("planted")
    # All four verdicts come out as expected in 72 % of such studies; 6 was one in which they do not
    # (the small gap was found, as 7 % of the time). The rates are tested below, over all draws.
    rng = np.random.default_rng(7)
    dice = _planted_dice(rng)
    for case in range(N_CASES):
        reference = _reference(rng)
        name = f"case_{case:03d}.nii.gz"
        _write(folder / "reference" / name, reference)
        for method, values in dice.items():
            for seed in SEEDS:
                prediction = _predict(reference, values[case, seed], rng)
                _write(folder / f"{method}_{seed}" / name, prediction)
    tables = []
    for method in dice:
        for seed in SEEDS:
            keys = {"dataset": "phantom", "split": "default", "fold": 0, "role": "student"}
            keys |= {"teacher": "no_teacher" if method == "none" else "planted"}
            keys |= {"student": "unet", "method": method, "seed": seed}
            predictions = folder / f"{method}_{seed}"
            structures = {"organ": [1]}
            tables.append(
                evaluate_folders(
                    folder / "reference", predictions, structures, "strict_mm", keys=keys
                )
            )
    return pd.concat(tables, ignore_index=True), dice


def test_the_planted_dice_is_what_is_measured(study):
    scores, dice = study
    measured = scores[scores["metric"] == "dice"]
    for method, planted in dice.items():
        rows = measured[measured["method"] == method].sort_values(["case", "seed"])
        np.testing.assert_allclose(rows["value"], planted.ravel(), atol=5e-4)


def test_each_gap_comes_out_as_what_can_be_known_of_it(study):
    scores, _ = study
    table = compare_scores(scores, RUN).comparisons
    chosen = (table["metric"] == "dice") & (table["structure"] == "mean")
    rows = table[chosen & (table["against_kind"] == "none")].set_index("method")
    assert rows["verdict"].to_dict() == EXPECTED
    for method, (gap, _) in PLANTED.items():
        assert rows.loc[method, "low"] <= gap / 100 <= rows.loc[method, "high"]
        # what is called better could be resolved, what is not could not
        assert (gap / 100 > rows.loc[method, "resolvable"]) == (EXPECTED[method] == "better")
    values = _as_array({m: _of(scores, m) for m in ("none", *PLANTED)})
    assert dict(zip(PLANTED, _verdicts(values), strict=True)) == EXPECTED


def _of(scores: pd.DataFrame, method: str) -> np.ndarray:
    rows = scores[(scores["metric"] == "dice") & (scores["method"] == method)]
    return rows.pivot(index="case", columns="seed", values="value").to_numpy()


def _as_array(dice: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([dice[method] for method in ("none", *PLANTED)])


def _verdicts(values: np.ndarray, margin: float = 0.005) -> list[str]:
    """What `compare_scores` says of all arms against the first one, without its tables."""
    pooled = seed_scatter(Block({}, tuple(("t", str(i)) for i in range(len(values))), values))
    means = [paired_mean(arm, values[0], pooled) for arm in values[1:]]
    adjusted = holm(np.array([wilcoxon(mean.differences) for mean in means]))
    found = []
    for mean, p_holm in zip(means, adjusted, strict=True):
        wide, narrow = (
            (mean.mean - mean.half_width(c), mean.mean + mean.half_width(c)) for c in (0.95, 0.9)
        )
        effect = rank_biserial(mean.differences)
        found.append(decide(wide, narrow, p_holm, effect, margin, 0.05))
    return found


def test_verdicts_come_at_the_stated_rates():
    """The same study many times, without the files."""
    found = np.array(
        [_verdicts(_as_array(_planted_dice(np.random.default_rng([1, n])))) for n in range(STUDIES)]
    )
    share = {
        method: {verdict: float((verdicts == verdict).mean()) for verdict in np.unique(verdicts)}
        for method, verdicts in zip(PLANTED, found.T, strict=True)
    }
    for method in ("good", "great"):
        gap, sd = PLANTED[method]
        assert gap > resolvable(N_CASES, len(SEEDS), sd, len(PLANTED))
        assert share[method]["better"] >= AT_POWER
        assert "worse" not in share[method]
    assert PLANTED["small"][0] < resolvable(N_CASES, len(SEEDS), PLANTED["small"][1], len(PLANTED))
    assert share["small"]["cannot tell"] >= AT_POWER
    assert share["same"]["equivalent"] >= AT_POWER
    assert share["same"].get("better", 0) + share["same"].get("worse", 0) <= 0.055


def test_a_gap_at_the_limit_is_found_with_the_stated_power():
    """Dice-like scores: difficult cases, some that fail, three seeds; three arms are no better."""
    setting, gap, n_cases, n_seeds = DiceLike(), 0.245, 40, 3
    rng = np.random.default_rng(0)
    draws = setting.draw(rng, (0.0, gap), 20_000, n_seeds)
    sd = float((draws[1] - draws[0]).mean(1).std())
    limit = resolvable(n_cases, n_seeds, sd, 4)
    assert setting.expected(gap) - setting.expected(0.0) == pytest.approx(limit, rel=0.03)
    found = np.array(
        [
            _verdicts(setting.draw(rng, (0.0, gap, 0.0, 0.0, 0.0), n_cases, n_seeds), 1e-9)
            for _ in range(STUDIES)
        ]
    )
    assert (found[:, 0] == "better").mean() >= AT_POWER
    # Holm: a false finding in any of the equal arms
    assert (found[:, 1:] != "cannot tell").any(1).mean() <= 0.055
