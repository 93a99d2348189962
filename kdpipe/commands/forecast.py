"""What a study can show and what it will cost, before it starts.

Counts of cases come from what is there (``split.json``), else from the card; where neither knows,
the forecast says so. Hours are multiply-accumulates over an assumed speed: an order of magnitude.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpipe.cohorts import cohorts_of
from kdpipe.composition import needs_teacher
from kdpipe.config import DatasetUse, Entry
from kdpipe.errors import ConfigError
from kdpipe.plan import Cell, Plan
from kdpipe.runs import run_files
from kdpipe.settings import Training
from kdpipe.sources import expand_ids
from kdpipe.splits import CountsSplit, EverySplit, ExplicitSplit, FractionsSplit, KFoldSplit, Split
from kdpipe.stats.power import power_statement

#: a backward pass costs two forward passes
_FORWARD_AND_BACK = 3
#: FLOPs of a multiply-accumulate
_FLOPS = 2
#: checkpoint with two moments of the optimiser, and the model itself, in float32
_COPIES_ON_DISK = 4
_ASSUMED = (
    "Assumed: {tflops:g} TFLOP/s sustained in training, say another with `kdpipe plan --tflops`; "
    "a third on top for validation, losses and waiting."
)
_OVERHEAD = 4 / 3


@dataclass(frozen=True)
class Counts:
    """Numbers of cases of one split of one fold; None where nothing tells them yet."""

    train: int | None
    test: int | None


def forecast_power(plan: Plan) -> list[str]:
    """Return, for each data set and split, what number of cases is tested and what that can show.

    Cases of all folds count together, as in the comparisons.
    """
    study, lines = plan.study, []
    for (use, split), folds in _by_split(plan).items():
        tests = [case_counts(plan, use, split, fold).test for fold in folds]
        where = f"{use.name}, split {split}"
        known = [count for count in tests if count is not None]
        if len(known) < len(tests):
            lines.append(f"{where}: the number of test cases is not known before the download.")
            continue
        said = power_statement(sum(known), len(study.seeds), n_comparisons(plan), study.statistics)
        lines.append(f"{where}: {said}")
    return lines


def n_comparisons(plan: Plan) -> int:
    """Return how many arms of a student are compared with ``none`` and corrected together.

    Under a budget the tuned arms count too, the tuned ``none`` among them.
    """
    arms = {
        (cell.keys["teacher"], cell.keys["method"])
        for cell in plan.cells.values()
        if cell.method and (cell.tuned or cell.method.name != "none")
    }
    return len(arms)


def case_counts(plan: Plan, use: DatasetUse, split: str, fold: int) -> Counts:
    """Return how many cases are trained on and tested, from ``split.json`` or the card."""
    file = Path(plan.paths.fold(dataset=use.name, split=split, fold=fold)) / "split.json"
    try:
        parts = json.loads(file.read_text(encoding="utf-8"))
        return Counts(len(parts["train"]), len(parts["test"]))
    except (OSError, ValueError, KeyError):
        card = plan.cards[use.name]
        total = card.generator.n_cases if card.generator else card.layout.n_cases
        return _counts_by_rule(card.split(split), total)


def _counts_by_rule(rule: Split, total: int | None) -> Counts:
    """What the card says; random rules divide patients, which may have several cases."""
    if isinstance(rule, CountsSplit):
        return Counts(rule.train, rule.test)
    if isinstance(rule, ExplicitSplit):
        given = {
            part: len(expand_ids(ids))
            for part in ("train", "val", "test")
            if isinstance(ids := getattr(rule, part), tuple)
        }
        rest = None if total is None else total - sum(given.values())
        test = given["val"] if rule.test == "val" else given.get("test", rest)
        return Counts(given.get("train", rest), test)
    if total is None:
        return Counts(None, None)
    total -= len(expand_ids(rule.exclude))
    if isinstance(rule, FractionsSplit):
        val, test = (max(1, round(total * share)) for share in (rule.val, rule.test))
        return Counts(total - val - test, test)
    if isinstance(rule, KFoldSplit):
        return Counts(total * (rule.n - 2) // rule.n, total // rule.n)
    if isinstance(rule, EverySplit):
        held_out = len(range(rule.offset, total, rule.n))
        return Counts(total - held_out, held_out)
    return Counts(None, None)


def forecast_cost(plan: Plan, tflops: float) -> list[str]:
    """Return lines on trainings, hours and disk; imports torch to count operations.

    Args:
        plan: of the study.
        tflops: sustained speed of the training device.

    Raises:
        ConfigError: no positive speed, a network cannot be built, or the patch does not fit it.
    """
    if not 0 < tflops < math.inf:
        raise ConfigError(f"--tflops: must be above 0, got {tflops:g}")
    costs = _NetworkCosts(plan)
    hours = dict.fromkeys(("teacher", "student"), 0.0)
    trained = dict.fromkeys(("teacher", "student"), 0)
    unknown: set[str] = set()
    disk = 0.0
    for folder, cell in (plan.cells | plan.trials).items():
        if cell.adopted:
            continue
        trained[cell.role] += 1
        disk += 4 * costs.parameters(folder) * _COPIES_ON_DISK
        steps = _steps(plan, cell)
        if steps is None:
            unknown.add(cell.dataset.name)
            continue
        operations = (
            steps * _recipe(plan, cell).batch_size * costs.macs_of_step(folder, cell) * _FLOPS
        )
        hours[cell.role] += operations * _OVERHEAD / (tflops * 1e12) / 3600
    parts = [
        f"{trained[role]} {role}{'' if trained[role] == 1 else 's'}, about {_hours(hours[role])}"
        for role in trained
    ]
    lines = [f"Trainings: {parts[0]}, and {parts[1]} on one GPU."]
    if unknown:
        lines.append(
            f"Hours without {', '.join(sorted(unknown))}: the number of training images is known "
            "after the preparation; `steps_per_epoch` in the recipe would tell it now."
        )
    return [*lines, _ASSUMED.format(tflops=tflops), *_disk_lines(plan, disk)]


def _disk_lines(plan: Plan, networks: float) -> Iterator[str]:
    """What archives are known to weigh, and the networks; images are known once prepared."""
    known = 0
    unknown = []
    for name in plan.cards:
        if name in plan.study.data_source or plan.cards[name].generator:
            continue
        sizes = [file.bytes for file in plan.intake.files(name)]
        known += sum(size for size in sizes if size)
        if not sizes or None in sizes:
            unknown.append(name)
    parts = [f"networks with checkpoints about {_gigabytes(networks)}"]
    if known:
        parts.append(f"archives {_gigabytes(known)}")
    if unknown:
        parts.append(f"archives of {', '.join(unknown)}: nobody recorded their size")
    images = "; images, unpacked and prepared, about twice the archives" if known or unknown else ""
    yield f"Disk: {'; '.join(parts)}{images}."


class _NetworkCosts:
    """Parameters and operations of the networks of a study; each is built once."""

    def __init__(self, plan: Plan):
        self._plan, self._runs = plan, run_files(plan)
        self._known: dict[str, tuple[int, int]] = {}
        self._taught_together = {
            folder: len(taught)
            for cohort in cohorts_of(plan)
            for taught in [[f for f, cell in cohort.cells.items() if _is_taught(cell)]]
            for folder in taught
        }

    def parameters(self, folder: str) -> int:
        return self._cost(self._runs[f"{folder}/run.json"])[0]

    def macs_of_step(self, folder: str, cell: Cell) -> float:
        """Operations of one crop: forward and back, and its share in the teacher's forward."""
        macs: float = _FORWARD_AND_BACK * self._cost(self._runs[f"{folder}/run.json"])[1]
        teacher = self._plan.teacher_folder(cell)
        if teacher is not None and _is_taught(cell):
            forward = self._cost(self._runs[f"{teacher}/run.json"])[1]
            macs += forward / self._taught_together.get(folder, 1)
        return macs

    def _cost(self, run: Mapping[str, Any]) -> tuple[int, int]:
        from kdpipe.nets.base import check_patch, network_of
        from kdpipe.nets.cost import macs, parameters

        spec, patch = run["network"], tuple(run["patch"])
        key = json.dumps([spec, patch], sort_keys=True)
        if key not in self._known:
            check_patch(spec["name"], spec["params"], patch)
            network = network_of(run).eval()
            shape = (1, spec["in_channels"], *patch)
            self._known[key] = (parameters(network), macs(network, shape))
        return self._known[key]


def _is_taught(cell: Cell) -> bool:
    method = cell.method or Entry(name="none")
    return needs_teacher(method.name, method.params)


def _steps(plan: Plan, cell: Cell) -> int | None:
    """Steps of a training; None where the number of images is not known yet."""
    recipe = _recipe(plan, cell)
    if recipe.steps_per_epoch is not None:
        return recipe.epochs * recipe.steps_per_epoch
    train = case_counts(plan, cell.dataset, cell.split, cell.fold).train
    if train is None or len(plan.presets[cell.dataset.name].patch) == 2:  # slices: not counted yet
        return None
    return recipe.epochs * math.ceil(train / recipe.batch_size)


def _recipe(plan: Plan, cell: Cell) -> Training:
    recipe: Training = getattr(plan.study.training, cell.role)
    return recipe


def _by_split(plan: Plan) -> dict[tuple[DatasetUse, str], list[int]]:
    found: dict[tuple[DatasetUse, str], list[int]] = {}
    for use, split, fold in plan.folds():
        found.setdefault((use, split), []).append(fold)
    return found


def _hours(value: float) -> str:
    if value < 1:
        return f"{math.ceil(value * 60)} min"
    return f"{value:.0f} h" if value >= 10 else f"{value:.2g} h"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
