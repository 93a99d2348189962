"""FitNet and AT term by term, and every method's view of the scale of a teacher's features."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from fakes import LATE, STUDENT, build, context, pair, target, total
from torch import Tensor

from kdpipe import discover
from kdpipe.methods.at import at_loss
from kdpipe.methods.base import Distiller, Outputs

TAUGHT = [
    name
    for name in discover.names("methods")
    if name not in {"none", "sum"} and discover.attribute("methods", name, "needs_teacher", True)
]


def scaled(outputs: Outputs, factor: float) -> Outputs:
    """The same outputs with larger features; logits are what they are."""
    return Outputs(
        outputs.logits,
        {tap: each if tap == "logits" else factor * each for tap, each in outputs.features.items()},
    )


def terms(method: Distiller, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
    """The terms with the same random draws and memories each time."""
    torch.manual_seed(1)
    return copy.deepcopy(method)(student, teacher, target(method.context.spatial_dims), LATE)


@pytest.mark.parametrize("name", TAUGHT)
def test_a_teacher_of_larger_features_is_the_same_teacher(name: str) -> None:
    method = build(name, context(2))
    student, teacher = pair(method)
    assert teacher is not None
    found = terms(method, student, scaled(teacher, 100.0))
    torch.testing.assert_close(found, terms(method, student, teacher), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["fitnet", "mgd", "dcd"])
def test_the_published_scale_is_the_teachers_own(name: str) -> None:
    method = build(name, context(2), scale="raw")
    student, teacher = pair(method)
    assert teacher is not None
    ratio = total(terms(method, student, scaled(teacher, 100.0))) / total(
        terms(method, student, scaled(teacher, 10.0))
    )
    assert ratio.item() == pytest.approx(100.0, rel=0.2)


# FitNet


@pytest.mark.parametrize("scale", ["unit", "raw"])
@pytest.mark.parametrize("dims", [2, 3])
def test_fitnet_is_its_weight_times_the_mean_squared_error_of_the_hint(
    dims: int, scale: str
) -> None:
    method = build("fitnet", context(dims), weight=3.0, scale=scale)
    student, teacher = pair(method)
    assert teacher is not None
    teacher = scaled(teacher, 50.0)
    pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
    hint = pool(teacher.features["penult"], 2)
    if scale == "unit":
        hint = torch.stack([sample / sample.square().mean().sqrt() for sample in hint])
    weight = method.project.weight.flatten(1)
    ours = torch.einsum("oc,bc...->bo...", weight, student.features["penult"])
    expected = 3.0 * (ours - hint).square().mean()
    found = method(student, teacher, target(dims), LATE)
    torch.testing.assert_close(found, {"hint": expected}, rtol=1e-4, atol=1e-5)


# AT


@pytest.mark.parametrize("dims", [2, 3])
def test_at_is_its_weight_times_the_sum_over_all_stages(dims: int) -> None:
    method = build("at", context(dims), weight=3.0)
    student, teacher = pair(method)
    assert teacher is not None
    stages = [
        ("enc1", "enc1"),
        ("enc2", "enc2"),
        ("bottleneck", "bottleneck"),
        ("dec1", "dec2"),  # not dec2 with dec3: the student's are its logits, the teacher's not
    ]
    each = [at_loss(student.features[ours], teacher.features[theirs]) for ours, theirs in stages]
    assert min(loss.item() for loss in each) > 0.1
    found = method(student, teacher, target(dims), LATE)
    torch.testing.assert_close(found, {"at": 3.0 * torch.stack(each).sum()})


def test_logits_are_compared_with_logits_or_not_at_all() -> None:
    unlike = context(3)
    assert unlike.student["dec2"].is_logits
    assert ("dec2", "dec3") not in unlike.stage_pairs()
    both = context(3, student=STUDENT, teacher=STUDENT)
    assert both.stage_pairs()[-1] == ("dec2", "dec2")
