"""Teachers that are trained already: taken over, refused where they do not fit, learned from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from blobs import make_job, make_run
from foreign_models import bundle, export, script, trained_net
from torch import nn

from kdpipe import discover
from kdpipe.engine.adopt import adopt, load_weights
from kdpipe.engine.jobs import Job
from kdpipe.engine.state import weights_digest
from kdpipe.engine.train import train
from kdpipe.errors import ConfigError, DataError
from kdpipe.infer.model import load_model
from kdpipe.nets.base import build_network

NETWORK = make_run()["network"]
SHORT = {"epochs": 1, "steps_per_epoch": 2}


def adoption(name: str, params: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """The run.json of a teacher that is trained already."""
    run = make_run()
    training, _ = run.pop("training"), run.pop("method")
    run["network"] = {
        "name": name,
        "params": discover.check_params("nets", name, params),
        "in_channels": 1,
        "out_channels": 3,
        **spec,
    }
    return run | {"adopt": {key: training[key] for key in ("validation_overlap", "precision")}}


def from_file(file: Path) -> dict[str, Any]:
    return adoption(NETWORK["name"], NETWORK["params"], weights=str(file))


def facts(job: Job) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(job.model.with_name("model.json").read_text())
    return content


def network(**spec: Any) -> nn.Module:
    spec = NETWORK | spec
    return build_network(
        spec["name"], spec["params"], spec["in_channels"], spec["out_channels"], 3
    ).eval()


@pytest.fixture(scope="module")
def native(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A teacher that was trained here."""
    job = make_job(store, tmp_path_factory.mktemp("native"), make_run())
    train(job)
    return job


def bare(weights: dict[str, Any]) -> Any:
    return weights


FORMS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bare": bare,
    "parallel": lambda weights: {
        "state_dict": {f"module.{name}": value for name, value in weights.items()},
        "epoch": 7,
    },
    "model": lambda weights: {"model": weights, "optimizer": {"lr": 0.1}},
    "nested": lambda weights: {"network_weights": {"state_dict": weights}},
}


# --- a network of the catalogue -----------------------------------------------------------------


@pytest.mark.parametrize("form", [*FORMS, "kdpipe"])
def test_weights_are_taken_over_and_students_are_those_of_the_native_teacher(
    store: Path, tmp_path: Path, native: Job, form: str
) -> None:
    file = native.model
    weights = load_model(native.model).network.state_dict()
    if form != "kdpipe":
        file = tmp_path / "weights.pt"
        torch.save(FORMS[form](weights), file)
    job = make_job(store, tmp_path / "adopted", from_file(file))
    adopt(job)
    found = facts(job)
    assert found["weights_sha256"] == weights_digest(weights) == facts(native)["weights_sha256"]
    history = pd.read_csv(job.model.with_name("train.csv"))
    # of the same network and window as the training's last validation
    best = facts(native)["validation_dice"]
    assert list(history["validation_dice"]) == [found["validation_dice"]] == [best]
    file.rename(tmp_path / "gone") if form != "kdpipe" else None  # model.pt holds the weights
    students = []
    for teacher in (native, job):
        student = make_job(
            store, tmp_path / f"of_{teacher.model.parent.name}", make_run("fitnet", **SHORT),
            teacher.model,
        )  # fmt: skip
        train(student)
        students.append(facts(student)["weights_sha256"])
    assert students[0] == students[1]


class Evil:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def other_network() -> dict[str, Any]:
    params = NETWORK["params"] | {"channels": [6, 8, 16]}
    return network(params=params).state_dict()


def not_finite() -> dict[str, Any]:
    weights = network().state_dict()
    next(iter(weights.values())).view(-1)[0] = float("nan")
    return weights


