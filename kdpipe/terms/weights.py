"""Weights of terms."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor


def weighted(**terms: tuple[float, Callable[[], Tensor]]) -> dict[str, Tensor]:
    """Return name -> weight * loss; a term whose weight is 0 is left out and not computed.

    Args:
        terms: name -> (weight, function that computes the loss).
    """
    return {name: weight * loss() for name, (weight, loss) in terms.items() if weight}


def half_cosine(done: float, start: float, span: float) -> float:
    """Return a factor that rises from 0 to 1 along half a cosine.

    Args:
        done: share of the training that is behind, in [0, 1).
        start: share at which the rise begins.
        span: share that the rise takes; 0 is a step.
    """
    if done < start:
        return 0.0
    if done >= start + span:
        return 1.0
    return 0.5 * (1.0 - math.cos(math.pi * (done - start) / span))


def exponential_ramp(done: float, start: float) -> float:
    """Return 0 up to `start` and ``exp(-5 x²)`` afterwards, x the share of the rest to go.

    Args:
        done: share of the training that is behind, in [0, 1].
        start: share up to which it is 0, in [0, 1).
    """
    if done <= start:
        return 0.0
    left = (1.0 - done) / (1.0 - start)
    return math.exp(-5.0 * left**2)
