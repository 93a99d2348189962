"""What an equal budget adds to the graph, and what is run again when it changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkouts import Checkout

CONFIG = """
study: tiny
cards: [cards]
data_source: {mine: source}
datasets: [mine]
teachers: [segresnet]
students: [unet_tiny]
methods: [none, kd]
seeds: [0, 1]
"""
THREE = CONFIG + "budget: 3\n"
CELLS = "results/mine/default/fold0/students"
#: all but what is made of all scores
TARGETS = ("students", "predictions")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Checkout:
    """A study whose `students` with a budget of 3 were trained."""
    made = Checkout(tmp_path_factory.mktemp("budget"), root, THREE)
    made.snakemake(*TARGETS)
    return made


def planned_with(checkout: Checkout, config: str, *targets: str) -> set[str]:
    return checkout.planned_after(
        lambda checkout: checkout.write("config.yaml", config), *(targets or TARGETS)
    )


def jobs(rule: str, *cells: str) -> set[str]:
    return {f"{rule} {cell}" for cell in cells}


def tuned(*methods: str) -> list[str]:
    return [f"{method}+tuned/seed{seed}" for method in methods for seed in (0, 1)]


def chosen(*methods: str) -> set[str]:
    """Jobs that follow from a new choice; what is trained already is not trained again."""
    return (
        {f"choose {method}+tuned" for method in methods}
        | {f"configure {method}+tuned" for method in methods}
        | jobs("distill_tuned", *tuned(*methods))
        | jobs("predict", *tuned(*methods))
    )


def test_a_finished_study_is_finished(checkout: Checkout) -> None:
    assert checkout.planned(*TARGETS) == set()


def test_trials_are_trained_and_neither_predicted_nor_scored(checkout: Checkout) -> None:
    trials = sorted((checkout.folder / CELLS).glob("*/*/*+trial*/*"))
    names = [f"{folder.parent.name}/{folder.name}" for folder in trials]
    wanted = [f"{method}+trial{i}/seed0" for method in ("none", "kd") for i in (1, 2)]
    assert sorted(names) == sorted(wanted)
    assert not any(folder.joinpath("predictions").exists() for folder in trials)
    scores = f"{CELLS}/segresnet/unet_tiny/kd+trial1/seed0/metrics.csv"
    with pytest.raises(AssertionError, match="KeyError"):
        checkout.snakemake("--dry-run", scores)


def test_a_method_adds_trials_a_choice_and_tuned_students(checkout: Checkout) -> None:
    added = planned_with(checkout, THREE.replace("kd]", "kd, cwd]"))
    assert added == (
        jobs("configure", "cwd/seed0", "cwd/seed1", *tuned("cwd"))
        | jobs("distill", "cwd/seed0", "cwd/seed1")
        | jobs("predict", "cwd/seed0", "cwd/seed1")
        | jobs("configure", "cwd+trial1/seed0", "cwd+trial2/seed0")
        | jobs("distill_trial", "cwd+trial1/seed0", "cwd+trial2/seed0")
        | chosen("cwd")
    )


def test_one_trial_more_trains_one_trial_of_each_method(checkout: Checkout) -> None:
    new = [f"{method}+trial3/seed0" for method in ("none", "kd")]
    assert planned_with(checkout, CONFIG + "budget: 4\n") == (
        jobs("configure", *new) | jobs("distill_trial", *new) | chosen("none", "kd")
    )


def test_one_trial_less_only_chooses_again(checkout: Checkout) -> None:
    assert planned_with(checkout, CONFIG + "budget: 2\n") == chosen("none", "kd")


def test_another_range_of_weights_tries_the_method_again_and_not_the_student_alone(
    checkout: Checkout,
) -> None:
    trials = ["kd+trial1/seed0", "kd+trial2/seed0"]
    assert planned_with(checkout, THREE + "search: {weight: [0.5, 2]}\n") == (
        jobs("configure", *trials) | jobs("distill_trial", *trials) | chosen("kd")
    )


def test_another_range_of_learning_rates_tries_all_again(checkout: Checkout) -> None:
    trials = [f"{method}+trial{i}/seed0" for method in ("none", "kd") for i in (1, 2)]
    assert planned_with(checkout, THREE + "search: {learning_rate: [0.5, 2]}\n") == (
        jobs("configure", *trials) | jobs("distill_trial", *trials) | chosen("none", "kd")
    )


def test_without_the_budget_nothing_is_run_again(checkout: Checkout) -> None:
    assert planned_with(checkout, CONFIG) == set()


def test_another_seed_tunes_nothing_again(checkout: Checkout) -> None:
    cells = ["none/seed2", "kd/seed2"]
    new = [cell.replace("/", "+tuned/") for cell in cells]
    assert planned_with(checkout, THREE.replace("[0, 1]", "[0, 1, 2]")) == (
        jobs("configure", *cells, *new)
        | jobs("distill", *cells)
        | jobs("distill_tuned", *new)
        | jobs("predict", *cells, *new)
    )


def test_an_edit_of_the_choice_chooses_again_and_tries_nothing_again(checkout: Checkout) -> None:
    def change(checkout: Checkout) -> None:
        checkout.replace("kdpipe/engine/choose.py", "= max(finished", "= min(finished")

    new = {job for job in chosen("none", "kd") if not job.startswith("configure")}
    assert checkout.planned_after(change, *TARGETS) == new


def test_a_new_choice_finds_the_former_training_of_a_tuned_student(checkout: Checkout) -> None:
    """Which Snakemake would delete before the job; `kdpipe distill` sees whether it still holds."""
    cell = f"{CELLS}/segresnet/unet_tiny/kd+tuned/seed0"
    before = checkout.folder.joinpath("kdpipe/cli.py").read_text()
    looks = "    given = {"
    checkout.replace(
        "kdpipe/cli.py",
        looks,
        f"    if stage == 'distill':\n        assert Path('{cell}/model.pt').exists()\n{looks}",
    )
    try:
        checkout.snakemake("--forcerun", "choose", "--", f"{cell}/model.pt")
    finally:
        checkout.write("kdpipe/cli.py", before)