CONTENTS: dict[str, tuple[Callable[[], Any], str]] = {
    "another width": (other_network, r"shape of model.0.conv.weight \(6, .*\) instead of \(4, "),
    "another network": (lambda: trained_net().state_dict(), r"lacks model.0.* \.\.\.; unknown enc"),
    "more classes": (
        lambda: network(out_channels=5).state_dict(),
        "these are weights of another network: shape of .*Mend the teacher's parameters",
    ),
    "no weights": (lambda: {"epoch": 3}, "holds no weights"),
    "an empty state": (lambda: {"state_dict": {}}, "holds no weights"),
    "numbers as names": (lambda: {1: torch.ones(1)}, "holds no weights"),
    "a tensor": (lambda: torch.ones(3), "holds no weights"),
    "a diverged training": (not_finite, "is not finite"),
    "a whole network": (network, "UnpicklingError.*holds more than tensors and plain values"),
}


@pytest.mark.parametrize("what", CONTENTS)
def test_a_file_of_other_content_is_named_and_nothing_is_written(
    store: Path, tmp_path: Path, what: str
) -> None:
    content, message = CONTENTS[what]
    file = tmp_path / "weights.pt"
    torch.save(content(), file)
    job = make_job(store, tmp_path / "cell", from_file(file))
    with pytest.raises(DataError, match=rf"weights.pt: .*{message}"):
        adopt(job)
    assert not job.model.parent.exists()


