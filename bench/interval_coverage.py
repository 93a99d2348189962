"""How often do the intervals cover the truth, and how often is a difference found where none is?

Usage: python bench/interval_coverage.py [--studies 4000] [--bootstrap]

Simulates studies of Dice-like scores (`tests/dicelike.py`) with three arms: the undistilled
student, one that equals it, one that is better. For each number of cases and seeds, prints the
coverage of the 95 % interval of the real difference, with what a t interval over cases, a common
Satterthwaite t and, with --bootstrap, percentile and BCa intervals give on the same data; the share
of studies in which Wilcoxon's test, and the verdict, find the difference that is not there; and the
median half width in points.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import stats

from kdpipe.stats.intervals import PairedMean, paired_mean, seed_scatter, t_quantile
from kdpipe.stats.pairing import Block
from kdpipe.stats.significance import rank_biserial, wilcoxon
from kdpipe.stats.verdict import decide

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from dicelike import DiceLike

GAP = 0.15  # logit
MARGIN = 1e-9  # nothing is equivalent
ARMS = (("", "none"), ("t", "same"), ("t", "better"))
SETTINGS = {
    "seeds agree": DiceLike(),
    "much noise": DiceLike(sd_arm=0.1, sd_noise=0.4),
    "some seed variance": DiceLike(sd_seed=0.05),
    "seed variance": DiceLike(sd_seed=0.15),
    "seeds dominate": DiceLike(sd_seed=0.4),
    "each arm fails alone": DiceLike(share_lost=0.02),
}


def simulate(
    setting: DiceLike, n_cases: int, n_seeds: int, studies: int
) -> Iterator[tuple[PairedMean, PairedMean, np.ndarray]]:
    """Yield, a study, the differences of the equal and of the better arm, and the scores."""
    rng = np.random.default_rng([n_cases, n_seeds])
    for _ in range(studies):
        values = setting.draw(rng, (0.0, 0.0, GAP), n_cases, n_seeds)
        pooled = seed_scatter(Block({}, ARMS, values))
        same, better = (paired_mean(values[arm], values[0], pooled) for arm in (1, 2))
        yield same, better, values


def found(mean: PairedMean, alpha: float = 0.05) -> tuple[bool, bool]:
    """Whether Wilcoxon's test alone, and the verdict, say that there is a difference."""
    half, p_value = mean.half_width(1 - alpha), wilcoxon(mean.differences)
    interval = (mean.mean - half, mean.mean + half)
    verdict = decide(interval, interval, p_value, rank_biserial(mean.differences), MARGIN, alpha)
    return p_value <= alpha, verdict in ("better", "worse")


def satterthwaite(mean: PairedMean) -> float:
    """Half width with one quantile, its degrees of freedom after Satterthwaite."""
    cases = mean.sd**2 / mean.differences.size
    seeds = mean.standard_error**2 - cases
    rest = seeds**2 / mean.seeds.df if mean.seeds.df else 0.0
    df = (cases + seeds) ** 2 / (cases**2 / (mean.differences.size - 1) + rest)
    return float(stats.t.isf(0.025, df)) * mean.standard_error


def bootstrap(difference: np.ndarray, rng: np.random.Generator) -> tuple[tuple[float, float], ...]:
    """Percentile interval over cases and seeds, BCa interval over cases; 999 resamples."""
    n_cases, n_seeds = difference.shape
    cases = rng.multinomial(n_cases, np.full(n_cases, 1 / n_cases), 999) / n_cases
    seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), 999) / n_seeds
    percentile = np.quantile(((cases @ difference) * seeds).sum(1), [0.025, 0.975])
    case = difference.mean(1)
    means, mean = np.sort(cases @ case), case.mean()
    bias = stats.norm.ppf(np.clip((means < mean).mean(), 1e-3, 1 - 1e-3))
    left_out = (case.sum() - case) / (n_cases - 1)
    centred = left_out.mean() - left_out
    skew = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5)
    shifted = bias + stats.norm.ppf([0.025, 0.975])
    bca = np.quantile(means, stats.norm.cdf(bias + shifted / (1 - skew * shifted)))
    return (percentile[0], percentile[1]), (bca[0], bca[1])


def report(
    name: str, setting: DiceLike, n_cases: int, n_seeds: int, options: argparse.Namespace
) -> None:
    """Print one line."""
    truth = setting.expected(GAP) - setting.expected(0.0)
    hits, errors, widths = [], [], []
    rng = np.random.default_rng(0)
    for same, better, values in simulate(setting, n_cases, n_seeds, options.studies):
        only_cases = t_quantile(0.95, n_cases - 1) * better.sd / np.sqrt(n_cases)
        halves = (better.half_width(0.95), only_cases, satterthwaite(better))
        intervals = [(better.mean - half, better.mean + half) for half in halves]
        if options.bootstrap:
            intervals += bootstrap(values[2] - values[0], rng)
        hits.append([low <= truth <= high for low, high in intervals])
        errors.append(found(same))
        widths.append(halves[0])
    coverage = "".join(f"{share * 100:8.1f}" for share in np.mean(hits, axis=0))
    wrong = "".join(f"{share * 100:8.1f}" for share in np.mean(errors, axis=0))
    print(
        f"{name:<22}{n_cases:>5}{n_seeds:>6}{coverage}  |{wrong}  |{np.median(widths) * 100:8.2f}"
    )


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=4000, help="a line")
    parser.add_argument("--bootstrap", action="store_true", help="also bootstrap intervals")
    options = parser.parse_args()
    methods = ("ours", "cases", "Satt.", *(("perc.", "BCa") if options.bootstrap else ()))
    header = "".join(f"{method:>8}" for method in methods)
    print(f"{'':<22}cases seeds{header}  |  Wilc. verdict |   width")
    for name, setting in SETTINGS.items():
        for n_seeds in (1, 2, 3):
            if n_seeds == 1 and setting.sd_seed:
                continue  # the interval is for these networks
            for n_cases in (12, 30, 100):
                report(name, setting, n_cases, n_seeds, options)


if __name__ == "__main__":
    main()
