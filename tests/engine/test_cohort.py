"""Trained in a cohort or alone: the same to the bit, whatever happens to other members."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from blobs import make_job, make_run
from torch import Tensor

from kdpipe import cli, sharing
from kdpipe.engine.cohort import train_cohort
from kdpipe.engine.learner import Learner
from kdpipe.engine.loop import Trainer
from kdpipe.engine.state import weights_digest
from kdpipe.engine.train import Job, train
from kdpipe.errors import ConfigError, Interrupted, TrainingDiverged
from kdpipe.infer.model import load_model, read_tensors
from kdpipe.methods.kd import Method as Kd
from kdpipe.provenance import digest

#: of all kinds: logits, adapters, random draws, memory with draws, a critic with draws, the past
#: self, a part that is fitted before, one that needs no teacher, a sum
MEMBERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "none": ("none", {}, {}),
    "kd": ("kd", {}, {"learning_rate": 0.002, "ema_decay": 0.9}),
    "fitnet": ("fitnet", {}, {"optimizer": "sgd"}),
    "mgd": ("mgd", {}, {}),
    "cirkd": ("cirkd", {}, {"validate_every": 1}),
    "skd": ("skd", {"weight_holistic": 0.1}, {}),
    "ps_kd": ("ps_kd", {}, {}),
    "ft": ("ft", {"prefit_steps": 3}, {}),
    "byot": ("byot", {}, {}),
}
COST = ["seconds", "energy_j"]


@pytest.fixture(scope="module")
def teacher(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run()
    run["network"]["params"]["channels"] = [6, 12, 24]
    job = make_job(store, tmp_path_factory.mktemp("teacher"), run)
    train(job)
    return Path(job.model)


class Members:
    """Jobs by name, in a folder."""

    def __init__(
        self, store: Path, teacher: Path, folder: Path, names: tuple[str, ...], **common: Any
    ):
        self.jobs: dict[str, Job] = {}
        for name in names:
            method, params, training = MEMBERS[name]
            run = make_run(method, params, **(training | common))
            run["network"] |= {"name": "enet", "params": ENET} if name == "mgd" else {}
            self.jobs[name] = make_job(store, folder / name, run, teacher)

    def alone(self) -> dict[str, Any]:
        for job in self.jobs.values():
            train(job)
        return self.results()

    def together(self, **options: Any) -> dict[str, Any]:
        train_cohort(list(self.jobs.values()), **options)
        return self.results()

    def results(self) -> dict[str, Any]:
        """What must be the same: all weights, the history without its cost, the facts."""
        return {name: results(job) for name, job in self.jobs.items()}


def results(job: Job) -> tuple[str, str, dict[str, Any]]:
    weights = weights_digest(load_model(job.model).network.state_dict())
    history = pd.read_csv(job.model.with_name("train.csv")).drop(columns=COST, errors="ignore")
    facts = json.loads(job.model.with_name("model.json").read_text())
    kept = {key: value for key, value in facts.items() if key not in (*COST, "cohort")}
    assert kept["weights_sha256"] == weights
    return weights, history.to_csv(), kept


def states(jobs: dict[str, Job]) -> dict[str, tuple[int, str]]:
    """Step and digest of everything that each checkpoint holds, but for the cost."""
    return {name: state(job) for name, job in jobs.items()}


def state(job: Job) -> tuple[int, str]:
    content = read_tensors(job.state / "state.pt")
    del content["spent"]
    for row in content["rows"]:
        for name in COST:
            row.pop(name, None)
    tensors: dict[str, Tensor] = {}

    def collect(value: Any, path: str) -> None:
        if isinstance(value, Tensor):
            tensors[path] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                collect(inner, f"{path}/{key}")
        elif isinstance(value, list | tuple):
            collect(dict(enumerate(value)), path)
        else:
            tensors[f"{path}={value}"] = torch.zeros(1)

    collect(content, "")
    return content["step"], weights_digest(tensors)


ENET: dict[str, Any] = {}  # a student that draws itself: dropout


@pytest.fixture(scope="module", autouse=True)
def _enet() -> None:
    from kdpipe import discover

    ENET.update(discover.check_params("nets", "enet", {}))


def cut_at(monkeypatch: pytest.MonkeyPatch, turn: int, act: Callable[[], None]) -> None:
    """Do `act` in the turn of that number, of all members, before its step."""
    real, turns = Trainer.advance, iter(range(10**9))

    def advance(trainer: Trainer, batch: dict[str, Tensor]) -> dict[str, float]:
        if next(turns) == turn:
            act()
        return real(trainer, batch)

    monkeypatch.setattr(Trainer, "advance", advance)


def kill() -> None:
    raise KeyboardInterrupt  # no Exception: nothing catches it


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def test_every_member_is_what_it_is_alone(store: Path, tmp_path: Path, teacher: Path) -> None:
    names = tuple(MEMBERS)
    expected = Members(store, teacher, tmp_path / "alone", names).alone()
    members = Members(store, teacher, tmp_path / "together", names)
    assert members.together() == expected
    for job in members.jobs.values():
        facts = json.loads(job.model.with_name("model.json").read_text())
        assert facts["cohort"] == len(names) and facts["seconds"] > 0
        assert not job.state.exists() and not job.state.with_name("checkpoint.lock").exists()


def test_checkpoints_are_what_they_are_alone(
    store: Path, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("none", "mgd", "skd", "ps_kd")
    alone = Members(store, teacher, tmp_path / "alone", names)
    for job in alone.jobs.values():
        with monkeypatch.context() as patched:
            cut_at(patched, 4, terminate)
            with pytest.raises(Interrupted):
                train(job)
    members = Members(store, teacher, tmp_path / "together", names)
    cut_at(monkeypatch, 5 * len(names) - 1, terminate)
    with pytest.raises(Interrupted, match="SIGTERM after step 5 of 9; 4 members go on"):
        members.together()
    assert states(members.jobs) == states(alone.jobs)


@pytest.mark.parametrize("turn", [4, 13])
def test_a_cohort_that_is_stopped_in_the_middle_of_a_step_goes_on(
    store: Path, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    names = ("kd", "mgd", "cirkd", "ft")
    expected = Members(store, teacher, tmp_path / "alone", names).alone()
    members = Members(store, teacher, tmp_path / "together", names)
    with monkeypatch.context() as patched:
        cut_at(patched, turn, terminate)
        with pytest.raises(Interrupted):
            members.together()
    steps = {step for step, _ in states(members.jobs).values()}
    assert steps == ({turn // 4, turn // 4 + 1} if (turn + 1) % 4 else {turn // 4 + 1})
    assert members.together() == expected


def test_members_that_were_killed_at_different_steps_catch_up(
    store: Path, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("none", "mgd", "skd", "ps_kd")
    expected = Members(store, teacher, tmp_path / "alone", names).alone()
    members = Members(store, teacher, tmp_path / "together", names)
    for job, step in zip(members.jobs.values(), (7, 0, 2, 5), strict=True):  # alone until then
        with monkeypatch.context() as patched:
            cut_at(patched, step, kill)
            if step:
                with pytest.raises(KeyboardInterrupt):
                    train(replace(job, checkpoint_seconds=0.0))
    assert members.together() == expected


@pytest.mark.parametrize("turn", [6, 11])
def test_a_cohort_that_is_killed_while_it_saves_goes_on(
    store: Path, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    names = ("kd", "cirkd", "ps_kd")
    expected = Members(store, teacher, tmp_path / "alone", names).alone()
    members = Members(store, teacher, tmp_path / "together", names)
    jobs, real, turns = members.jobs, Trainer.save, iter(range(10**9))

    def save(trainer: Trainer) -> None:
        kill() if next(turns) == turn else real(trainer)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "save", save)
        members.jobs = {n: replace(job, checkpoint_seconds=0.0) for n, job in jobs.items()}
        with pytest.raises(KeyboardInterrupt):
            members.together()
    steps = [step for step, _ in states(jobs).values()]
    assert steps == [turn // 3 + (place < turn % 3) for place in range(3)]
    assert members.together() == expected


def test_one_forward_pass_of_the_teacher_a_batch(
    store: Path, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[set[str]] = []
    real = Learner.__call__

    def counted(learner: Learner, image: Tensor) -> Any:
        outputs = real(learner, image)
        if not any(parameter.requires_grad for parameter in learner.network.parameters()):
            passes.append(set(outputs.features))
        return outputs

    monkeypatch.setattr(Learner, "__call__", counted)
    Members(store, teacher, tmp_path, ("none", "kd", "fitnet", "cirkd")).together()
    assert len(passes) == 9
    assert all(taps == passes[0] for taps in passes)


def test_a_method_that_writes_into_the_teachers_output_changes_nobody_else(
    store: Path, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Kd.losses

    def careless(self: Kd, student: Any, teacher: Any, target: Tensor, progress: Any) -> Any:
        terms = real(self, student, teacher, target, progress)
        teacher.logits.zero_()
        return terms

    monkeypatch.setattr(Kd, "losses", careless)
    names = ("kd", "fitnet", "cirkd")
    expected = Members(store, teacher, tmp_path / "alone", names).alone()
    assert Members(store, teacher, tmp_path / "together", names).together() == expected


def test_a_member_that_diverges_stops_no_other(
    store: Path, tmp_path: Path, teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("none", "mgd", "cirkd")
    expected = Members(store, teacher, tmp_path / "alone", names).alone()
    members = Members(store, teacher, tmp_path / "together", names)
    wild = make_run("kd", learning_rate=1e30, optimizer="sgd", gradient_clip=None)
    job = make_job(store, tmp_path / "together" / "wild", wild, teacher)
    with pytest.raises(TrainingDiverged, match=r"not finite at step \d"):
        train_cohort([members.jobs["none"], job, members.jobs["mgd"], members.jobs["cirkd"]])
    assert members.results() == expected
    assert job.state.with_name("diverged.pt").exists() and not job.model.exists()
    assert f"{job.state.parent} drops out: the loss is not finite" in caplog.text
    with pytest.raises(TrainingDiverged):
        train(job)  # as it ends alone
    train_cohort([job, *members.jobs.values()], leave_failed=True)


def test_a_trial_that_diverges_is_lost_unless_it_is_left_to_others(
    store: Path, tmp_path: Path, teacher: Path
) -> None:
    wild = make_run("kd", learning_rate=1e30, optimizer="sgd", gradient_clip=None)
    trial = make_job(store, tmp_path / "a", wild | {"tuning": {"trial": 1}}, teacher)
    left = make_job(store, tmp_path / "b", wild | {"tuning": {"trial": 2}}, teacher)
    train_cohort([left], leave_failed=True)
    assert not left.model.with_name("model.json").exists()
    train_cohort([trial])
    assert "not finite" in json.loads(trial.model.with_name("model.json").read_text())["diverged"]
    assert not trial.model.exists()


def test_a_method_that_fails_in_another_way_stops_no_other(
    store: Path, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Kd, *given: Any) -> Any:
        raise ZeroDivisionError("a slip")

    monkeypatch.setattr(Kd, "losses", broken)
    members = Members(store, teacher, tmp_path / "together", ("kd", "none", "mgd"))
    with pytest.raises(ZeroDivisionError, match="a slip"):
        members.together()
    del members.jobs["kd"]
    names = ("none", "mgd")
    assert members.results() == Members(store, teacher, tmp_path / "alone", names).alone()


def test_a_finished_member_is_not_trained_again(
    store: Path,
    tmp_path: Path,
    teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    members = Members(store, teacher, tmp_path, ("none", "kd", "mgd"))
    members.together()
    files = {n: job.model.stat().st_mtime_ns for n, job in members.jobs.items()}
    other = members.jobs["kd"]
    members.jobs["kd"] = replace(other, code="edited")
    with caplog.at_level(logging.INFO):
        members.together()
    assert "1 of 3 members are to be trained" in caplog.text
    changed = [n for n, job in members.jobs.items() if job.model.stat().st_mtime_ns != files[n]]
    assert changed == ["kd"]
    monkeypatch.setattr(Trainer, "advance", lambda *given: pytest.fail("a step was done"))
    members.together()


def test_what_lies_in_the_cells_folder_is_taken(
    store: Path, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = Members(store, teacher, tmp_path, ("none", "mgd"))
    expected = members.alone()
    monkeypatch.setattr(Trainer, "advance", lambda *given: pytest.fail("a step was done"))
    members.jobs = {
        name: replace(job, model=job.model.parent / "cohort" / "model.pt")
        for name, job in members.jobs.items()
    }
    assert members.together() == expected


def test_members_share_with_other_studies(
    store: Path, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(sharing.VARIABLE, str(tmp_path / "cache"))
    names = ("none", "kd")
    first = Members(store, teacher, tmp_path / "one", names)
    first.jobs = {name: replace(job, code="some") for name, job in first.jobs.items()}
    expected = first.together()
    second = Members(store, teacher, tmp_path / "two", names)
    second.jobs = {name: replace(job, code="some") for name, job in second.jobs.items()}
    monkeypatch.setattr(Trainer, "advance", lambda *given: pytest.fail("a step was done"))
    for name, (weights, history, _) in second.together().items():
        assert (weights, history) == expected[name][:2]


@pytest.mark.parametrize(
    ("difference", "named"),
    [
        ({"batch_size": 1}, "batch_size"),
        ({"precision": "bf16"}, "precision"),
        ({"foreground_crops": 0.1}, "foreground_crops"),
        ("seed", "seed"),
        ("split", "split"),
    ],
)
def test_members_that_see_other_batches_are_refused(
    store: Path, tmp_path: Path, teacher: Path, difference: Any, named: str
) -> None:
    run = make_run("kd", **(difference if isinstance(difference, dict) else {}))
    job = make_job(store, tmp_path / "b", run, teacher)
    if difference == "seed":
        run["cell"]["seed"] = 6
    elif difference == "split":
        job = replace(job, split=job.split | {"train": job.split["train"][:3]})
    with pytest.raises(ConfigError, match=f"b cannot be in a cohort .*a: their {named} differ"):
        train_cohort([make_job(store, tmp_path / "a", make_run(), None), job])


def test_a_cohort_is_one_process_with_one_teacher_and_each_member_once(
    store: Path, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [make_job(store, tmp_path / name, make_run("kd"), teacher) for name in "aab"]
    with pytest.raises(ConfigError, match="stands twice"):
        train_cohort(jobs)
    with pytest.raises(ConfigError, match="one teacher"):
        train_cohort([jobs[0], replace(jobs[2], teacher=tmp_path / "other.pt")])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="in one process"):
        train_cohort(jobs[1:])


def test_by_hand_and_for_the_graph(
    store: Path, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = Members(store, teacher, tmp_path, ("none", "kd"))
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared/cases").symlink_to(store)
    (tmp_path / "prepared/run.json").write_text("{}")
    split = {key: members.jobs["kd"].split[key] for key in ("train", "val", "test")}
    (tmp_path / "split.json").write_text(json.dumps(split | {"sha256": digest(split)}))
    for name, job in members.jobs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(job.run))
    monkeypatch.chdir(tmp_path)
    data = "--prepared prepared --split split.json"
    cohort = ["train-cohort", *data.split(), "--teacher", str(teacher)]
    assert cli.main([*cohort, "--run", "none/run.json", "--run", "kd/run.json"]) == 0
    alone = members.results()

    told = {
        f"{name}/cohort/new.json": {"run": j.run, "code": "c"} for name, j in members.jobs.items()
    }
    (tmp_path / "kd/cohort").mkdir()
    (tmp_path / "kd/cohort/old.json").write_text("{}")
    (tmp_path / "members.json").write_text(json.dumps(told))
    assert cli.main([*cohort, "--members", "members.json"]) == 0
    assert sorted(file.name for file in (tmp_path / "kd/cohort").iterdir()) == [
        *("model.json", "model.pt", "new.json", "train.csv")
    ]
    monkeypatch.setattr(Trainer, "advance", lambda *given: pytest.fail("a step was done"))
    distill = f"distill --run kd/run.json {data} --state kd/checkpoint --model kd/model.pt --code c"
    taken = ["--teacher", str(teacher), "--trained", "kd/cohort"]
    assert cli.main([*distill.split(), *taken]) == 0
    assert results(members.jobs["kd"])[:2] == alone["kd"][:2]
    assert results(members.jobs["kd"])[2]["code"] == "c"
    assert cli.main(cohort) == 2
