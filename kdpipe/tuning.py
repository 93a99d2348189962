"""Equal budget: which settings each trial of a method tries, and what a tuned method is called.

A trial changes two things at most: the learning rate, and the weight of all terms that a method
adds to the segmentation loss. The settings follow from the number of the trial alone, so every
method tries the same learning rates, and every method with terms the same weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from kdpipe.settings import Search

TUNED = "+tuned"
_TRIAL = "+trial"
_RESERVED = re.compile(r"\+(?:tuned|trial)", re.IGNORECASE)

# Steps of a Kronecker sequence. The golden ratio spreads points best in one dimension, which is
# all that the undistilled student has; with the root of 3 the first points are well apart in two.
_LEARNING_RATE_STEP = (math.sqrt(5) - 1) / 2
_WEIGHT_STEP = math.sqrt(3) - 1


def label(method: str, trial: int = 0, tuned: bool = False) -> str:
    """Return what a method's trial, or the method with the chosen settings, is called in paths."""
    return f"{method}{TUNED}" if tuned else f"{method}{_TRIAL}{trial}" if trial else method


def is_reserved(name: str) -> bool:
    """Say whether a label could be taken for that of a trial or of a tuned method."""
    return _RESERVED.search(name) is not None


def settings_of(
    trial: int, learning_rate: float, search: Search, has_terms: bool
) -> dict[str, Any]:
    """Return what a trial is trained with; trial 0 is the method as configured.

    Args:
        trial: its number, from 0.
        learning_rate: of the recipe.
        search: the ranges, as factors.
        has_terms: whether the method adds terms to the segmentation loss; 'none' does not.

    Returns:
        ``trial``, ``learning_rate`` and, with terms, ``weight``: the factor on all of them.
        Rounded to six digits, so that no computer's rounding makes a run.json stale.
    """
    settings: dict[str, Any] = {"trial": trial, "learning_rate": learning_rate}
    weight = 1.0
    if trial:
        factor = _in_range(search.learning_rate, trial * _LEARNING_RATE_STEP)
        settings["learning_rate"] = _six_digits(learning_rate * factor)
        weight = _six_digits(_in_range(search.weight, trial * _WEIGHT_STEP))
    return settings | {"weight": weight} if has_terms else settings


def with_settings(run: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``run.json`` of a cell with the settings of a trial in the place of its own.

    The learning rate at the end of the schedule moves with that at its start. Trial 0 changes
    nothing, so that the same training is known as the same.
    """
    method, training = dict(run["method"]), dict(run["training"])
    if settings.get("weight", 1.0) != 1.0:
        method["scale"] = settings["weight"]
    if settings["learning_rate"] != training["learning_rate"]:
        factor = settings["learning_rate"] / training["learning_rate"]
        last = training.get("final_learning_rate", 0.0)
        training |= {
            "learning_rate": settings["learning_rate"],
            "final_learning_rate": _six_digits(last * factor),
        }
    return {**run, "method": method, "training": training, "tuning": dict(settings)}


def _in_range(limits: tuple[float, float], distance: float) -> float:
    """Point of a range, log-uniform; distance 0 is the middle, where the default mostly lies."""
    low, high = limits
    return float(low * (high / low) ** ((0.5 + distance) % 1.0))


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")
