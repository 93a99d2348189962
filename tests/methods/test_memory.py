"""No method allocates a tensor larger than 256 MB for four 96³ patches of 14 classes.

Measured at half the side, where what grows with the voxels is an eighth: 32 MB. A matrix over all
pairs of voxels would take gigabytes even there.
"""

from __future__ import annotations

import pytest
import torch
from allocations import LargestTensor

from kdpipe import discover
from kdpipe.engine.taps import probe
from kdpipe.methods.base import Context, Outputs, Progress, TapSpec
from kdpipe.nets.base import build_network, network_stages

METHODS = [name for name in discover.names("methods") if name not in {"none", "sum"}]
SIDE, BATCH, CLASSES = 48, 4, 14
BOUND = 256 * 2**20 // 8


@pytest.fixture(scope="module")
def taps() -> dict[str, dict[str, TapSpec]]:
    shape = (1, 1, SIDE, SIDE, SIDE)
    found = {}
    for side, name in (("student", "unet_tiny"), ("teacher", "segresnet")):
        found[side] = probe(build_network(name, {}, 1, CLASSES), network_stages(name, {}), shape)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_no_tensor_is_larger_than_256_mb(name: str, taps: dict[str, dict[str, TapSpec]]) -> None:
    module = discover.load("methods", name)
    method = module.Method(module.Params(), Context(CLASSES, 3, **taps))
    generator = torch.Generator().manual_seed(0)

    def outputs(wanted: tuple[str, ...], specs: dict[str, TapSpec]) -> Outputs:
        features = {}
        for tap in (*wanted, "logits"):
            size = [round(SIDE / stride) for stride in specs[tap].stride]
            tensor = torch.randn(BATCH, specs[tap].channels, *size, generator=generator)
            features[tap] = tensor.requires_grad_()
        return Outputs(features["logits"], {tap: features[tap] for tap in wanted})

    student = outputs(method.student_taps(), taps["student"])
    teacher = outputs(method.teacher_taps(), taps["teacher"])
    coarse = torch.randint(0, CLASSES, (BATCH, 1, 6, 6, 6), generator=generator)
    target = torch.nn.functional.interpolate(coarse.float(), size=(SIDE,) * 3).long().squeeze(1)
    with LargestTensor() as largest:
        taught = teacher if method.needs_teacher or method.past_self else None
        terms = method(student, taught, target, Progress(3, 10, 30, 100))
        torch.stack(list(terms.values())).sum().backward()
    assert largest.bytes > 0
    assert largest.bytes <= BOUND, largest.operation
