"""The loop: what is logged, what is selected, and going on after a stop as if there was none."""

from __future__ import annotations

import copy
import errno
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdpipe.engine.learner import Learner
from kdpipe.engine.loop import Trainer
from kdpipe.engine.optim import clip_gradients, learning_rate
from kdpipe.engine.state import Checkpoint, weights_digest
from kdpipe.engine.taps import TapRecorder
from kdpipe.errors import Interrupted, TrainingDiverged
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.settings import Training

STAGES = {"enc1": "0", "logits": "3"}


class Adversarial(Distiller):
    """A method with everything that a state can hold: adapter, memory, critic."""

    def __init__(self) -> None:
        super().__init__(None, Context(num_classes=3, spatial_dims=3))
        self.adapter = nn.Conv3d(4, 3, 1)
        self.critic = nn.Linear(3, 1)
        self.register_buffer("memory", torch.zeros(3))
        self.memory: Tensor

    def student_taps(self) -> tuple[str, ...]:
        return ("enc1",)

    def losses(
        self, student: Outputs, teacher: Any, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        feature = self.adapter(student.features["enc1"]).mean((0, 2, 3, 4))
        pull = (feature - self.memory.clone()).square().sum()
        self.memory.lerp_(feature.detach(), 0.1)
        return {"memory": 0.1 * pull, "critic": 0.1 * self.critic(feature).mean().tanh()}

    def critic_loss(self, student: Outputs, teacher: Outputs | None) -> Tensor:
        return self.critic(student.logits.detach().mean((2, 3, 4))).square().mean()

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        return self.critic.parameters()


class SelfTaught(Distiller):
    """A method that learns from the student's past, with a pre-fitted part and a pace."""

    past_self = True

    def __init__(self) -> None:
        super().__init__(None, Context(num_classes=3, spatial_dims=3))
        self.theta = nn.Parameter(torch.zeros(()))
        self.centre = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.prefitted = 0

    def prefit_steps(self) -> int:
        return 1

    def prefit(self, teacher: Iterable[Outputs]) -> None:
        for outputs in teacher:
            self.prefitted += 1
            self.centre += outputs.logits.mean((0, 2, 3, 4))

    def losses(
        self, student: Outputs, teacher: Any, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        distance = (student.logits - teacher.logits).square().mean()
        away = (student.logits.mean((0, 2, 3, 4)) - self.centre).square().sum()
        return {"past": distance * self.theta.exp(), "centre": 0.1 * away}

    def paced_parameters(self) -> Iterable[tuple[nn.Parameter, float]]:
        return [(self.theta, 10.0)]

    def diagnostics(self) -> dict[str, float]:
        return {"theta": self.theta.item()}


def build(
    folder: Path,
    batches: Callable[[int], Any] | None = None,
    every_seconds: float = 0.0,
    kind: Callable[[], Distiller] = Adversarial,
    **training: Any,
) -> Trainer:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Dropout(0.3), nn.Conv3d(4, 3, 1)
    )
    method = kind()
    recipe: dict[str, Any] = {"epochs": 4, "validate_every": 2} | training
    settings = Training(**recipe)
    return Trainer(
        settings,
        steps_per_epoch=3,
        student=Learner(network, TapRecorder(network, STAGES, method.student_taps())),
        teacher=past_of(network, method),
        method=method,
        batches=batches or (lambda start: batches_from(start, 12)),
        validate=lambda net: float(next(net.parameters()).detach().abs().mean()),
        checkpoint=Checkpoint(folder, "digest", every_seconds),
    )


def past_of(network: nn.Module, method: Distiller) -> Learner | None:
    if not method.past_self:
        return None
    past = copy.deepcopy(network).eval().requires_grad_(False)
    return Learner(past, TapRecorder(past, STAGES, method.teacher_taps()))


def batches_from(start: int, stop: int) -> Iterator[dict[str, Tensor]]:
    for step in range(start, stop):
        generator = torch.Generator().manual_seed(step)
        image = torch.randn(2, 1, 6, 6, 6, generator=generator)
        yield {"image": image, "label": (image[:, 0] > 0.5).long()}


def stopped_at(step: int) -> Callable[[int], Iterator[dict[str, Tensor]]]:
    """Batches that end in the death of the process before `step`."""

    def batches(start: int) -> Iterator[dict[str, Tensor]]:
        yield from batches_from(start, step)
        raise ConnectionResetError

    return batches


@pytest.mark.parametrize("kind", [Adversarial, SelfTaught])
@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_going_on_gives_the_same_bits(
    tmp_path: Path, ema: float | None, optimizer: str, kind: Callable[[], Distiller]
) -> None:
    whole = build(tmp_path / "whole", kind=kind, ema_decay=ema, optimizer=optimizer)
    expected = weights_digest(whole.run().weights)
    for step in (1, 3, 4, 8, 11):
        folder = tmp_path / f"stopped{step}"
        trainer = build(folder, stopped_at(step), kind=kind, ema_decay=ema, optimizer=optimizer)
        with pytest.raises(ConnectionResetError):
            trainer.run()
        resumed = build(folder, kind=kind, ema_decay=ema, optimizer=optimizer)
        torch.manual_seed(99)  # whatever the new process had drawn before
        assert weights_digest(resumed.run().weights) == expected
        assert weights_digest(resumed.method.state_dict()) == weights_digest(
            whole.method.state_dict()
        )
        assert _without_cost(resumed.rows) == _without_cost(whole.rows)


def _without_cost(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    cost = ("seconds", "energy_j")
    return [{name: value for name, value in row.items() if name not in cost} for row in rows]


def test_a_signal_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    def batches(start: int) -> Iterator[dict[str, Tensor]]:
        for step, batch in enumerate(batches_from(start, 12), start):
            if step == 5:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    trainer = build(tmp_path / "state", batches, every_seconds=1e9)
    with pytest.raises(Interrupted, match="SIGTERM after step 6 of 12"):
        trainer.run()
    expected = weights_digest(build(tmp_path / "whole").run().weights)
    assert weights_digest(build(tmp_path / "state").run().weights) == expected


def test_a_state_of_something_else_is_passed_over(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError):
        build(tmp_path, stopped_at(5)).run()
    other = build(tmp_path)
    other.checkpoint.digest = "other"
    other.run()
    assert other.rows[0]["step"] == 3
    assert len(other.rows) == 4


@pytest.mark.parametrize("names", [["state.pt"], ["state.pt", "previous.pt"]])
def test_damaged_states_are_passed_over(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ConnectionResetError):
        build(tmp_path, stopped_at(5)).run()
    for name in names:
        file = tmp_path / name
        file.write_bytes(file.read_bytes()[:1000])
    whole = build(tmp_path / "whole")
    expected = weights_digest(whole.run().weights)
    resumed = build(tmp_path)
    assert weights_digest(resumed.run().weights) == expected
    assert _without_cost(resumed.rows) == _without_cost(whole.rows)


def test_log_has_terms_norms_and_validation(tmp_path: Path) -> None:
    trainer = build(tmp_path)
    best = trainer.run()
    first, second = trainer.rows[:2]
    parts = first["segmentation"] + first["memory"] + first["critic"]
    assert first["loss"] == pytest.approx(parts, rel=1e-5)
    assert {"gradient_norm_segmentation", "gradient_norm_memory"} <= first.keys()
    assert first["gradient_norm_segmentation"] > 0
    assert "gradient_norm_memory" not in second
    assert "validation_dice" in second
    assert best.epoch in (2, 4)
    assert best.dice == max(row["validation_dice"] for row in trainer.rows[1::2])


def test_gradients_are_measured_again_after_each_validation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build(tmp_path)  # validates every second epoch of four
    with caplog.at_level("INFO", logger="kdpipe.engine.loop"):
        trainer.run()
    shown = [message for message in caplog.messages if message.startswith("step ")]
    assert [message.partition(":")[0] for message in shown] == ["step 0", "step 6"]
    first = trainer.rows[0]
    times = first["gradient_norm_memory"] / first["gradient_norm_segmentation"]
    assert f"(gradient {first['gradient_norm_memory']:.3g}, {times:.2g} times)" in shown[0]
    measured = ["gradient_norm_memory" in row for row in trainer.rows]
    assert measured == [True, False, True, False]


def test_the_past_self_is_the_student_as_the_epoch_before_left_it(tmp_path: Path) -> None:
    trainer = build(tmp_path, kind=SelfTaught, validate_every=1)
    after_epoch: list[str] = []

    def validate(network: nn.Module) -> float:
        after_epoch.append(weights_digest(network.state_dict()))
        return 0.5

    trainer.validate = validate
    trainer.run()
    assert trainer.teacher is not None
    past = trainer.teacher.network
    assert weights_digest(past.state_dict()) == after_epoch[-2]
    assert len(set(after_epoch)) == 4
    assert not past.training
    assert not any(parameter.requires_grad for parameter in past.parameters())


def test_a_method_is_pre_fitted_once_and_not_after_going_on(tmp_path: Path) -> None:
    whole = build(tmp_path / "a", kind=SelfTaught)
    whole.run()
    assert vars(whole.method)["prefitted"] == 1
    with pytest.raises(ConnectionResetError):
        build(tmp_path / "b", stopped_at(4), kind=SelfTaught).run()
    resumed = build(tmp_path / "b", kind=SelfTaught)
    resumed.run()
    assert vars(resumed.method)["prefitted"] == 0
    assert torch.equal(resumed.method.state_dict()["centre"], whole.method.state_dict()["centre"])


def test_a_paced_parameter_has_its_own_rate_and_no_decay_and_is_logged(tmp_path: Path) -> None:
    trainer = build(tmp_path, kind=SelfTaught, learning_rate=0.01, weight_decay=0.1)
    trainer.run()
    main, paced = trainer.optimizer.param_groups
    assert paced["lr"] == pytest.approx(10 * main["lr"])
    assert (main["weight_decay"], paced["weight_decay"]) == (0.1, 0.0)
    assert trainer.rows[-1]["theta"] == trainer.method.diagnostics()["theta"] != 0


def test_adapters_learn_and_critics_learn_apart(tmp_path: Path) -> None:
    trainer = build(tmp_path)
    method = trainer.method
    assert isinstance(method, Adversarial)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    trainer.run()
    after = method.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    critics = {id(parameter) for parameter in method.critic_parameters()}
    optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert critics.isdisjoint(optimised)
    assert {id(parameter) for parameter in method.adapter.parameters()} <= optimised


def test_large_gradients_of_an_adapter_do_not_slow_the_student(tmp_path: Path) -> None:
    trainer = build(tmp_path)
    student, adapter = trainer.student.network, vars(trainer.method)["_modules"]["adapter"]
    for parameter in (*student.parameters(), *adapter.parameters()):
        parameter.grad = torch.full_like(parameter, 1e-3)
    adapter.weight.grad.fill_(1e6)
    clip_gradients(1.0, student, trainer.method)
    for parameter in student.parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.full_like(parameter, 1e-3))
    assert adapter.weight.grad.norm() == pytest.approx(1.0)


def test_the_average_of_weights_follows_the_student_and_is_what_is_validated(
    tmp_path: Path,
) -> None:
    trainer = build(tmp_path, ema_decay=0.9, validate_every=1)
    start = trainer.student.network[0].weight.detach().clone()  # type: ignore[index]
    seen: list[nn.Module] = []

    def validate(network: nn.Module) -> float:
        seen.append(network)
        return 0.5

    trainer.validate = validate
    expected, first = start.clone(), True

    def batches(begin: int) -> Iterator[dict[str, Tensor]]:
        nonlocal expected, first
        for step, batch in enumerate(batches_from(begin, 12)):
            if step:  # the weights that the step before left
                weight = trainer.student.network[0].weight.detach()  # type: ignore[index]
                expected = weight.clone() if first else 0.9 * expected + 0.1 * weight
                first = False
            yield batch

    trainer.batches = batches
    trainer.run()
    weight = trainer.student.network[0].weight.detach()  # type: ignore[index]
    expected = 0.9 * expected + 0.1 * weight
    assert trainer.ema is not None
    assert all(network is trainer.ema.module for network in seen)
    torch.testing.assert_close(trainer.ema.module[0].weight, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(trainer.ema.module[0].weight, weight, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    def batches(start: int) -> Iterator[dict[str, Tensor]]:
        for batch in batches_from(start, 12):
            yield {**batch, "image": batch["image"] * float("inf")}

    with pytest.raises(TrainingDiverged, match=r"not finite at step 0 \(segmentation nan"):
        build(tmp_path / "state", batches).run()


def diverges_at(step: int) -> Callable[[int], Iterator[dict[str, Tensor]]]:
    def batches(start: int) -> Iterator[dict[str, Tensor]]:
        for number, batch in enumerate(batches_from(start, 12), start):
            yield {**batch, "image": batch["image"] * (float("nan") if number == step else 1)}

    return batches


def test_the_batch_that_a_training_diverged_on_is_kept_to_look_at(tmp_path: Path) -> None:
    file = tmp_path / "cell" / "diverged.pt"
    for step in (7, 5):  # the second replaces the first
        with pytest.raises(TrainingDiverged, match=rf"at step {step} .*kept in {file}"):
            build(tmp_path / "cell" / "state", diverges_at(step), every_seconds=1e9).run()
    kept = torch.load(file, weights_only=True)
    assert kept["step"] == 5
    assert kept["terms"].keys() == {"segmentation", "memory", "critic"}
    assert not torch.isfinite(torch.tensor(kept["terms"]["segmentation"]))
    expected = next(batches_from(5, 6))
    assert torch.equal(kept["batch"]["label"], expected["label"])
    assert kept["batch"]["image"].isnan().all()
    assert [path.name for path in file.parent.iterdir()] == ["diverged.pt"]


def test_a_batch_that_cannot_be_kept_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "diverged.pt" / "folder").mkdir(parents=True)
    with pytest.raises(TrainingDiverged, match=r"not finite at step 2 .* could not be kept"):
        build(tmp_path / "state", diverges_at(2)).run()


def test_a_full_disk_stops_no_training_and_changes_no_bit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = weights_digest(build(tmp_path / "whole").run().weights)
    trainer = build(tmp_path / "full")
    real = torch.save

    def no_space(content: Any, file: Any) -> None:
        if 4 <= content["step"] < 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(content, file)

    monkeypatch.setattr(torch, "save", no_space)
    assert weights_digest(trainer.run().weights) == expected
    assert "the state after step 4 is not saved: No space left on device" in caplog.text
    assert trainer.checkpoint.step == 12


def test_a_stop_on_a_full_disk_says_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.save

    def no_space(content: Any, file: Any) -> None:
        if content["step"] == 5:
            signal.raise_signal(signal.SIGTERM)
        if content["step"] >= 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(content, file)

    monkeypatch.setattr(torch, "save", no_space)
    with pytest.raises(Interrupted, match="after step 6 of 12; the state after step 4 is in"):
        build(tmp_path / "state").run()
    monkeypatch.undo()
    expected = weights_digest(build(tmp_path / "whole").run().weights)
    assert weights_digest(build(tmp_path / "state").run().weights) == expected


@pytest.mark.parametrize(
    ("schedule", "start", "middle"),
    [("poly", 1.0, 0.5**0.9), ("cosine", 1.0, 0.5), ("constant", 1.0, 1.0)],
)
def test_schedules(schedule: str, start: float, middle: float) -> None:
    settings = Training.model_validate({"learning_rate": 1.0, "schedule": schedule})
    assert learning_rate(settings, 0.0) == pytest.approx(start)
    assert learning_rate(settings, 0.5) == pytest.approx(middle)
