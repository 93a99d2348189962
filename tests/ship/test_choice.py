"""The student that is handed out: the best by validation Dice within the limits, and no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from finished_study import Finished

from kdpipe.cli import main
from kdpipe.errors import ConfigError, TrainingDiverged
from kdpipe.settings import Form
from kdpipe.ship.choice import choose_student
from kdpipe.ship.forms import FORMS

LIMITS = {"max_parameters": None, "max_latency_ms": None, "max_memory_mb": None}
Cells = dict[str, tuple[float | None, ...]]


class Study:
    """Cells and profiles in a folder: what a choice is made from."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.run: dict[str, Any] = {"limits": dict(LIMITS), "students": [], "teachers": []}

    def teacher(self, name: str, dice: float, parameters: int = 1000) -> None:
        self._cell("teachers", {"teacher": name, "student": "", "method": ""}, 0, dice)
        self.profile(f"t_{name}", parameters)

    def arm(
        self, method: str, *dice: float | None, student: str = "small", teacher: str = "no_teacher"
    ) -> None:
        for seed, value in enumerate(dice):
            keys = {"teacher": teacher, "student": student, "method": method}
            self._cell("students", keys, seed, value)

    def profile(
        self, name: str, parameters: int, latency: float = 5.0, memory: float | None = 9.0
    ) -> None:
        on_cpu = {"latency_ms": latency, "peak_mb": memory}
        self._write(name, "profile.json", {"parameters": parameters, "cpu": on_cpu})

    def choose(self, **limits: float) -> dict[str, Any]:
        self.run["limits"] |= limits
        return choose_student(self.run)

    def chosen(self, **limits: float) -> str:
        cell = self.choose(**limits)["chosen"]
        return f"{cell['student']} {cell['method']} {cell['seed']}"

    def _cell(self, role: str, keys: dict[str, str], seed: int, dice: float | None) -> None:
        name = "_".join([role[0], *filter(None, keys.values()), str(seed)])
        network = keys["student"] or f"t_{keys['teacher']}"
        folders = {"folder": str(self.folder / name), "profile": str(self.folder / network)}
        self.run[role].append({**folders, **keys, "seed": seed, "role": role.removesuffix("s")})
        self._write(name, "model.json", {"validation_dice": dice, "weights_sha256": name})

    def _write(self, folder: str, name: str, content: dict[str, Any]) -> None:
        (self.folder / folder).mkdir(exist_ok=True)
        (self.folder / folder / name).write_text(json.dumps(content))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = Study(tmp_path)
    made.teacher("big", 0.9)
    made.profile("small", 100)
    made.profile("large", 200, latency=50.0, memory=90.0)
    return made


def test_the_best_mean_wins_and_its_best_seed_goes(study: Study) -> None:
    study.arm("none", 0.95, 0.60)  # the best single network, but not the best arm
    study.arm("kd", 0.80, 0.84, teacher="big")
    found = study.choose()
    assert found["chosen"]["method"] == "kd" and found["chosen"]["seed"] == 1
    assert [arm["method"] for arm in found["arms"]] == ["kd", "none"]
    assert found["arms"][0]["validation_dice"] == pytest.approx(0.82)
    assert found["arms"][0]["seeds"] == {"0": 0.80, "1": 0.84}
    assert found["taught"] and found["teacher"]["teacher"] == "big"
    assert (found["undistilled"]["method"], found["undistilled"]["seed"]) == ("none", 1)
    assert found["chosen"]["weights_sha256"] == "s_big_small_kd_1"


def test_the_undistilled_student_may_win(study: Study) -> None:
    study.teacher("better", 0.95)
    study.arm("none", 0.9)
    study.arm("kd", 0.8, teacher="big")
    found = study.choose()
    assert found["chosen"]["method"] == "none"
    assert found["undistilled"] is None and not found["taught"]
    assert found["teacher"]["teacher"] == "better", "the study's best, to compare with"


