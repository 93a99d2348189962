"""Trials of a budget: their settings, their place in the plan, and what a study says of them."""

from __future__ import annotations

from typing import Any

import pytest

from kdpipe.config import load_study
from kdpipe.errors import ConfigError
from kdpipe.plan import Cell, Plan
from kdpipe.runs import run_files
from kdpipe.settings import Search
from kdpipe.tuning import label, settings_of, with_settings

STUDY = {
    "study": "budget",
    "datasets": ["phantom_ct"],
    "teachers": ["segresnet", "res_unet"],
    "students": ["unet_tiny"],
    "methods": ["none", "kd", "cwd", {"sum": ["kd", "at"], "as": "both"}],
    "seeds": [3, 1],
}
K = 6


def plan_of(**changes: Any) -> Plan:
    return Plan(load_study(STUDY | {"budget": K} | changes))


def arm(cell: Cell) -> tuple[str, str]:
    assert cell.method is not None
    return cell.keys["teacher"], cell.method.label


def test_the_first_trial_is_the_method_as_configured_and_others_stay_in_range() -> None:
    search = Search(learning_rate=(0.5, 2.0), weight=(0.1, 10.0))
    assert settings_of(0, 0.01, search, True) == {"trial": 0, "learning_rate": 0.01, "weight": 1.0}
    tried = [settings_of(trial, 0.01, search, True) for trial in range(1, 50)]
    rates = [settings["learning_rate"] for settings in tried]
    weights = [settings["weight"] for settings in tried]
    assert 0.005 <= min(rates) < 0.0055 and 0.018 < max(rates) <= 0.02
    assert 0.1 <= min(weights) < 0.13 and 8 < max(weights) <= 10


@pytest.mark.parametrize("k", [2, 3, 4, 6, 8, 12, 20])
def test_no_two_learning_rates_are_near_one_another(k: int) -> None:
    """Of k points on a line, evenly spread, two are 1/k apart; these are at least a third of it."""
    search = Search(learning_rate=(0.1, 10.0))  # the default is in the middle
    rates = sorted(settings_of(i, 1.0, search, False)["learning_rate"] for i in range(k))
    ratios = [high / low for low, high in zip(rates, rates[1:], strict=False)]
    assert min(ratios) > 100 ** (1 / (3 * k))


def test_of_a_symmetric_range_no_trial_repeats_the_default() -> None:
    for trial in range(1, 20):
        settings = settings_of(trial, 1.0, Search(), True)
        assert abs(settings["learning_rate"] - 1.0) > 0.02
        assert "weight" not in settings_of(trial, 1.0, Search(), False)


def test_every_arm_has_exactly_k_trials_at_the_same_learning_rates() -> None:
    plan = plan_of()
    runs = run_files(plan)
    rates: dict[tuple[str, str], list[float]] = {}
    weights: dict[tuple[str, str], list[float]] = {}
    defaults = [
        (folder, cell)
        for folder, cell in plan.cells.items()
        if cell.role == "student" and cell.seed == 3 and not cell.tuned
    ]
    for folder, cell in [*defaults, *plan.trials.items()]:
        run = runs[f"{folder}/run.json"]
        assert run["cell"]["seed"] == 3
        rates.setdefault(arm(cell), []).append(run["training"]["learning_rate"])
        weights.setdefault(arm(cell), []).append(run["method"].get("scale", 1.0))
    assert rates.keys() == {
        ("no_teacher", "none"),
        *((teacher, m) for teacher in ("segresnet", "res_unet") for m in ("kd", "cwd", "both")),
    }
    of_none = rates["no_teacher", "none"]
    assert len(set(of_none)) == K
    assert all(found == of_none for found in rates.values())
    assert weights.pop(("no_teacher", "none")) == [1.0] * K
    assert len({tuple(found) for found in weights.values()}) == 1
    assert len(set(weights["segresnet", "kd"])) == K
    for cell in plan.choices.values():
        assert len(plan.trials_of(cell)) == K
        assert set(plan.trials_of(cell)) <= (plan.cells | plan.trials).keys()


