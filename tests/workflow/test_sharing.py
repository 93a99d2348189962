"""Studies share what they prepare and train through ``KDPIPE_CACHE``, and only what is equal."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from blobs import make_job, make_run, write_store

from kdpipe import sharing
from kdpipe.data.manifest import Case
from kdpipe.data.phantoms.abdomen import generate
from kdpipe.data.preparation import prepare as preparing
from kdpipe.engine import shared
from kdpipe.engine.jobs import Job
from kdpipe.engine.shared import train_once
from kdpipe.errors import ConfigError
from kdpipe.labels import Labels
from kdpipe.presets import Preparation
from kdpipe.sources import CtAbdomen

LABELS = Labels(raw={0: "background", 1: "liver", 2: "kidney", 3: "spleen"})
PRESET = {"intensity": {"kind": "window", "low": -100, "high": 200}}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shared cache"
    monkeypatch.setenv(sharing.VARIABLE, str(folder))
    return folder


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that were trained and not taken."""
    jobs: list[Job] = []
    train = shared.train

    def remember(job: Job) -> None:
        jobs.append(job)
        train(job)

    monkeypatch.setattr(shared, "train", remember)
    return jobs


def a_job(store: Path, folder: Path, run: dict[str, Any] | None = None) -> Job:
    return replace(make_job(store, folder, run or make_run()), code="code of the training")


def entries(cache: Path, kind: str) -> list[Path]:
    return sorted((cache / kind).glob("*/*"))


def written(job: Job) -> dict[str, bytes]:
    return {name: job.model.with_name(name).read_bytes() for name in ("model.pt", "train.csv")}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "prepared" / "cases")


def test_a_second_study_takes_the_training_to_the_bit(
    store: Path, tmp_path: Path, cache: Path, trained: list[Job]
) -> None:
    first, second = a_job(store, tmp_path / "one"), a_job(store, tmp_path / "two" / "deeper")
    train_once(first)
    second.state.mkdir(parents=True)
    (second.state / "state.pt").write_text("of a job that was stopped")
    train_once(second)
    assert trained == [first]
    assert written(first) == written(second)
    facts, theirs = (
        json.loads(j.model.with_name("model.json").read_text()) for j in (second, first)
    )
    assert facts == theirs | {"taken_from_cache": entries(cache, "trainings")[0].name}
    assert not second.state.exists()
    assert [path.name for path in second.model.parent.iterdir() if path.name.startswith(".")] == []


def test_the_same_training_under_another_label_keeps_its_own_name(
    store: Path, tmp_path: Path, cache: Path, trained: list[Job]
) -> None:
    train_once(a_job(store, tmp_path / "one"))
    run = make_run()
    run["cell"] |= {"teacher": "large"}
    renamed = a_job(store, tmp_path / "two", run)
    train_once(renamed)
    assert len(trained) == 1
    content = torch.load(renamed.model, weights_only=True)
    assert content["run"]["cell"]["teacher"] == "large"


