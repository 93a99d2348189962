"""Trials and tuned students: scaled terms, lost trials, and trainings that are done already."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from blobs import make_job, make_run

from kdpipe.engine import reuse
from kdpipe.engine.choose import choose
from kdpipe.engine.reuse import train_tuned
from kdpipe.engine.train import Job, train
from kdpipe.errors import TrainingDiverged
from kdpipe.infer.model import load_model
from kdpipe.tuning import label, with_settings

SETTINGS = [
    {"trial": 0, "learning_rate": 1e-3, "weight": 1.0},
    {"trial": 1, "learning_rate": 4e-3, "weight": 2.0},
]


@pytest.fixture(scope="module")
def teacher(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = make_job(store, tmp_path_factory.mktemp("teacher"), make_run())
    train(job)
    return Path(job.model)


@pytest.fixture(scope="module")
def trials(store: Path, tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> list[Job]:
    """The method as configured and one trial, trained."""
    folder = tmp_path_factory.mktemp("trials")
    jobs = []
    for trial, settings in enumerate(SETTINGS):
        run = a_run("kd", trial)
        run = with_settings(run, settings) if trial else run
        jobs.append(make_job(store, folder / str(trial), run, teacher))
        train(jobs[-1])
    return jobs


def a_run(method: str, trial: int = 0, tuned: bool = False, seed: int = 5) -> dict[str, Any]:
    run = make_run(method)
    run["cell"] |= {"method": label(method, trial, tuned), "seed": seed}
    return run | {"tuned": True} if tuned else run


def facts(job: Job) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(job.model.with_name("model.json").read_text())
    return content


def choice_of(trial: int, trials: list[Job]) -> dict[str, Any]:
    """What `choose` writes if that trial is the best."""
    found = [facts(job) | {"validation_dice": float(i == trial)} for i, job in enumerate(trials)]
    return choose({"arm": "kd+tuned", "trials": SETTINGS}, found)


def folders(jobs: list[Job]) -> list[Path]:
    return [job.model.parent for job in jobs]


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: Job) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(reuse, "train", fail)


def test_a_factor_on_all_terms_is_a_factor_on_their_weights(
    store: Path, tmp_path: Path, teacher: Path
) -> None:
    heavy = make_job(store, tmp_path / "heavy", make_run("kd", {"weight": 2.0}), teacher)
    scaled_run = make_run("kd", {"weight": 1.0})
    scaled_run["method"]["scale"] = 2.0
    scaled = make_job(store, tmp_path / "scaled", scaled_run, teacher)
    for job in (heavy, scaled):
        train(job)
    assert facts(heavy)["weights_sha256"] == facts(scaled)["weights_sha256"]
    terms = [pd.read_csv(job.model.with_name("train.csv"))["kd"] for job in (heavy, scaled)]
    assert terms[0].tolist() == terms[1].tolist()


def test_a_trial_that_diverges_is_lost_and_stops_nothing(store: Path, tmp_path: Path) -> None:
    run = make_run(learning_rate=1e30, optimizer="sgd", gradient_clip=None)
    with pytest.raises(TrainingDiverged):
        train(make_job(store, tmp_path / "cell", run))
    settings = {"trial": 1, "learning_rate": 1e30}
    job = make_job(store, tmp_path / "trial", with_settings(run, settings))
    job.model.parent.mkdir()
    job.model.write_text("of an earlier run")
    train(job)
    assert facts(job)["validation_dice"] is None
    assert "not finite" in facts(job)["diverged"]
    assert facts(job)["tuning"] == settings
    assert not job.model.exists() and not job.state.exists()
    pd.read_csv(tmp_path / "trial" / "train.csv")
    tuned = replace(job, run=job.run | {"tuned": True}, model=tmp_path / "tuned" / "model.pt")
    with pytest.raises(TrainingDiverged):
        train(tuned)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("trial", [0, 1])
def test_the_training_that_was_chosen_is_not_repeated(
    store: Path, tmp_path: Path, teacher: Path, trials: list[Job], trial: int
) -> None:
    job = make_job(store, tmp_path, a_run("kd", tuned=True), teacher)
    train_tuned(job, choice_of(trial, trials), folders(trials))
    chosen = trials[trial]
    assert facts(job)["weights_sha256"] == facts(chosen)["weights_sha256"]
    assert facts(job)["tuning"] == SETTINGS[trial]
    assert facts(job)["same_training_as"] == label("kd", trial)
    history = [j.model.with_name("train.csv").read_bytes() for j in (job, chosen)]
    assert history[0] == history[1]
    model, theirs = load_model(job.model), load_model(chosen.model)
    assert model.run["cell"]["method"] == "kd+tuned"
    assert model.run["training"]["learning_rate"] == SETTINGS[trial]["learning_rate"]
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, theirs.network.state_dict()[name])


def test_another_seed_is_trained_and_a_later_choice_of_the_same_finds_it(
    store: Path,
    tmp_path: Path,
    teacher: Path,
    trials: list[Job],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[Job] = []
    monkeypatch.setattr(reuse, "train", lambda job: (done.append(job), train(job)))
    job = make_job(store, tmp_path, a_run("kd", tuned=True, seed=6), teacher)
    train_tuned(job, choice_of(1, trials), folders(trials))
    assert len(done) == 1
    first = facts(job)
    assert first["tuning"] == SETTINGS[1] and "same_training_as" not in first
    train_tuned(job, choice_of(1, trials), folders(trials))
    assert len(done) == 1
    assert facts(job) == first
    train_tuned(job, choice_of(0, trials), folders(trials))
    assert len(done) == 2
    assert facts(job)["weights_sha256"] != first["weights_sha256"]


@pytest.mark.parametrize("damage", ["model.pt", "model.json", "train.csv", "weights", "code"])
def test_what_is_damaged_or_of_other_code_is_trained_again(
    store: Path, tmp_path: Path, teacher: Path, trials: list[Job], damage: str
) -> None:
    source = make_job(store, tmp_path / "source", trials[0].run, teacher)
    for file in trials[0].model.parent.iterdir():
        source.model.parent.mkdir(exist_ok=True)
        source.model.with_name(file.name).write_bytes(file.read_bytes())
    code = ""
    if damage == "weights":
        other = torch.load(trials[1].model, weights_only=True)
        torch.save(other, source.model)
    elif damage == "code":
        code = "other"
    else:
        (tmp_path / "source" / damage).unlink()
    job = make_job(store, tmp_path / "tuned", a_run("kd", tuned=True), teacher)
    train_tuned(replace(job, code=code), choice_of(0, trials), [source.model.parent])
    assert "same_training_as" not in facts(job)
    assert facts(job)["weights_sha256"] == facts(trials[0])["weights_sha256"]  # the same bits