@pytest.mark.parametrize(
    "limit", [{"max_parameters": 150}, {"max_latency_ms": 6.0}, {"max_memory_mb": 10.0}]
)
def test_a_limit_leaves_out_what_costs_more(study: Study, limit: dict[str, float]) -> None:
    study.arm("kd", 0.9, student="large", teacher="big")
    study.arm("none", 0.7)
    assert study.chosen() == "large kd 0"
    found = study.choose(**limit)
    assert found["chosen"]["student"] == "small"
    ((name, bound),) = limit.items()
    assert found["arms"][1]["excluded"].startswith(f"{name}: ")
    assert found["arms"][1]["excluded"].endswith(f"at most {bound:g}")


def test_what_is_just_within_the_limits_is_within(study: Study) -> None:
    study.arm("none", 0.7)
    assert study.chosen(max_parameters=100, max_latency_ms=5.0, max_memory_mb=9.0) == "small none 0"


def test_of_equal_arms_the_smaller_network_then_the_first_name(study: Study) -> None:
    study.arm("a", 0.8, student="large")
    study.arm("c", 0.8)
    study.arm("b", 0.8)
    assert study.chosen() == "small b 0"


def test_of_equal_seeds_the_lowest(study: Study) -> None:
    study.arm("none", 0.7, 0.8, 0.8)
    assert study.chosen() == "small none 1"


def test_no_student_within_the_limits_names_the_cheapest(study: Study) -> None:
    study.profile("tiny", 80, latency=100.0)  # fewer parameters, but far beyond the latency
    study.arm("none", 0.7)
    study.arm("none", 0.7, student="large")
    study.arm("none", 0.7, student="tiny")
    message = (
        r"no student is within max_parameters: 90, max_latency_ms: 4\. The cheapest is 'small': "
        r"100 parameters, 5 ms a window on the CPU, 9 MB .*Raise the limits, or add a smaller"
    )
    with pytest.raises(ConfigError, match=message):
        study.choose(max_parameters=90, max_latency_ms=4.0)


def test_a_cost_that_was_not_measured_is_within_no_limit(study: Study) -> None:
    study.profile("small", 100, memory=None)
    study.arm("none", 0.7)
    assert study.chosen() == "small none 0"
    with pytest.raises(ConfigError, match=r"unknown number of MB .*max_memory_mb: not measured"):
        study.choose(max_memory_mb=1000.0)


@pytest.mark.parametrize("lost", [None, float("nan")])
def test_an_arm_without_a_validation_dice_of_every_seed_is_left_out(
    study: Study, lost: float | None
) -> None:
    study.arm("kd", 0.9, lost, teacher="big")
    study.arm("none", 0.5, 0.5)
    found = study.choose()
    assert found["chosen"]["method"] == "none"
    assert found["arms"][1]["excluded"] == "a seed has no validation Dice"
    assert "NaN" not in json.dumps(found)


def test_no_arm_with_a_validation_dice(study: Study) -> None:
    study.arm("none", None)
    with pytest.raises(TrainingDiverged, match=r"no student within the limits has a validation D"):
        study.choose(max_parameters=500)


def test_a_tuned_student_is_held_against_the_tuned_undistilled_one(study: Study) -> None:
    study.arm("none", 0.5)
    study.arm("none+tuned", 0.6)
    study.arm("kd+tuned", 0.7, teacher="big")
    assert study.choose()["undistilled"]["method"] == "none+tuned"


def test_the_command_reads_no_score_of_a_test_case(tmp_path: Path) -> None:
    finished = Finished(tmp_path)
    command = f"choose-student --run {finished.ship}/choice/run.json --out {finished.ship}/c.json"
    with finished.within():
        for scores in Path("results").rglob("metrics.csv"):
            scores.unlink()
        assert main(command.split()) == 0
        assert finished.read("c.json")["chosen"]["method"] == "kd"
        cell = finished.read("c.json")["chosen"]["folder"]
        (tmp_path / cell / "model.json").unlink()
        assert main(command.split()) == 3


def test_a_study_can_ask_for_each_form_that_there_is() -> None:
    assert get_args(Form) == FORMS