@pytest.mark.parametrize(
    "change", ["learning_rate", "seed", "code", "network", "split", "data", "versions", "processes"]
)
def test_what_differs_is_trained(
    change: str,
    store: Path,
    tmp_path: Path,
    cache: Path,
    trained: list[Job],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train_once(a_job(store, tmp_path / "one"))
    run = make_run(**({"learning_rate": 0.002} if change == "learning_rate" else {}))
    if change == "seed":
        run["cell"]["seed"] = 6
    elif change == "network":
        run["network"]["params"]["channels"] = [4, 8, 12]
    job = a_job(store, tmp_path / "two", run)
    if change == "code":
        job = replace(job, code="edited")
    elif change == "split":
        job = replace(job, split=job.split | {"val": job.split["test"]})
    elif change == "data":
        geometry = store / job.split["train"][0] / "geometry.json"
        geometry.write_text(json.dumps(json.loads(geometry.read_text()) | {"digest": "other"}))
    elif change == "versions":
        monkeypatch.setattr(sharing, "environment", lambda: {"torch": "another"})
    elif change == "processes":
        key = shared._key(job, "digest")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert shared._key(job, "digest") != key
        return
    train_once(job)
    assert len(trained) == 2
    assert "taken_from_cache" not in json.loads(job.model.with_name("model.json").read_text())


@pytest.mark.parametrize(
    "damage", ["truncated", "swapped", "symlink", "list", "lacking", "weights"]
)
def test_a_damaged_entry_is_not_used_and_made_anew(
    damage: str, store: Path, tmp_path: Path, cache: Path, trained: list[Job]
) -> None:
    first = a_job(store, tmp_path / "one")
    train_once(first)
    (entry,) = entries(cache, "trainings")
    model, listed = entry / "model.pt", entry / "files.json"
    if damage == "truncated":
        model.write_bytes(model.read_bytes()[:-100])
    elif damage == "swapped":
        shutil.copy(entry / "train.csv", model)
    elif damage == "symlink":
        model.rename(tmp_path / "elsewhere.pt")
        model.symlink_to(tmp_path / "elsewhere.pt")
    elif damage == "list":
        listed.write_text("{")
    elif damage == "lacking":
        (entry / "train.csv").unlink()
    else:  # a list that fits, of other weights
        content = torch.load(model, weights_only=True)
        content["weights"] = {name: value + 1 for name, value in content["weights"].items()}
        torch.save(content, model)
        files = json.loads(listed.read_text()) | {"model.pt": sharing.file_digest(model)}
        listed.write_text(json.dumps(files))
    second = a_job(store, tmp_path / "two")
    train_once(second)
    assert len(trained) == 2
    facts = [json.loads(j.model.with_name("model.json").read_text()) for j in (first, second)]
    assert facts[0]["weights_sha256"] == facts[1]["weights_sha256"]
    if damage != "weights":  # that one the job cannot tell from an entry of its own making
        third = a_job(store, tmp_path / "three")
        train_once(third)
        assert len(trained) == 2
        assert written(second) == written(third)


def test_trials_and_undigested_code_are_not_shared(
    store: Path, tmp_path: Path, cache: Path, trained: list[Job]
) -> None:
    job = make_job(store, tmp_path / "by hand", make_run())
    trial = a_job(store, tmp_path / "trial", make_run() | {"tuning": {"trial": 1}})
    for each in (job, job, trial, trial):
        train_once(each)
    assert len(trained) == 4
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_stops_nothing(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv(sharing.VARIABLE, str(tmp_path / "a file"))
    job = a_job(store, tmp_path / "one")
    train_once(job)
    assert job.model.is_file()
    assert "not shared" in caplog.text


def test_a_relative_cache_is_refused(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(sharing.VARIABLE, "cache")
    with pytest.raises(ConfigError, match="absolute"):
        train_once(a_job(store, tmp_path / "one"))


def test_many_jobs_at_once_leave_one_whole_entry(tmp_path: Path, cache: Path) -> None:
    sources = []
    for index in range(8):
        source = tmp_path / str(index) / "x.bin"
        source.parent.mkdir()
        source.write_bytes(b"equal" * 100_000)
        sources.append(source)
    threads = [
        threading.Thread(target=sharing.give, args=("cases", "ab" * 32, [file])) for file in sources
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (entry,) = entries(cache, "cases")
    assert sorted(file.name for file in entry.iterdir()) == ["files.json", "x.bin"]
    with sharing.taken("cases", "ab" * 32, ["x.bin"], tmp_path / "store") as folder:
        assert folder is not None
        assert (folder / "x.bin").read_bytes() == sources[0].read_bytes()
    assert list((tmp_path / "store").iterdir()) == []


# prepared cases


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("source")
    generate(folder, CtAbdomen(n_cases=3), LABELS)
    return folder


def a_manifest(source: Path) -> list[Case]:
    found = []
    for label in sorted((source / "labelsTr").iterdir()):
        name = label.name.removesuffix(".nii.gz")
        image = source / "imagesTr" / label.name
        found.append(Case(name, name, (image,), label, sharing.file_digest(image)))
    return found


def prepare(source: Path, folder: Path, workers: int = 1, digest: str = "d", **preset: Any) -> Path:
    settings = Preparation.model_validate(PRESET | preset)
    store = folder / "cases"
    tables = folder / "cases.tsv", folder / "fingerprint.json"
    preparing.prepare(
        a_manifest(source), settings, LABELS, ["CT"], store, *tables, digest, workers, None
    )
    return store


def content(store: Path) -> dict[str, bytes]:
    files = (file for file in sorted(store.rglob("*")) if file.is_file())
    return {str(file.relative_to(store)): file.read_bytes() for file in files}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cases whose images were read, that is prepared and not taken."""
    names: list[str] = []
    read_case = preparing.read_case

    def remember(case: Case) -> Any:
        names.append(case.case)
        return read_case(case)

    monkeypatch.setattr(preparing, "read_case", remember)
    return names


def test_a_second_study_takes_the_prepared_cases_to_the_bit(
    source: Path, tmp_path: Path, cache: Path, read: list[str]
) -> None:
    first = prepare(source, tmp_path / "one")
    assert len(read) == 3
    other_place = tmp_path / "moved" / source.name
    shutil.copytree(source, other_place)
    second = prepare(other_place, tmp_path / "two")
    assert len(read) == 3
    assert content(first) == content(second)
    tables = [(tmp_path / place / "cases.tsv").read_bytes() for place in ("one", "two")]
    assert tables[0] == tables[1]


def test_other_digests_code_and_damaged_cases_are_prepared(
    source: Path, tmp_path: Path, cache: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(source, tmp_path / "one")
    del read[:]
    prepare(source, tmp_path / "two", digest="of other settings")
    assert len(read) == 3
    del read[:]
    with monkeypatch.context() as patch:
        patch.setattr("kdpipe.data.preparation.shared_cases.code_digest", lambda *modules: "edited")
        prepare(source, tmp_path / "three")
    assert len(read) == 3
    del read[:]
    entry = entries(cache, "cases")[0]
    (entry / "image.b2nd").write_bytes(b"damaged")
    for other in entries(cache, "cases")[1:]:
        (other / "geometry.json").write_text("{}")
    assert content(prepare(source, tmp_path / "four")) == content(first)
    assert len(read) == 3
    moved = tmp_path / "renamed"
    shutil.copytree(source, moved)
    for part in ("imagesTr", "labelsTr"):
        file = sorted((moved / part).iterdir())[0]
        file.rename(file.with_name("another.nii.gz"))
    del read[:]
    prepare(moved, tmp_path / "five")
    assert read == ["another"]


# the whole: two checkouts of one study

CONFIG = """
study: {name}
data_root: {name}_data
results_root: {name}_results
cards: [cards]
datasets: [few]
teachers: [{{unet_tiny: {{channels: [4, 8, 16], strides: [2, 2]}}}}]
students: [{{unet_tiny: {{channels: [4, 4, 8], strides: [2, 2]}}}}]
methods: [kd]
seeds: [{seed}]
training:
  teacher: {{epochs: 1, steps_per_epoch: 2, validate_every: 1}}
  student: {{epochs: 1, steps_per_epoch: 2, validate_every: 1}}
"""


@pytest.mark.soak
def test_two_studies_train_one_teacher(tmp_path: Path, root: Path, cache: Path) -> None:
    for name, seed in (("first", 0), ("second", 1)):
        folder = tmp_path / name
        folder.mkdir()
        card = (root / "kdpipe/data/cards/phantom_ct.yaml").read_text()
        card = re.sub(r"n_cases: \d+", "n_cases: 5", card).replace("id: phantom_ct", "id: few")
        card = card.replace("train: 14, val: 4, test: 6", "train: 3, val: 1, test: 1")
        (folder / "cards").mkdir()
        (folder / "cards/few.yaml").write_text(card)
        (folder / "config.yaml").write_text(CONFIG.format(name=name, seed=seed))
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile")]
        command += ["--configfile", "config.yaml", "--directory", str(folder), "--cores", "2"]
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "students"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    models = {
        name: sorted((tmp_path / name).rglob("teachers/*/seed0/model.pt"))
        for name in ("first", "second")
    }
    ours, theirs = models["second"][0], models["first"][0]
    facts = json.loads(ours.with_name("model.json").read_text())
    assert "taken_from_cache" in facts
    # a teacher and two students of the first study, two students of the second
    assert len(entries(cache, "trainings")) == 5
    assert len(entries(cache, "cases")) == 5
    assert ours.read_bytes() != b"" and torch.load(ours, weights_only=True)["run"]
    assert ours.read_bytes() == theirs.read_bytes()
    for student in (tmp_path / "second").rglob("students/*/*/*/seed1/model.json"):
        assert "taken_from_cache" not in json.loads(student.read_text())
    prepared = [tmp_path / name / f"{name}_data/prepared" for name in ("first", "second")]
    cases = [content(next(folder.rglob("cases"))) for folder in prepared]
    assert cases[0] == cases[1]
    (log,) = (tmp_path / "second" / "logs/prepare").rglob("*.log")
    assert log.read_text().count("as another study has prepared it") == len(
        list(next(prepared[1].rglob("cases")).iterdir())
    )
