"""What every method of the catalogue must keep, whichever is added."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdpipe import discover
from kdpipe.methods.base import Context, Distiller, Outputs, Progress

PROGRESS = Progress(epoch=0, epochs=10, step=0, steps=100)
SHAPES = {3: (2, 4, 6, 8, 5), 2: (2, 4, 9, 7)}
#: methods whose loss vanishes when student and teacher agree
ZERO_AT_TEACHER = {"kd", "cwd"}


def build(name: str, dims: int) -> Distiller:
    module = discover.load("methods", name)
    method = module.Method(module.Params(), Context(num_classes=4, spatial_dims=dims))
    assert isinstance(method, Distiller)
    return method


def batch(dims: int, scale: float = 1.0) -> tuple[Outputs, Outputs, Tensor]:
    generator = torch.Generator().manual_seed(dims)
    shape = SHAPES[dims]
    student = torch.randn(shape, generator=generator) * scale
    teacher = torch.randn(shape, generator=generator) * scale
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
    return Outputs(student.requires_grad_()), Outputs(teacher.requires_grad_()), target


METHODS = discover.names("methods")
DISTILLING = [name for name in METHODS if name != "none"]
all_methods = pytest.mark.parametrize("name", DISTILLING)
both_dims = pytest.mark.parametrize("dims", [2, 3])


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


@both_dims
@all_methods
def test_student_gets_a_gradient_and_the_teacher_none(name: str, dims: int) -> None:
    student, teacher, target = batch(dims)
    total(build(name, dims)(student, teacher, target, PROGRESS)).backward()
    assert student.logits.grad is not None
    assert student.logits.grad.abs().sum() > 0
    assert teacher.logits.grad is None


@both_dims
@all_methods
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_with_extreme_half_precision_logits(
    name: str, dims: int, dtype: torch.dtype
) -> None:
    student, teacher, target = batch(dims, scale=3000.0)
    halves = Outputs(student.logits.to(dtype)), Outputs(teacher.logits.to(dtype))
    assert torch.isfinite(total(build(name, dims)(*halves, target, PROGRESS)))


@both_dims
@all_methods
def test_order_of_the_samples_does_not_matter(name: str, dims: int) -> None:
    student, teacher, target = batch(dims)
    value = total(build(name, dims)(student, teacher, target, PROGRESS))
    swapped = Outputs(student.logits.flip(0)), Outputs(teacher.logits.flip(0))
    again = total(build(name, dims)(*swapped, target.flip(0), PROGRESS))
    torch.testing.assert_close(value, again)


@both_dims
@pytest.mark.parametrize("name", sorted(ZERO_AT_TEACHER))
def test_zero_when_the_student_equals_the_teacher(name: str, dims: int) -> None:
    _, teacher, target = batch(dims)
    value = total(build(name, dims)(teacher, teacher, target, PROGRESS))
    assert value.item() == pytest.approx(0.0, abs=1e-6)


@all_methods
def test_weight_zero_leaves_the_term_out(name: str) -> None:
    student, teacher, target = batch(3)
    module = discover.load("methods", name)
    method = module.Method(module.Params(weight=0.0), Context(4, 3))
    assert method(student, teacher, target, PROGRESS) == {}


def test_none_adds_nothing() -> None:
    student, _, target = batch(3)
    assert build("none", 3)(student, None, target, PROGRESS) == {}
    assert discover.attribute("methods", "none", "needs_teacher", True) is False
