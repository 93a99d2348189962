"""What every method of the catalogue must keep, whichever is added."""

from __future__ import annotations

import copy

import pytest
import torch
from fakes import LATE, PROGRESS, TEACHER, build, context, pair, target, total
from torch import Tensor

from kdpipe import discover
from kdpipe.errors import ConfigError
from kdpipe.methods.base import Distiller, Outputs, Progress

METHODS = [name for name in discover.names("methods") if name not in {"none", "sum"}]
all_methods = pytest.mark.parametrize("name", METHODS)
both_dims = pytest.mark.parametrize("dims", [2, 3])
both_targets = pytest.mark.parametrize("targets", ["classes", "regions"])

ORDERED = {name for name in METHODS if discover.attribute("methods", name, "order_matters", False)}


def leaves(outputs: Outputs | None) -> list[Tensor]:
    return [outputs.logits, *outputs.features.values()] if outputs else []


def assert_finite(terms: dict[str, Tensor], student: Outputs) -> None:
    """Terms and their gradients on the student are finite, and none of the latter explodes."""
    assert all(torch.isfinite(term) for term in terms.values())
    total(terms).backward()
    for tensor in leaves(student):
        assert tensor.grad is None or tensor.grad.abs().max() < 1e7


def prepared(name: str, dims: int, targets: str = "classes") -> Distiller:
    """The method, pre-fitted where it wants that."""
    method = build(name, context(dims, targets))
    if method.prefit_steps():
        method.prefit(pair(method)[1] for _ in range(2))
    return method


@pytest.mark.parametrize("progress", [PROGRESS, LATE], ids=["early", "late"])
@both_targets
@both_dims
@all_methods
def test_gradient_reaches_student_and_adapters_but_never_the_teacher(
    name: str, dims: int, targets: str, progress: Progress
) -> None:
    method = prepared(name, dims, targets)
    student, teacher = pair(method)
    before = {key: id(parameter) for key, parameter in method.named_parameters()}
    total(method(student, teacher, target(dims, targets), progress)).backward()
    gradients = [tensor.grad for tensor in leaves(student) if tensor.grad is not None]
    assert sum(gradient.abs().sum() for gradient in gradients) > 0
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert all(tensor.grad is None for tensor in leaves(teacher))
    critics = {id(parameter) for parameter in method.critic_parameters()}
    for key, parameter in method.named_parameters():
        assert id(parameter) == before[key]
        if parameter.requires_grad and id(parameter) not in critics:
            assert parameter.grad is not None, f"{key} is trained but gets no gradient"


@both_dims
@all_methods
def test_parameters_stay_the_same_objects_over_steps(name: str, dims: int) -> None:
    method = prepared(name, dims)
    before = {key: id(parameter) for key, parameter in method.named_parameters()}
    for _ in range(3):
        student, teacher = pair(method)
        method(student, teacher, target(dims), PROGRESS)
    assert {key: id(parameter) for key, parameter in method.named_parameters()} == before


@both_dims
@all_methods
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_with_extreme_half_precision_outputs_under_autocast(
    name: str, dims: int, dtype: torch.dtype
) -> None:
    method = prepared(name, dims)
    student, teacher = pair(method)
    leaf = [tensor.detach() for tensor in leaves(student)]
    halves = student.map(lambda tensor: (3000.0 * tensor).to(dtype))
    taught = teacher.map(lambda tensor: (3000.0 * tensor).to(dtype)) if teacher else None
    with torch.autocast("cpu", dtype=dtype):
        value = total(method(halves, taught, target(dims), LATE))
    assert leaf and value.dtype == torch.float32
    assert torch.isfinite(value)
    value.backward()
    for tensor in leaves(student):
        assert tensor.grad is None or torch.isfinite(tensor.grad).all()


@both_dims
@all_methods
def test_finite_where_the_student_sees_only_background(name: str, dims: int) -> None:
    method = prepared(name, dims)
    student, teacher = pair(method)
    with torch.no_grad():
        student.logits.zero_()
        student.logits[:, 0] = 30.0
        for feature in student.features.values():
            if feature is not student.logits:
                feature.zero_()
    assert_finite(method(student, teacher, target(dims), LATE), student)


