"""All comparisons of a study: from scores to differences, p-values and verdicts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdpipe.settings import Statistics
from kdpipe.stats import power, ranks
from kdpipe.stats.intervals import PairedMean, SeedScatter, paired_mean, seed_scatter
from kdpipe.stats.pairing import FIELD, Block, blocks
from kdpipe.stats.scores import NONE, OVERALL
from kdpipe.stats.significance import cohens_dz, holm, rank_biserial, wilcoxon
from kdpipe.stats.verdict import decide, margin_of
from kdpipe.tuning import TUNED

COMPARISONS = [
    *("dataset", "split", "student", "protocol", "metric", "unit", "structure"),
    *("teacher", "method", "against_kind", "against_teacher", "against_method"),
    *("difference", "low", "high", "p_value", "p_holm", "effect_rank_biserial", "effect_dz"),
    *("n_cases", "n_seeds", "margin", "verdict", "resolvable", "reading", "selects_on_test"),
    *("n_left_out", "n_comparisons"),
]
POWER = [
    *("dataset", "split", "student", "protocol", "metric", "n_cases", "n_seeds"),
    *("n_comparisons", "sd", "sd_source", "resolvable", "smallest_p", "can_be_significant"),
]
#: what arms are compared with
KINDS = ("none", "best", "none_tuned", "default")
_MEASURE = [*FIELD, "protocol", "metric"]


@dataclass(frozen=True)
class Comparisons:
    """The three tables of a study.

    Attributes:
        comparisons: columns `COMPARISONS`; differences are oriented, positive is better.
        ranks: columns `kdpipe.stats.ranks.COLUMNS`, of the mean over structures.
        power: columns `POWER`, of the mean over structures against ``none``.
    """

    comparisons: pd.DataFrame
    ranks: pd.DataFrame
    power: pd.DataFrame


class _Pair(NamedTuple):
    """One comparison before its family is known."""

    block: Block
    kind: str
    arm: int
    against: int
    mean: PairedMean
    p_value: float
    infinite: bool


def compare_scores(scores: pd.DataFrame, run: dict[str, Any]) -> Comparisons:
    """Compare all arms of a study; the same scores give the same numbers, in any order of rows.

    Args:
        scores: tidy table, columns `kdpipe.stats.scores.SCORES`.
        run: ``protocols`` (all in the table if absent), ``statistics`` (settings), ``readings``
            (labels of methods), ``leaky_splits`` (list of [dataset, split] whose checkpoints were
            selected on test cases).

    Raises:
        ConfigError: unknown protocol or metric.
    """
    settings = Statistics.model_validate(run.get("statistics", {}))
    protocols = run.get("protocols") or list(scores["protocol"].unique())
    pairs: list[_Pair] = []
    ranked, best = [], dict[tuple[str, ...], tuple[str, str]]()
    for block in blocks(scores, protocols):
        measure = tuple(block.keys[name] for name in _MEASURE)
        if block.keys["structure"] == OVERALL:
            ranked.append(ranks.rank_stability(block, settings.resamples, settings.confidence))
            means = np.nan_to_num(block.means(), nan=-math.inf)
            best[measure] = block.arms[int(means.argmax())]
        pairs += _pairs(block, best[measure])
    rows = [row for family in _families(pairs) for row in _rows(family, settings)]
    table = pd.DataFrame(rows, columns=COMPARISONS)
    return Comparisons(
        _marked(table, run),
        pd.concat(ranked, ignore_index=True) if ranked else pd.DataFrame(columns=ranks.COLUMNS),
        _power(pairs, table, settings),
    )


def _pairs(block: Block, best: tuple[str, str]) -> Iterable[_Pair]:
    """All comparisons of a block, kind by kind."""
    pooled = seed_scatter(block)
    for kind in KINDS:
        for arm, (_, method) in enumerate(block.arms):
            if kind == "best":
                against = block.arms.index(best) if best in block.arms else None
            elif kind == "default":
                against = block.default_of(arm)
            else:
                against = block.find(NONE if kind == "none" else NONE + TUNED)
            if against in (None, arm) or (kind == "none_tuned" and not method.endswith(TUNED)):
                continue
            yield _pair(block, kind, arm, against, pooled)


def _pair(block: Block, kind: str, arm: int, against: int, pooled: SeedScatter) -> _Pair:
    first, second = block.values[arm], block.values[against]
    mean = paired_mean(first, second, pooled)
    infinite = bool(np.isinf(first).any() or np.isinf(second).any())
    return _Pair(block, kind, arm, against, mean, wilcoxon(mean.differences), infinite)


def _families(pairs: Sequence[_Pair]) -> Iterable[list[_Pair]]:
    """Pairs that are corrected together: arms on the mean; arms and structures otherwise."""
    found: dict[tuple[Any, ...], list[_Pair]] = {}
    for pair in pairs:
        keys = pair.block.keys
        measure = tuple(keys[name] for name in _MEASURE)
        family = (*measure, keys["structure"] == OVERALL, pair.kind)
        found.setdefault(family, []).append(pair)
    return found.values()


def _rows(family: Sequence[_Pair], settings: Statistics) -> Iterable[dict[str, Any]]:
    """Rows of one family, without the marks."""
    n_comparisons = _family_size(family)
    adjusted = holm(np.array([pair.p_value for pair in family]), n_comparisons)
    for pair, p_holm in zip(family, adjusted, strict=True):
        yield _row(pair, float(p_holm), n_comparisons, settings)


def _family_size(family: Sequence[_Pair]) -> int:
    """The best arm is chosen by the same scores: any two arms could have been compared."""
    if family[0].kind != "best":
        return len(family)
    arms = {id(pair.block): len(pair.block.arms) for pair in family}
    return sum(n * (n - 1) // 2 for n in arms.values())


def _row(pair: _Pair, p_holm: float, n_comparisons: int, settings: Statistics) -> dict[str, Any]:
    mean, alpha = pair.mean, 1 - settings.confidence
    half = mean.half_width(settings.confidence)
    narrow = mean.half_width(1 - 2 * alpha)
    effect = rank_biserial(mean.differences)
    margin = margin_of(pair.block.keys["unit"], settings)
    n_cases = mean.differences.size
    return pair.block.keys | {
        **dict(zip(("teacher", "method"), pair.block.arms[pair.arm], strict=True)),
        "against_kind": pair.kind,
        "against_teacher": pair.block.arms[pair.against][0],
        "against_method": pair.block.arms[pair.against][1],
        "difference": mean.mean,
        "low": mean.mean - half,
        "high": mean.mean + half,
        "p_value": pair.p_value,
        "p_holm": p_holm,
        "effect_rank_biserial": effect,
        "effect_dz": cohens_dz(mean.differences),
        "n_cases": n_cases,
        "n_seeds": mean.n_seeds,
        "margin": margin,
        "verdict": decide(
            (mean.mean - half, mean.mean + half),
            (mean.mean - narrow, mean.mean + narrow),
            p_holm,
            effect,
            margin,
            alpha,
            infinite=pair.infinite,
        ),
        "resolvable": power.resolved_by(
            mean.sd, n_cases, n_comparisons, half, mean.standard_error, settings
        ),
        "n_left_out": mean.n_left_out,
        "n_comparisons": n_comparisons,
    }


def _marked(table: pd.DataFrame, run: dict[str, Any]) -> pd.DataFrame:
    readings = set(run.get("readings", ()))
    leaky = {tuple(split) for split in run.get("leaky_splits", ())}
    splits = zip(table["dataset"], table["split"], strict=True)
    return table.assign(
        reading=[method in readings for method in table["method"]],
        selects_on_test=[split in leaky for split in splits],
    )


def _power(pairs: Sequence[_Pair], table: pd.DataFrame, settings: Statistics) -> pd.DataFrame:
    """One row a measure: what its comparisons with ``none`` could show, by their own scatter.

    SD and resolvable difference are those of the comparison in the middle: a method that fails
    scatters so much that it would speak for all. One without a case in common says nothing.
    """
    alpha = 1 - settings.confidence
    shown = table[(table["structure"] == OVERALL) & (table["against_kind"] == "none")]
    spread: dict[tuple[Hashable, ...], list[float]] = {}
    for pair in pairs:
        keys = pair.block.keys
        scatters = pair.mean.differences.size > 1
        if scatters and keys["structure"] == OVERALL and pair.kind == "none":
            spread.setdefault(tuple(keys[name] for name in _MEASURE), []).append(pair.mean.sd)
    rows = []
    for measure, group in shown.groupby(_MEASURE, sort=False):
        compared = group[group["n_cases"] > 0] if (group["n_cases"] > 0).any() else group
        n_cases, n = int(compared["n_cases"].min()), len(group)
        rows.append(
            dict(zip(_MEASURE, measure, strict=True))
            | {
                "n_cases": n_cases,
                "n_seeds": int(compared["n_seeds"].min()),
                "n_comparisons": n,
                "sd": float(np.median(spread.get(measure, [math.nan]))),
                "sd_source": "this study",
                "resolvable": float(compared["resolvable"].median()),
                "smallest_p": power.smallest_p(n_cases),
                "can_be_significant": power.can_be_significant(n_cases, n, alpha),
            }
        )
    return pd.DataFrame(rows, columns=POWER)
