"""The choice of a trial: the best validation Dice, and nothing else."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cli import main
from kdpipe.engine.choose import choose
from kdpipe.errors import ConfigError, TrainingDiverged
from kdpipe.settings import Search
from kdpipe.tuning import settings_of


def run_of(k: int) -> dict[str, Any]:
    return {
        "arm": "kd+tuned",
        "trials": [settings_of(trial, 1e-3, Search(), True) for trial in range(k)],
    }


def facts_of(run: dict[str, Any], *dice: float | None) -> list[dict[str, Any]]:
    facts = [
        {"validation_dice": value, "weights_sha256": f"of {trial}", "tuning": run["trials"][trial]}
        for trial, value in enumerate(dice)
    ]
    del facts[0]["tuning"]  # the method as configured is an ordinary cell
    for found in facts:
        if found["validation_dice"] is None:
            del found["weights_sha256"]
            found["diverged"] = "the loss is not finite"
    return facts


@pytest.mark.parametrize(
    ("dice", "best"),
    [
        ((0.5, 0.7, 0.6), 1),
        ((0.7, 0.7, 0.7), 0),
        ((0.5, 0.6, 0.6), 1),
        ((0.5, None, 0.4), 0),
        ((0.1, math.nan, 0.2), 2),
        ((-math.inf, None, 0.0), 2),
    ],
)
def test_the_best_finite_one_wins_and_of_equal_ones_the_first(dice: Any, best: int) -> None:
    run = run_of(3)
    choice = choose(run, facts_of(run, *dice))
    assert choice["chosen"]["trial"] == best
    assert choice["chosen"]["weights_sha256"] == f"of {best}"
    assert choice["chosen"]["learning_rate"] == run["trials"][best]["learning_rate"]
    assert [trial["trial"] for trial in choice["trials"]] == [0, 1, 2]
    json.dumps(choice, allow_nan=False)


def test_a_lost_trial_is_named_with_its_reason() -> None:
    run = run_of(2)
    choice = choose(run, facts_of(run, 0.5, None))
    assert choice["trials"][1]["diverged"] == "the loss is not finite"
    assert choice["trials"][1]["validation_dice"] is None


def test_nothing_to_choose_from() -> None:
    run = run_of(2)
    with pytest.raises(TrainingDiverged, match=r"kd\+tuned: no trial has a validation Dice"):
        choose(run, facts_of(run, math.nan, None))


def test_facts_of_other_trials_are_refused(tmp_path: Path, capsys: Any) -> None:
    run = run_of(3)
    facts = facts_of(run, 0.5, 0.6, 0.7)
    with pytest.raises(ConfigError, match=r"3 trials, but 2 model.json"):
        choose(run, facts[:2])
    files = [tmp_path / f"{name}.json" for name in (0, 2, 1)]
    for file in files:
        file.write_text(json.dumps(facts[int(file.stem)]))
    (tmp_path / "run.json").write_text(json.dumps(run))
    out = tmp_path / "choice.json"
    given = ["choose", "--run", str(tmp_path / "run.json"), "--out", str(out), "--facts"]
    assert main([*given, *map(str, files)]) == 2
    assert "the model.json in place of trial 1 is of" in capsys.readouterr().err
    assert not out.exists()
    assert main([*given, *sorted(map(str, files))]) == 0
    assert json.loads(out.read_text())["chosen"]["trial"] == 2