def test_the_choice_knows_the_settings_that_the_trials_were_trained_with() -> None:
    plan = plan_of()
    runs = run_files(plan)
    assert len(plan.choices) == 7
    for folder, cell in plan.choices.items():
        trials = runs[f"{folder}/run.json"]["trials"]
        default, *others = (runs[f"{trial}/run.json"] for trial in plan.trials_of(cell))
        assert [run["tuning"] for run in others] == trials[1:]
        taught = ("method", "training", "network", "targets", "patch")
        for run, settings in zip((default, *others), trials, strict=True):
            tuned = with_settings(runs[f"{plan.folder(cell)}/run.json"], settings)
            assert [tuned[key] for key in taught] == [run[key] for key in taught]


def test_the_whole_schedule_moves_with_the_learning_rate() -> None:
    recipe = {"learning_rate": 0.01, "final_learning_rate": 0.001}
    plan = plan_of(training={"student": recipe})
    runs = run_files(plan)
    for folder in plan.trials:
        training = runs[f"{folder}/run.json"]["training"]
        ratio = training["learning_rate"] / training["final_learning_rate"]
        assert ratio == pytest.approx(10, rel=1e-5)


def test_a_budget_changes_nothing_of_what_is_there_without_one() -> None:
    without, with_budget = run_files(plan_of(budget=0)), run_files(plan_of())
    changed = {path for path, run in without.items() if with_budget[path] != run}
    ship = "results/phantom_ct/default/fold0/ship/budget"  # whom to choose from, and what is said
    assert changed == {
        f"{folder}/run.json"
        for folder in ("results/tables/budget", f"{ship}/choice", f"{ship}/card")
    }
    assert not plan_of(budget=0).trials and not plan_of(budget=0).choices


def test_more_trials_leave_the_first_ones_as_they_were() -> None:
    few, many = run_files(plan_of(budget=3)), run_files(plan_of(budget=4))
    changed = {path for path, run in few.items() if many[path] != run}
    said = ("+tuned/run.json", "/card/run.json")
    assert all(path.endswith(said) or "/tables/" in path for path in changed)


def test_a_range_of_weights_does_not_concern_the_undistilled_student() -> None:
    plan = plan_of()
    before, after = run_files(plan), run_files(plan_of(search={"weight": [0.5, 2]}))
    changed = {path.removesuffix("/run.json") for path, run in before.items() if after[path] != run}
    distilled = {folder for folder, cell in plan.trials.items() if arm(cell)[1] != "none"}
    choices = {folder for folder, cell in plan.choices.items() if arm(cell)[1] != "none"}
    assert changed == distilled | choices | {"results/tables/budget"}


def test_tuned_students_are_cells_and_trials_are_not() -> None:
    plan = plan_of()
    (study,) = (run for path, run in run_files(plan).items() if "/tables/" in path)
    methods = {cell["method"] for cell in study["cells"]}
    configured = {"none", "kd", "cwd", "both"}
    assert methods == {""} | configured | {f"{name}+tuned" for name in configured}
    assert study["entries"]["methods"]["kd+tuned"] == study["entries"]["methods"]["kd"]
    assert not plan.trials.keys() & plan.cells.keys()
    arms = 3 * 2 + 1  # three distilled methods, two teachers; the undistilled student
    assert len(plan.trials) == arms * (K - 1)
    assert sum(cell.tuned for cell in plan.cells.values()) == arms * 2


def test_a_tuned_reading_is_marked_as_one() -> None:
    plan = plan_of(methods=["mskd", "kd"])
    (study,) = (run for path, run in run_files(plan).items() if "/tables/" in path)
    assert study["readings"] == ["mskd", "mskd+tuned"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 1}, r"budget: the first trial is the method as configured.* write 2 or more"),
        ({"budget": -1}, r"budget: .*greater than or equal to 0"),
        ({"search": {"learning_rate": [2, 0.5]}}, r"search.learning_rate: must be two factors"),
        ({"search": {"weight": [0, 2]}}, r"search.weight: must be two factors"),
        ({"search": {"weights": [0.1, 2]}}, r"'search.weights', did you mean 'weight'"),
        ({"methods": [{"kd": {}, "as": "kd+tuned"}]}, r"label 'kd\+tuned'.* another label with"),
        ({"methods": [{"kd": {}, "as": "kd+trial1"}]}, r"label 'kd\+trial1'"),
        ({"budget": 0, "methods": [{"kd": {}, "as": "a+TRIAL"}]}, r"label 'a\+TRIAL'"),
    ],
)
def test_errors_of_a_budget_name_the_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_study(STUDY | change)


def test_labels() -> None:
    found = label("kd"), label("kd", 2), label("kd", tuned=True)
    assert found == ("kd", "kd+trial2", "kd+tuned")
