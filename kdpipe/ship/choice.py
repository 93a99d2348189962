"""Choose the student that a study hands out: by validation Dice, within limits of cost.

Scores of test cases are not read here: a student that they chose would look better than it is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kdpipe.errors import ConfigError, TrainingDiverged
from kdpipe.paths import NO_TEACHER
from kdpipe.ship.measured import Facts, read_costs, read_facts
from kdpipe.stats.scores import UNDISTILLED
from kdpipe.tuning import TUNED

log = logging.getLogger(__name__)

RULE = (
    "Of the arms (student, method with its settings, teacher) within the limits, the one with the "
    "highest mean validation Dice over its seeds; of that arm the seed with the highest validation "
    "Dice. Of equal arms the one with fewer parameters, then the first by name; of equal seeds the "
    "lowest. Scores of test cases take no part."
)
#: limit -> the cost that it bounds, and its unit
_LIMITS = {
    "max_parameters": ("parameters", "parameters"),
    "max_latency_ms": ("cpu_ms", "ms a window on the CPU"),
    "max_memory_mb": ("cpu_mb", "MB a window on the CPU"),
}
_ROLES = ("students", "teachers")


def choose_student(run: Facts) -> dict[str, Any]:
    """Return all arms with what they reached, and the cell that was chosen.

    Args:
        run: ``limits``, and ``students`` and ``teachers``: the cells of one split, each with its
            ``folder`` (of ``model.json``), its ``profile`` (of ``profile.json``) and its keys.

    Returns:
        ``rule``, ``limits``, ``arms`` from the best to the worst, ``chosen`` (a cell with its
        ``validation_dice``), ``teacher`` (that it learned from, or the best of the study, see
        `taught`), ``taught`` and ``undistilled`` (the same student and seed without a method, or
        null).

    Raises:
        ConfigError: no arm is within the limits.
        DataError: a file of a cell or profile cannot be read.
        TrainingDiverged: no arm has a validation Dice.
    """
    students, teachers = ([_with_facts(cell) for cell in run[role]] for role in _ROLES)
    arms = sorted((_arm(cells, run["limits"]) for cells in _grouped(students)), key=_order)
    best = next((arm for arm in arms if not arm["excluded"]), None)
    if best is None:
        raise _nothing(arms, run["limits"])
    cells = [cell for cell in students if _name(cell) == best["name"]]
    chosen = max(cells, key=lambda cell: (cell["validation_dice"], -cell["seed"]))
    taught = chosen["teacher"] != NO_TEACHER
    log.info("chosen: %s, validation Dice %.4f", chosen["folder"], chosen["validation_dice"])
    return {
        "rule": RULE,
        "limits": run["limits"],
        "arms": arms,
        "chosen": _without_costs(chosen),
        "taught": taught,
        "teacher": _without_costs(_teacher_of(chosen, teachers, taught)),
        "undistilled": _undistilled(chosen, students),
    }


def _with_facts(cell: Facts) -> dict[str, Any]:
    """A cell with its validation Dice (None where there is none) and the cost of its network."""
    facts = read_facts(Path(cell["folder"]) / "model.json", "validation_dice")
    dice = facts["validation_dice"]
    usable = isinstance(dice, int | float) and math.isfinite(dice)
    return {
        **cell,
        "validation_dice": float(dice) if usable else None,
        "weights_sha256": facts.get("weights_sha256", ""),
        "costs": read_costs(Path(cell["profile"])),
    }


def _without_costs(cell: Facts) -> dict[str, Any]:
    return {key: value for key, value in cell.items() if key != "costs"}


# arms


def _name(cell: Facts) -> str:
    teacher = "" if cell["teacher"] == NO_TEACHER else f" from {cell['teacher']}"
    return f"{cell['student']} {cell['method']}{teacher}"


def _grouped(students: Iterable[dict[str, Any]]) -> Iterable[list[dict[str, Any]]]:
    arms: dict[str, list[dict[str, Any]]] = {}
    for cell in students:
        arms.setdefault(_name(cell), []).append(cell)
    return arms.values()


def _arm(cells: Sequence[Facts], limits: Facts) -> dict[str, Any]:
    """One row: who, what it reached, what it costs, and why it cannot be chosen, if so."""
    first = cells[0]
    dice = [cell["validation_dice"] for cell in cells]
    complete = all(value is not None for value in dice)
    return {
        "name": _name(first),
        **{key: first[key] for key in ("student", "method", "teacher")},
        "seeds": {str(cell["seed"]): cell["validation_dice"] for cell in cells},
        "validation_dice": math.fsum(dice) / len(dice) if complete else None,
        **{cost: first["costs"][cost] for cost, _ in _LIMITS.values()},
        "excluded": "" if complete else "a seed has no validation Dice",
    } | _beyond(first["costs"], limits)


def _beyond(costs: Facts, limits: Facts) -> dict[str, str]:
    """Say which limits a network is beyond, if any."""
    found = []
    for limit, (name, unit) in _LIMITS.items():
        bound, cost = limits[limit], costs[name]
        if bound is not None and cost is None:
            found.append(f"{limit}: not measured on this machine")
        elif bound is not None and cost > bound:
            found.append(f"{limit}: {cost:,.10g} {unit}, at most {bound:,.10g}")
    return {"excluded": "; ".join(found)} if found else {}


def _order(arm: Facts) -> tuple[bool, float, float, str]:
    """Sorts those that may be chosen first, best first."""
    dice = -math.inf if arm["validation_dice"] is None else arm["validation_dice"]
    return bool(arm["excluded"]), -dice, arm["parameters"] or math.inf, arm["name"]


def _nothing(arms: Sequence[Facts], limits: Facts) -> ConfigError | TrainingDiverged:
    """The error for no arm at all: of those beyond the limits it names the nearest one."""
    bounds = {limit: bound for limit, bound in limits.items() if bound is not None}

    def excess(arm: Facts) -> tuple[float, str]:
        costs = ((arm[_LIMITS[limit][0]], bound) for limit, bound in bounds.items())
        shares = (math.inf if cost is None else cost / bound for cost, bound in costs)
        return max(shares, default=0.0), arm["name"]

    cheapest = min(arms, key=excess)
    if excess(cheapest)[0] <= 1:
        return TrainingDiverged(
            "ship: no student within the limits has a validation Dice of every seed; see their "
            "train.csv"
        )
    numbers = ", ".join(f"{_shown(cheapest[name])} {unit}" for name, unit in _LIMITS.values())
    wanted = ", ".join(f"{limit}: {bound:,.10g}" for limit, bound in bounds.items())
    return ConfigError(
        f"ship: no student is within {wanted}. The cheapest is {cheapest['student']!r}: {numbers} "
        f"({cheapest['excluded']}). Raise the limits, or add a smaller network to 'students'"
    )


def _shown(cost: float | None) -> str:
    return "an unknown number of" if cost is None else f"{cost:,.10g}"


# whom the chosen student is compared with


def _teacher_of(chosen: Facts, teachers: Sequence[Facts], taught: bool) -> Facts:
    """Its own teacher; of a student without one the study's best, by the same rule."""
    own = [cell for cell in teachers if not taught or cell["teacher"] == chosen["teacher"]]

    def order(cell: Facts) -> tuple[float, float, str]:
        dice = -math.inf if cell["validation_dice"] is None else cell["validation_dice"]
        return -dice, cell["costs"]["parameters"] or math.inf, cell["teacher"]

    return min(own, key=order)


def _undistilled(chosen: Facts, students: Iterable[Facts]) -> dict[str, Any] | None:
    """The same student of the same seed without a method, tuned if the chosen one is."""
    tuned = chosen["method"].endswith(TUNED)
    wanted = UNDISTILLED[1] if tuned else UNDISTILLED[0]
    if chosen["method"] == wanted:
        return None
    same = {"student": chosen["student"], "seed": chosen["seed"], "method": wanted}
    found = (c for c in students if all(c[key] == value for key, value in same.items()))
    return next(map(_without_costs, found), None)
