"""What cohorts add to the graph: one job for students of the same batches, run again for few."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkouts import Checkout

from kdpipe.cohorts import cohorts_of
from kdpipe.config import load_study
from kdpipe.errors import ConfigError
from kdpipe.plan import Plan

ALONE = """
study: tiny
cards: [cards]
data_source: {mine: source}
datasets: [mine]
teachers: [segresnet]
students: [unet_tiny]
methods: [none, kd, cwd, at]
seeds: [0, 1]
"""
CONFIG = ALONE + "cohort: true\n"
#: all but what is made of all scores
TARGETS = ("students", "predictions")
KD, CWD, AT = "kd", "cwd", "at"
#: by number, in the order of the plan; the undistilled student has no companion
COHORTS = {"seed0": "train_cohort_2 kd/seed0", "seed1": "train_cohort_3 kd/seed1"}
PREDICTION = ("kdpipe/infer/restore.py", "np.uint8", "np.uint16")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Checkout:
    made = Checkout(tmp_path_factory.mktemp("cohorts"), root, CONFIG)
    made.snakemake(*TARGETS)
    return made


def jobs(rules: str, *methods: str) -> set[str]:
    return {f"{r} {m}/{s}" for r in rules.split() for m in methods for s in ("seed0", "seed1")}


def edit_cwd(checkout: Checkout) -> None:
    checkout.replace("kdpipe/methods/cwd.py", "dim=2).mean()", "dim=2).sum()")


TRAINED_CWD = {*COHORTS.values(), *jobs("distill predict", CWD)}
ALL_PREDICTED = jobs("predict", "none", KD, CWD, AT) | {"predict segresnet/seed0"}


def test_a_finished_study_is_finished(checkout: Checkout) -> None:
    assert checkout.planned(*TARGETS) == set()
    tickets = sorted((checkout.folder / "results").glob("**/cohort/*.json"))
    assert len(tickets) == 8


def test_an_edit_of_one_method_asks_for_its_member_alone(checkout: Checkout) -> None:
    assert checkout.planned_after(edit_cwd, *TARGETS) == TRAINED_CWD


def test_another_edit_at_the_same_time_is_not_overlooked(checkout: Checkout) -> None:
    """Snakemake looks at nothing that comes after a job that it has found stale by itself."""

    def both(checkout: Checkout) -> None:
        edit_cwd(checkout)
        checkout.replace(*PREDICTION)

    assert checkout.planned_after(both, *TARGETS) == TRAINED_CWD | ALL_PREDICTED


def test_other_settings_of_a_member_and_another_edit(checkout: Checkout) -> None:
    def both(checkout: Checkout) -> None:
        checkout.replace("config.yaml", "kd, cwd", "kd, {cwd: {weight: 7}}")
        checkout.replace(*PREDICTION)

    expected = TRAINED_CWD | ALL_PREDICTED | jobs("configure", CWD)
    assert checkout.planned_after(both, *TARGETS) == expected


def test_a_new_member_and_another_edit(checkout: Checkout) -> None:
    def both(checkout: Checkout) -> None:
        checkout.replace("config.yaml", "kd, cwd", "dist, kd, cwd")
        checkout.replace(*PREDICTION)

    first = {job.replace("kd/", "dist/") for job in COHORTS.values()}
    expected = first | ALL_PREDICTED | jobs("configure distill predict", "dist")
    assert checkout.planned_after(both, *TARGETS) == expected


def test_smaller_cohorts_and_less_members_train_nothing(checkout: Checkout) -> None:
    for config in (ALONE + "cohort: 2\n", CONFIG.replace(", at", "")):
        planned = checkout.planned_after(
            lambda made, config=config: made.write("config.yaml", config), *TARGETS
        )
        assert planned == set()


def test_a_new_teacher_trains_all(checkout: Checkout) -> None:
    planned = checkout.planned_after(
        lambda made: made.replace("kdpipe/nets/segresnet.py", "check_", "check__"), *TARGETS
    )
    assert planned == (
        {"train_teacher segresnet/seed0", "predict segresnet/seed0", *COHORTS.values()}
        | jobs("distill predict", KD, CWD, AT)
    )


def test_without_cohorts_the_results_are_taken_over(checkout: Checkout) -> None:
    """By jobs that train nothing: `kdpipe distill` finds them by their digest."""
    planned = checkout.planned_after(lambda made: made.write("config.yaml", ALONE), *TARGETS)
    assert planned == jobs("distill predict", "none", KD, CWD, AT)


def cells(config: dict[str, object], root: Path) -> list[list[str]]:
    study = load_study(
        {
            "datasets": ["phantom_ct"],
            "teachers": ["segresnet", "res_unet"],
            "students": ["unet_tiny"],
            "methods": ["kd", "cwd", "byot"],
            **config,
        }
    )
    found = cohorts_of(Plan(study))
    return [["/".join(cell.split("/")[-4:]) for cell in cohort.cells] for cohort in found]


def test_members_have_one_teacher_and_one_seed(root: Path) -> None:
    assert cells({"cohort": True, "seeds": [0, 1]}, root) == [
        [f"{teacher}/unet_tiny/{method}/seed{seed}" for method in methods]
        for teacher, methods in (
            ("no_teacher", ("none", "byot")),
            ("segresnet", ("kd", "cwd")),
            ("res_unet", ("kd", "cwd")),
        )
        for seed in (0, 1)
    ]
    assert cells({}, root) == []


def test_trials_are_members_and_large_groups_are_divided(root: Path) -> None:
    found = cells({"cohort": 4, "budget": 4, "teachers": ["segresnet"]}, root)
    assert [len(cohort) for cohort in found] == [4, 4, 4, 4]
    assert not any("+tuned" in cell for cohort in found for cell in cohort)
    assert sum("+trial" in cell for cohort in found for cell in cohort) == 12


def test_several_gpus_and_a_cohort_are_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="one process, on one GPU"):
        cells({"cohort": 4, "resources": {"train": {"gpu": 2}}}, root)
