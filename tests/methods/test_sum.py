"""A sum of methods is its parts: terms, taps, parameters, critics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import PROGRESS, build, context, pair, target, total

from kdpipe.composition import check_method
from kdpipe.errors import ConfigError
from kdpipe.methods.base import Distiller


def added(*parts: Any, dims: int = 3) -> Distiller:
    named = [part if isinstance(part, tuple) else (part, part, {}) for part in parts]
    given = [{"name": name, "label": label, "params": params} for name, label, params in named]
    return build("sum", context(dims), **check_method("sum", {"parts": given}))


@pytest.mark.parametrize("dims", [2, 3])
def test_its_terms_are_those_of_its_parts(dims: int) -> None:
    method = added("kd", "at", ("cwd", "sharp", {"tau": 1.0}), dims=dims)
    student, teacher = pair(method)
    terms = method(student, teacher, target(dims), PROGRESS)
    assert list(terms) == ["kd", "at", "sharp.cwd"]
    for name, params in (("kd", {}), ("at", {}), ("cwd", {"tau": 1.0})):
        alone = build(name, context(dims), **params)
        (expected,) = alone(student, teacher, target(dims), PROGRESS).values()
        found = terms[name if name in terms else "sharp.cwd"]
        torch.testing.assert_close(found, expected)


def test_adapters_of_all_parts_are_trained_and_saved() -> None:
    method = added("fitnet", ("fitnet", "deep", {"student_tap": "enc2", "teacher_tap": "enc2"}))
    assert method.student_taps() == ("penult", "enc2")
    student, teacher = pair(method)
    total(method(student, teacher, target(3), PROGRESS)).backward()
    assert {name for name, p in method.named_parameters() if p.grad is not None} == {
        "parts.0.project.weight",
        "parts.1.project.weight",
    }
    assert "parts.1.project.weight" in method.state_dict()


def test_it_learns_from_what_its_parts_learn_from() -> None:
    assert added("kd", "byot").needs_teacher
    assert not added("byot", "uskd").needs_teacher
    assert added("byot", "ps_kd").past_self


def test_an_adversary_of_one_part_is_stepped() -> None:
    method = added("kd", ("skd", "skd", {"weight_holistic": 0.1}))
    critics = list(method.critic_parameters())
    assert critics
    loss = method.critic_loss(*pair(method))
    assert loss is not None
    loss.backward()
    assert any(critic.grad is not None for critic in critics)
    assert added("kd", "cwd").critic_loss(*pair(added("kd", "cwd"))) is None


def test_two_parts_that_are_pre_fitted_are_refused() -> None:
    with pytest.raises(ConfigError, match="ft and other both want to be pre-fitted"):
        added("ft", ("ft", "other", {}))
