"""Every method, 150 steps on blobs in the real loop: its terms fall and nothing diverges."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdpipe import discover
from kdpipe.engine.learner import Learner
from kdpipe.engine.loop import Trainer
from kdpipe.engine.state import Checkpoint, weights_digest
from kdpipe.engine.taps import TapRecorder, probe
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.nets.base import build_network, network_stages
from kdpipe.settings import Training

METHODS = [name for name in discover.names("methods") if name not in {"none", "sum"}]
STUDENT = ("unet_tiny", {"channels": (4, 8, 16, 24), "strides": (2, 2, 2)})
TEACHER = ("segresnet", {"init_filters": 8, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)})
SHAPE = (2, 1, 16, 16, 16)
CLASSES = 4
EPOCHS, STEPS = 5, 30
SETTINGS = Training(epochs=EPOCHS, learning_rate=0.003, validate_every=EPOCHS)

#: whose terms need not fall, and why
RISING = {
    "ps_kd": "the past self grows sure of itself at its own pace",
    "acw_skd": "its self-teacher gets ahead of it, and the temperature works against it",
}


def batch(seed: int) -> dict[str, Tensor]:
    """Noisy spheres of three structures; the brightness tells them apart."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"))
    label = torch.zeros(SHAPE[0], *SHAPE[2:], dtype=torch.long)
    for sample in range(SHAPE[0]):
        for structure in range(1, CLASSES):
            centre = torch.rand(3, generator=generator) * 10 + 3
            inside = (grid - centre.view(3, 1, 1, 1)).pow(2).sum(0) < 12
            label[sample][inside] = structure
    noise = torch.randn(SHAPE, generator=generator)
    return {"image": label.unsqueeze(1) + 0.4 * noise, "label": label}


def batches(start: int) -> Iterator[dict[str, Tensor]]:
    for step in range(start, EPOCHS * STEPS):
        yield batch(step)


def network(kind: tuple[str, dict[str, object]]) -> tuple[nn.Module, dict[str, str]]:
    torch.manual_seed(0)
    return build_network(kind[0], kind[1], 1, CLASSES), network_stages(kind[0], kind[1])


def learner(net: nn.Module, stages: dict[str, str], taps: tuple[str, ...]) -> Learner:
    return Learner(net, TapRecorder(net, stages, taps))


def train(method: Distiller, student: Learner, teacher: Learner | None, folder: Path) -> Trainer:
    trainer = Trainer(
        SETTINGS,
        STEPS,
        student,
        teacher,
        method,
        batches,
        lambda _: 0.5,
        Checkpoint(folder, "digest", 1e9),
    )
    trainer.run()
    return trainer


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    net, stages = network(TEACHER)
    module = discover.load("methods", "none")
    none = module.Method(module.Params(), Context(CLASSES, 3))
    train(none, learner(net, stages, ()), None, tmp_path_factory.mktemp("teacher"))
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("name", METHODS)
def test_terms_fall_and_the_segmentation_loss_does_not_diverge(
    name: str, teacher: nn.Module, tmp_path: Path
) -> None:
    net, stages = network(STUDENT)
    teacher_stages = network_stages(*TEACHER)
    specs = probe(net, stages, SHAPE)
    past = discover.attribute("methods", name, "past_self", False)
    taught = specs if past else probe(teacher, teacher_stages, SHAPE)
    module = discover.load("methods", name)
    method = module.Method(module.Params(), Context(CLASSES, 3, specs, taught))
    frozen = None
    if past:
        copied = copy.deepcopy(net).eval().requires_grad_(False)
        frozen = learner(copied, stages, method.teacher_taps())
    elif method.needs_teacher:
        frozen = learner(teacher, teacher_stages, method.teacher_taps())
    student = learner(net, stages, method.student_taps())

    before = own_terms(method, student, frozen)
    untouched = weights_digest(teacher.state_dict())
    trainer = train(method, student, frozen, tmp_path)
    after = own_terms(method, student, frozen)
    for recorded in (student, frozen):
        if recorded is not None:
            recorded.recorder.remove()

    assert weights_digest(teacher.state_dict()) == untouched
    assert trainer.best.weights.keys() == network(STUDENT)[0].state_dict().keys()  # nothing more
    assert all(math.isfinite(value) for row in trainer.rows for value in row.values())
    assert trainer.rows[-1]["segmentation"] < trainer.rows[0]["segmentation"]
    if name not in RISING:
        assert after < before


@torch.no_grad()
def own_terms(method: Distiller, student: Learner, teacher: Learner | None) -> float:
    """The method's terms on held-out batches, on a copy so that no memory bank is touched."""
    method = copy.deepcopy(method).train()
    progress = Progress(epoch=EPOCHS // 2, epochs=EPOCHS, step=75, steps=EPOCHS * STEPS)
    total = 0.0
    student.network.train()
    for seed in range(1000, 1004):
        given = batch(seed)
        taught: Outputs | None = teacher(given["image"]) if teacher else None
        terms = method(student(given["image"]), taught, given["label"], progress)
        total += sum(term.item() for term in terms.values())
    return total
