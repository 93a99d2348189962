"""What `fast` and its single settings change, and what they leave as it is."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path

import pytest
import torch
from blobs import make_job, make_run
from torch import nn

from kdpipe.engine.device import for_terms, lay_out, teacher_dtype
from kdpipe.engine.learner import Learner
from kdpipe.engine.prelu import speed_up_prelu
from kdpipe.engine.taps import TapRecorder
from kdpipe.engine.train import train
from kdpipe.infer.model import load_model
from kdpipe.settings import Training


@pytest.fixture(scope="module")
def teacher(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = make_job(store, tmp_path_factory.mktemp("teacher"), make_run())
    train(job)
    return Path(job.model)


def test_fast_is_spelt_out_and_a_single_setting_beside_it_wins() -> None:
    fast = Training.model_validate({"fast": True})
    assert (fast.precision, fast.channels_last) == ("bf16", True)
    again = Training.model_validate(json.loads(fast.model_dump_json()))
    assert again == fast
    own = Training.model_validate({"fast": True, "precision": "fp32"})
    assert (own.precision, own.channels_last) == ("fp32", True)
    plain = Training()
    assert (plain.precision, plain.teacher_precision) == ("auto", "same")
    assert not (plain.fast or plain.channels_last or plain.compile)


def test_the_teachers_precision_follows_the_students_unless_it_is_given() -> None:
    assert teacher_dtype("same", None) is None
    assert teacher_dtype("same", torch.bfloat16) is torch.bfloat16
    assert teacher_dtype("fp32", torch.bfloat16) is None
    assert teacher_dtype("bf16", None) is torch.bfloat16


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_terms_see_float32_in_the_usual_layout(kind: torch.dtype) -> None:
    tensor = torch.randn(2, 3, 4, 5, 6).to(kind).contiguous(memory_format=torch.channels_last_3d)
    found = for_terms(tensor, True)
    assert found.dtype == torch.float32 and found.is_contiguous()
    assert torch.equal(found, tensor.float())
    plain = torch.randn(2, 3, 4).transpose(1, 2)
    assert for_terms(plain, False) is plain


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_faster_prelu_equals_torchs(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    given = torch.randn(2, 4, 5, 6, 7).to(kind)
    given[0, 0, 0, 0, 0] = 0.0
    slope = torch.randn_like(given)
    theirs = nn.PReLU(init=0.3)
    ours = copy.deepcopy(theirs)
    speed_up_prelu(ours)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    results = []
    for layer in (ours, theirs):
        x = given.clone().requires_grad_()
        # torch wants the slope in the type of its input; the faster layer keeps it in float32
        y = layer(x) if layer is ours else nn.functional.prelu(x, layer.weight.to(kind))
        y.backward(slope)
        assert x.grad is not None and layer.weight.grad is not None
        results.append((y.detach(), x.grad, layer.weight.grad))
    tolerance = 1e-6 if kind is torch.float32 else 1e-2
    if kind is torch.float32:
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_a_slope_for_each_channel_stays_as_it_is() -> None:
    network = nn.Sequential(nn.PReLU(4), nn.PReLU())
    speed_up_prelu(network)
    assert type(network[0]) is nn.PReLU and type(network[1]) is not nn.PReLU
    assert type(copy.deepcopy(network)[1]) is type(network[1])


def test_layout_changes_no_weight_and_no_output_beyond_rounding() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Conv3d(4, 3, 1))
    image = torch.randn(1, 1, 8, 8, 8)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    expected = Learner(network, TapRecorder(network, {}, ()))(image)
    same = [id(parameter) for parameter in network.parameters()]
    learner = Learner(network.eval(), TapRecorder(network, {"enc1": "0"}, ("enc1",)))
    learner.speed_up(Training(channels_last=True))
    assert [id(parameter) for parameter in network.parameters()] == same
    network.load_state_dict(before)
    found = Learner(network.train(), learner.recorder, channels_last=True)(image)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert found.features["enc1"].is_contiguous()
    lay_out(nn.Linear(3, 3))  # nothing to lay out


def test_a_compiled_network_gives_the_same_taps_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the code generator, which takes half a minute: what is traced is what counts."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch.manual_seed(0)
    results = []
    layers = nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.PReLU(), nn.Conv3d(4, 3, 1)
    network, image = nn.Sequential(*layers), torch.randn(2, 1, 6, 6, 6)
    for compiled in (False, True):
        own = copy.deepcopy(network)
        learner = Learner(own, TapRecorder(own, {"enc1": "2"}, ("enc1",)))
        learner.speed_up(Training(compile=compiled))
        assert (learner.compiled is not None) is compiled
        outputs = learner(image)
        outputs = learner(image)  # once traced, a tap must still be the one of this batch
        loss = outputs.logits.square().mean() + outputs.features["enc1"].sin().mean()
        slopes = torch.autograd.grad(loss, list(own.parameters()))
        assert own.state_dict().keys() == network.state_dict().keys()
        results.append([outputs.logits, outputs.features["enc1"], *slopes])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "changes", [{"fast": True}, {"teacher_precision": "bf16"}, {"channels_last": True}]
)
def test_a_fast_training_learns_and_its_model_is_like_any_other(
    store: Path, tmp_path: Path, teacher: Path, changes: dict[str, object]
) -> None:
    models = []
    for name, settings in (("plain", {}), ("changed", changes)):
        job = make_job(store, tmp_path / name, make_run("kd", epochs=2, **settings), teacher)
        train(job)
        models.append(load_model(job.model).network)
    ours, plain = (network.state_dict() for network in models[::-1])
    assert ours.keys() == plain.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == plain[name].dtype and torch.isfinite(tensor).all()
        assert tensor.is_contiguous()
    assert any(not torch.equal(ours[name], plain[name]) for name in ours)


def test_a_fast_training_gives_the_same_bits_again(
    store: Path, tmp_path: Path, teacher: Path
) -> None:
    weights = []
    for name in ("first", "second"):
        job = make_job(store, tmp_path / name, make_run("kd", epochs=2, fast=True), teacher)
        train(job)
        weights.append(load_model(job.model).network.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
