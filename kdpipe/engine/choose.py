"""Choose the settings of a tuned method: those of the trial with the best validation Dice."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from kdpipe.errors import ConfigError, TrainingDiverged

log = logging.getLogger(__name__)


def choose(run: Mapping[str, Any], facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return all trials with what they reached, and the one that was chosen.

    Of equal ones the lowest number is taken, so that the method as configured stays unless another
    trial is better. A trial that diverged is lost.

    Args:
        run: ``arm`` and ``trials``, the settings of each.
        facts: the content of each trial's ``model.json``, in the same order.

    Returns:
        ``arm``, ``trials`` (settings, ``validation_dice`` in [0, 1] or null, ``diverged``) and
        ``chosen``, one of them with the digest of its weights.

    Raises:
        ConfigError: the facts are not those of these trials.
        TrainingDiverged: no trial has a validation Dice.
    """
    trials = run["trials"]
    if len(facts) != len(trials):
        raise ConfigError(f"{run['arm']}: {len(trials)} trials, but {len(facts)} model.json")
    for settings, found in zip(trials, facts, strict=True):
        if found.get("tuning", trials[0]) != settings:
            raise ConfigError(
                f"{run['arm']}: the model.json in place of trial {settings['trial']} is of "
                f"{found.get('tuning', 'a student as configured')}; give them in their order"
            )
    tried = [
        {**settings, "validation_dice": _dice(found), "diverged": found.get("diverged", "")}
        for settings, found in zip(trials, facts, strict=True)
    ]
    finished = [trial for trial in tried if trial["validation_dice"] is not None]
    if not finished:
        raise TrainingDiverged(f"{run['arm']}: no trial has a validation Dice; see their train.csv")
    best = max(finished, key=lambda trial: trial["validation_dice"])  # the first of equal ones
    log.info("%s: trial %d of %d is the best", run["arm"], best["trial"], len(tried))
    weights = facts[tried.index(best)]["weights_sha256"]  # others must train the students again
    return {"arm": run["arm"], "trials": tried, "chosen": {**best, "weights_sha256": weights}}


def _dice(facts: Mapping[str, Any]) -> float | None:
    dice = facts["validation_dice"]
    return dice if dice is not None and math.isfinite(dice) else None
