"""Weights of terms."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def weighted(**terms: tuple[float, Callable[[], Tensor]]) -> dict[str, Tensor]:
    """Return name -> weight * loss; a term whose weight is 0 is left out and not computed.

    Args:
        terms: name -> (weight, function that computes the loss).
    """
    return {name: weight * loss() for name, (weight, loss) in terms.items() if weight}