def damaged(file: Path) -> dict[str, bytes]:
    torch.save(network().state_dict(), file)
    new = file.read_bytes()
    torch.save(network().state_dict(), file, _use_new_zipfile_serialization=False)
    old = file.read_bytes()
    cut = {f"cut to {n}": content[:n] for content in (new, old) for n in (1, 20, 1000)}
    return cut | {"empty": b"", "text": b"hello world\n", "half": new[: len(new) // 2]}


def test_a_damaged_file_is_named(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    job = make_job(store, tmp_path / "cell", from_file(file))
    with pytest.raises(DataError, match=r"weights.pt: not readable .*No such file"):
        adopt(job)
    for content in damaged(file).values():
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"weights.pt: not readable as weights"):
            adopt(job)
        with pytest.raises(DataError, match=r"weights.pt: not a usable kdpipe model"):
            load_model(file)
    assert not job.model.parent.exists()


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    file, proof = tmp_path / "weights.pt", tmp_path / "proof"
    torch.save({"state_dict": network().state_dict(), "extra": Evil(proof)}, file)
    with pytest.raises(DataError, match="holds more than tensors"):
        load_weights(network(), file)
    assert not proof.exists()
    torch.load(file, weights_only=False)  # it would have
    assert proof.exists()


# --- networks that bring their weights ----------------------------------------------------------


def foreign(kind: str, folder: Path) -> dict[str, Any]:
    """Parameters of a network that lies in `folder` and is for blobs, 16 voxels a side."""
    if kind == "exported":
        taps = {"enc1": "encoder.0", "penult": "head:input"}
        return {"path": export(trained_net(), folder / "net.pt2"), "taps": taps, "divisor": 2}
    if kind == "torchscript":
        return {"path": script(trained_net(), folder / "net.pt")}
    return {"path": bundle(folder / "net"), "taps": {"enc2": "down_1", "penult": "upcat_1"}}


def other_foreign(kind: str, folder: Path) -> None:
    """Put another network in the place of the first."""
    changed = trained_net()
    with torch.no_grad():
        changed.head.bias += 1
    if kind == "monai_bundle":
        file = folder / "net/models/model.pt"
        torch.save({name: 2 * value for name, value in torch.load(file).items()}, file)
    else:
        {"exported": export, "torchscript": script}[kind](
            changed, folder / ("net.pt2" if kind == "exported" else "net.pt")
        )


PATCHES = {"exported": [16, 16, 16], "torchscript": [16, 16, 16], "monai_bundle": [32, 32, 32]}


@pytest.mark.parametrize("kind", PATCHES)
def test_a_network_of_another_project_teaches(store: Path, tmp_path: Path, kind: str) -> None:
    patch = {"patch": PATCHES[kind]}
    params = foreign(kind, tmp_path)
    job = make_job(store, tmp_path / "cell", adoption(kind, params) | patch)
    adopt(job)
    assert 0 <= facts(job)["validation_dice"] <= 1
    content = torch.load(job.model, weights_only=True)
    assert "weights" not in content  # its own files are not copied
    assert content["sources"]
    model = load_model(job.model)
    image = torch.randn(1, 1, *PATCHES[kind])
    expected = build_network(kind, params, 1, 3)(image)
    torch.testing.assert_close(model.network(image), expected)

    terms_of = {"kd": "kd"} | ({} if kind == "torchscript" else {"fitnet": "hint"})
    for method, term in terms_of.items():
        student = make_job(store, tmp_path / method, make_run(method, **SHORT) | patch, job.model)
        train(student)
        terms = pd.read_csv(student.model.with_name("train.csv"))
        assert (terms[term] > 0).all()
        assert facts(student)["weights_sha256"] != facts(job)["weights_sha256"]

    student = make_job(store, tmp_path / "again", make_run("kd", **SHORT) | patch, job.model)
    other_foreign(kind, tmp_path)
    with pytest.raises(DataError, match=r"model.pt: files of the teacher in .*net.* have changed"):
        train(student)
    Path(params["path"]).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"have changed or moved since it was taken over"):
        train(student)
    assert not student.model.exists()


def test_a_feature_method_on_a_program_without_taps_says_what_is_missing(
    store: Path, tmp_path: Path
) -> None:
    job = make_job(
        store, tmp_path / "cell", adoption("torchscript", foreign("torchscript", tmp_path))
    )
    adopt(job)
    with pytest.raises(ConfigError, match="teacher"):
        train(make_job(store, tmp_path / "student", make_run("fitnet", **SHORT), job.model))


def test_students_of_an_exported_teacher_are_those_of_the_network_itself(
    store: Path, tmp_path: Path, native: Job
) -> None:
    teacher = load_model(native.model).network
    file = tmp_path / "teacher.pt2"
    sizes = {axis: torch.export.Dim.AUTO for axis in (0, 2, 3, 4)}
    program = torch.export.export(
        teacher, (torch.randn(2, 1, 16, 16, 16),), dynamic_shapes=(sizes,)
    )
    torch.export.save(program, file)
    job = make_job(store, tmp_path / "cell", adoption("exported", {"path": str(file)}))
    adopt(job)
    assert facts(job)["validation_dice"] == pytest.approx(facts(native)["validation_dice"])
    students = []
    for model in (native.model, job.model):
        student = make_job(store, tmp_path / model.parent.name, make_run("kd", **SHORT), model)
        train(student)
        students.append(load_model(student.model).network.state_dict())
    for name, value in students[0].items():
        torch.testing.assert_close(students[1][name], value, rtol=1e-4, atol=1e-5)


def test_a_frozen_program_without_parameters_is_taken_over(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "frozen.pt"
    torch.jit.save(torch.jit.freeze(torch.jit.script(trained_net())), file)
    job = make_job(store, tmp_path / "cell", adoption("torchscript", {"path": str(file)}))
    adopt(job)
    assert job.model.exists()


class HalfSize(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image[..., ::2].expand(-1, 3, -1, -1, -1)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("channels", r"does not run on an image .* of \(1, 2, 16, 16, 16\) .*have 1 channels"),
        ("size", r"gives logits of \(1, 3, 16, 16, 8\) for a patch, \(1, 3, 16, 16, 16\) are"),
        ("sides", r"gives logits of \(1, 3, 16, 16, 16\) for a patch, \(1, 3, 16, 16, 15\) are"),
    ],
)
def test_a_program_for_other_images_is_refused_before_its_validation(
    store: Path, tmp_path: Path, what: str, message: str
) -> None:
    file = tmp_path / "net.pt"
    script(HalfSize().eval() if what == "size" else trained_net(), file)
    run = adoption("torchscript", {"path": str(file)}, in_channels=2 if what == "channels" else 1)
    if what == "sides":
        run["patch"] = [16, 16, 15]
    job = make_job(store, tmp_path / "cell", run)
    with pytest.raises(ConfigError, match=message):
        adopt(job)
    assert not job.model.parent.exists()
