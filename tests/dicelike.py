"""Simulated studies: Dice-like scores of several arms whose true differences are known.

On the logit scale a score is the sum of the arm's quality, the difficulty of the case, how the
case suits the arm, what the seed did to the arm, and noise. Difficult cases make scores skewed, and
in a few cases all arms fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DiceLike:
    """Standard deviations are of the logit; those of arm, seed and noise of a *difference*."""

    quality: float = 2.0  # Dice about 0.86
    sd_case: float = 0.7
    sd_arm: float = 0.35
    sd_seed: float = 0.0
    sd_noise: float = 0.25
    share_failing: float = 0.04
    drop_failing: float = 2.5
    share_lost: float = 0.0  # scores that are 0, of any arm by itself

    def draw(
        self, rng: np.random.Generator, gaps: Sequence[float], n_cases: int, n_seeds: int
    ) -> np.ndarray:
        """Scores in [0, 1], shape `(arms, cases, seeds)`; `gaps` are those of the arms (logit)."""
        n_arms, half = len(gaps), np.sqrt(0.5)
        case = rng.normal(0, self.sd_case, (1, n_cases, 1))
        case -= self.drop_failing * (rng.random((1, n_cases, 1)) < self.share_failing)
        arm = rng.normal(0, self.sd_arm * half, (n_arms, n_cases, 1))
        seed = rng.normal(0, 1, (n_arms, 1, n_seeds)) * self.sd_seed * half
        noise = rng.normal(0, self.sd_noise * half, (n_arms, n_cases, n_seeds))
        quality = self.quality + np.asarray(gaps, dtype=float)[:, None, None]
        scores = 1 / (1 + np.exp(-(quality + case + arm + seed + noise)))
        lost = rng.random(scores.shape) < self.share_lost
        return np.where(lost, 0.0, scores)

    def expected(self, gap: float) -> float:
        """The mean score of an arm over all cases and seeds, by Gauss-Hermite quadrature."""
        halves = (self.sd_arm**2 + self.sd_seed**2 + self.sd_noise**2) / 2
        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        logits = self.quality + gap + nodes * np.sqrt(self.sd_case**2 + halves)
        fair, failing = (
            float((weights / (1 + np.exp(drop - logits))).sum() / weights.sum())
            for drop in (0.0, self.drop_failing)
        )
        mean = (1 - self.share_failing) * fair + self.share_failing * failing
        return (1 - self.share_lost) * mean
