"""Each loss equals the official module's value and gradient on the same inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from golden_cases import CALLS
from loading import load_file


@pytest.mark.parametrize("case_id", sorted(CALLS))
def test_value_and_gradient_equal_the_official_module(case_id: str, golden: Path) -> None:
    content = json.loads((golden / "losses.json").read_text())
    case = next(case for case in content["cases"] if case["id"] == case_id)
    tolerance = content["tolerance"]
    tensors = {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(golden / "inputs.py").make_inputs(case).items()
    }
    for name in case["grad_of"]:
        tensors[name].requires_grad_(True)

    value = CALLS[case_id](tensors, case["config"])
    value.backward()

    assert value.item() == pytest.approx(case["value_f64"], rel=tolerance["value_f64_rel"])
    for name in case["grad_of"]:
        gradient = tensors[name].grad
        assert gradient is not None
        expected = case["grad_l2"][name]
        assert gradient.norm().item() == pytest.approx(expected, rel=tolerance["grad_l2_rel"])
        first = gradient.flatten()[0].item()
        assert first == pytest.approx(case["grad_first"][name], rel=1e-4, abs=1e-12)


def test_every_case_is_covered_but_the_two_of_buggy_branches(golden: Path) -> None:
    cases = {case["id"] for case in json.loads((golden / "losses.json").read_text())["cases"]}
    assert cases - set(CALLS) == {"skd.pixel_sigmoid", "cwd.sigmoid"}
    assert set(CALLS) <= cases


def test_float32_inputs_stay_within_the_looser_tolerance(golden: Path) -> None:
    content = json.loads((golden / "losses.json").read_text())
    for case in content["cases"]:
        if case["id"] in CALLS:
            tensors = load_file(golden / "inputs.py").make_inputs(case)
            value = CALLS[case["id"]](tensors, case["config"])
            assert value.dtype == torch.float32
            expected = case["value_f32"]
            assert value.item() == pytest.approx(
                expected, rel=content["tolerance"]["value_f32_rel"]
            )
