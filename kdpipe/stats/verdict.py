"""The rule that turns an interval and a p-value into a verdict. It stands here and nowhere else.

1. *equivalent*: the 1 - 2 alpha interval lies within the margin on both sides (two one-sided tests,
   Schuirmann 1987). It goes first: a difference that is shown to be too small to matter is no
   reason to prefer an arm, even if it is shown not to be zero.
2. *better*, *worse*: Holm's p is at most alpha, the 1 - alpha interval excludes 0, and ranks and
   mean point the same way. The p holds for all arms of the family together, but only over cases,
   with these networks; the interval also covers the training's noise, but one comparison at a
   time. It takes both.
3. *cannot tell*: everything else. It is no evidence that there is no difference.

Where a score is infinite (a structure that is missed, by a protocol that counts it so) there is no
mean to compare, and those that are left would hide the failure: *cannot tell*.
"""

from __future__ import annotations

from typing import Literal

from kdpipe.settings import Statistics

Verdict = Literal["better", "worse", "equivalent", "cannot tell"]
Interval = tuple[float, float]


def decide(
    interval: Interval,
    narrow: Interval,
    p_holm: float,
    rank_biserial: float,
    margin: float,
    alpha: float,
    *,
    infinite: bool = False,
) -> Verdict:
    """Return the verdict on a difference; positive is better.

    Args:
        interval: at confidence 1 - alpha; NaN where there are too few cases, then nothing is said.
        narrow: at confidence 1 - 2 alpha.
        p_holm: adjusted for the family.
        rank_biserial: effect size, for its sign.
        margin: differences smaller than this do not matter; in the unit of the difference.
        alpha: level.
        infinite: whether one of the scores is.
    """
    if infinite:
        return "cannot tell"
    low, high = interval
    if -margin < narrow[0] and narrow[1] < margin:
        return "equivalent"
    if p_holm <= alpha and low > 0 and rank_biserial > 0:
        return "better"
    if p_holm <= alpha and high < 0 and rank_biserial < 0:
        return "worse"
    return "cannot tell"


def margin_of(unit: str, settings: Statistics) -> float:
    """Return the margin in the unit: per cent points of fractions, else mm or voxels."""
    return settings.margin_percent / 100 if unit == "fraction" else settings.margin_mm
