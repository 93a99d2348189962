"""A cell from prepared images to its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from blobs import make_job, make_run

from kdpipe.engine.jobs import training_digest
from kdpipe.engine.state import weights_digest
from kdpipe.engine.train import Job, train
from kdpipe.errors import ConfigError, DataError
from kdpipe.infer.model import load_model, save_model


@pytest.fixture(scope="module")
def teacher(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = make_job(store, tmp_path_factory.mktemp("teacher"), make_run())
    train(job)
    return Path(job.model)


def facts(job: Job) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(job.model.with_name("model.json").read_text())
    return content


def test_a_cell_leaves_model_facts_and_history(store: Path, tmp_path: Path, teacher: Path) -> None:
    job = make_job(store, tmp_path, make_run("cwd"), teacher)
    train(job)
    found = facts(job)
    model = load_model(job.model)
    assert weights_digest(model.network.state_dict()) == found["weights_sha256"]
    assert model.run == job.run
    history = pd.read_csv(tmp_path / "train.csv")
    assert {"segmentation", "cwd", "gradient_norm_cwd", "validation_dice"} <= set(history)
    assert found["validation_dice"] == history["validation_dice"].max()
    assert found["seconds"] == pytest.approx(history["seconds"].sum(), abs=0.1)
    assert found["hardware"]["cpu"] and "energy_j" in found
    assert not job.state.exists()


def test_methods_of_one_seed_start_alike_and_see_the_same_crops(
    store: Path, tmp_path: Path, teacher: Path
) -> None:
    first = {}
    for name in ("none", "kd", "cwd"):
        job = make_job(store, tmp_path / name, make_run(name, epochs=1, steps_per_epoch=1), teacher)
        train(job)
        first[name] = pd.read_csv(tmp_path / name / "train.csv")["segmentation"][0]
    assert first["none"] == first["kd"] == first["cwd"]


def test_a_second_run_gives_the_same_bits_and_another_seed_does_not(
    store: Path, tmp_path: Path
) -> None:
    digests, files = [], []
    for number, seed in enumerate((5, 5, 6)):
        run = make_run()
        run["cell"]["seed"] = seed
        job = make_job(store, tmp_path / str(number), run)
        train(job)
        digests.append(facts(job)["weights_sha256"])
        files.append(job.model.read_bytes())
    assert digests[0] == digests[1] != digests[2]
    assert files[0] == files[1] != files[2]


def test_equal_models_are_equal_files_however_their_parts_were_made(
    tmp_path: Path, teacher: Path
) -> None:
    content = torch.load(teacher, weights_only=True)
    name = "".join(["unet", "_tiny"])  # equal to others, but a string of its own
    run = dict(reversed(content["run"].items()))
    run["network"] = content["run"]["network"] | {"name": name}
    weights = {"".join(part): value.clone() for part, value in content["weights"].items()}
    save_model(tmp_path / "another name.pt", weights, run, content["preparation"])
    assert (tmp_path / "another name.pt").read_bytes() == teacher.read_bytes()


def test_a_student_depends_on_what_its_teacher_is_and_not_on_its_name(
    store: Path, tmp_path: Path, teacher: Path
) -> None:
    content = torch.load(teacher, weights_only=True)
    run, preparation, weights = (content[key] for key in ("run", "preparation", "weights"))
    first = next(iter(weights))
    variants = {
        "renamed": (weights, run | {"cell": run["cell"] | {"teacher": "another"}}, preparation),
        "weights": (weights | {first: weights[first] + 1e-6}, run, preparation),
        "patch": (weights, run | {"patch": [32, 32, 32]}, preparation),
        "images": (weights, run, preparation | {"preset": "another"}),
    }
    digests = {"itself": training_digest(make_job(store, tmp_path, make_run("kd"), teacher))}
    for name, parts in variants.items():
        save_model(tmp_path / f"{name}.pt", *parts)
        job = make_job(store, tmp_path, make_run("kd"), tmp_path / f"{name}.pt")
        digests[name] = training_digest(job)
    assert digests.pop("renamed") == digests["itself"]
    assert len(set(digests.values())) == 4


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_weights_stay_in_float32_whatever_the_precision(
    store: Path, tmp_path: Path, precision: str
) -> None:
    job = make_job(store, tmp_path, make_run(precision=precision, epochs=1, ema_decay=0.9))
    train(job)
    weights = load_model(job.model).network.state_dict()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_distilling_without_a_teacher_is_an_error(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'kd' learns from a teacher"):
        train(make_job(store, tmp_path, make_run("kd")))


def test_a_teacher_of_other_targets_is_an_error(store: Path, tmp_path: Path, teacher: Path) -> None:
    run = make_run("kd")
    run["network"]["out_channels"] = 2
    run["targets"] = {"n_labels": 3, "regions": [[1, 2], [2]]}
    with pytest.raises(ConfigError, match=r"regions None, the student \[\[1, 2\], \[2\]\]"):
        train(make_job(store, tmp_path, run, teacher))


def test_a_patch_that_does_not_fit_is_an_error(store: Path, tmp_path: Path) -> None:
    run = make_run() | {"patch": [16, 18, 16]}
    with pytest.raises(ConfigError, match="multiples of"):
        train(make_job(store, tmp_path, run))


def test_a_damaged_teacher_is_named(store: Path, tmp_path: Path, teacher: Path) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(teacher.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"broken.pt: not a usable kdpipe model"):
        train(make_job(store, tmp_path, make_run("kd"), broken))


def test_a_model_file_cannot_run_code(tmp_path: Path) -> None:
    file = tmp_path / "evil.pt"
    torch.save({"format": 1, "run": print}, file)
    with pytest.raises(DataError, match="not a usable kdpipe model"):
        load_model(file)