@both_dims
@all_methods
@pytest.mark.parametrize("present", [(0,), (0, 2)])
def test_finite_where_classes_are_absent(name: str, dims: int, present: tuple[int, ...]) -> None:
    method = prepared(name, dims)
    student, teacher = pair(method)
    labels = target(dims)
    labels = torch.where(torch.isin(labels, torch.tensor(present)), labels, 0)
    assert_finite(method(student, teacher, labels, LATE), student)


@both_dims
@all_methods
def test_a_batch_of_one(name: str, dims: int) -> None:
    method = prepared(name, dims)
    student, teacher = pair(method, batch=1)
    assert_finite(method(student, teacher, target(dims, batch=1), LATE), student)


@both_dims
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ORDERED])
def test_order_of_the_samples_does_not_matter(name: str, dims: int) -> None:
    method = prepared(name, dims)
    again = copy.deepcopy(method)
    student, teacher = pair(method)
    value = total(method(student, teacher, target(dims), PROGRESS))
    flipped = teacher.map(lambda tensor: tensor.flip(0)) if teacher else None
    labels = target(dims).flip(0)
    swapped = total(again(student.map(lambda tensor: tensor.flip(0)), flipped, labels, PROGRESS))
    torch.testing.assert_close(value, swapped, rtol=1e-4, atol=1e-6)


@both_targets
@both_dims
@all_methods
def test_at_its_floor_when_student_equals_teacher(name: str, dims: int, targets: str) -> None:
    floor = discover.attribute("methods", name, "floor", 0.0)
    if floor is None:
        return  # the class says why there is none
    method = build(name, context(dims, targets, student=TEACHER))
    student, teacher = pair(method)
    assert teacher is not None
    both = set(method.student_taps()) | set(method.teacher_taps())
    known = student.features | teacher.features
    same = Outputs(teacher.logits, {tap: known[tap] for tap in both} | teacher.features)
    value = total(method(same, same, target(dims, targets), PROGRESS))
    assert value.item() == pytest.approx(floor, abs=2e-5)


@both_dims
@all_methods
def test_state_survives_saving_and_loading(name: str, dims: int) -> None:
    method = prepared(name, dims)
    student, teacher = pair(method)
    method(student, teacher, target(dims), PROGRESS)  # fills memory banks
    fresh = build(name, context(dims))
    fresh.load_state_dict(method.state_dict())
    torch.manual_seed(3)
    value = method(student, teacher, target(dims), PROGRESS)
    torch.manual_seed(3)
    again = fresh(student, teacher, target(dims), PROGRESS)
    assert value.keys() == again.keys()
    for key in value:
        torch.testing.assert_close(value[key], again[key])


@all_methods
def test_weights_of_zero_leave_all_terms_out(name: str) -> None:
    params = discover.check_params("methods", name, {})
    zeros = {key: 0.0 for key, value in params.items() if key.startswith("weight")}
    assert zeros, "a method has parameters called weight or weight_..."
    method = build(name, context(3), **zeros)
    student, teacher = pair(method)
    assert method(student, teacher, target(3), PROGRESS) == {}


@all_methods
def test_two_classes_work_or_are_refused_with_a_reason(name: str) -> None:
    if discover.attribute("methods", name, "least_classes", 2) > 2:
        with pytest.raises(ConfigError, match=name):
            build(name, context(3, classes=2))
        return
    method = build(name, context(3, classes=2))
    student, teacher = pair(method)
    labels = (target(3) > 1).long()
    terms = method(student, teacher, labels, PROGRESS)
    total(terms).backward()
    assert sum(tensor.grad.abs().sum() for tensor in leaves(student) if tensor.grad is not None) > 0


def test_none_adds_nothing() -> None:
    method = build("none", context(3))
    student, _ = pair(method)
    assert method(student, None, target(3), PROGRESS) == {}
    assert discover.attribute("methods", "none", "needs_teacher", True) is False
