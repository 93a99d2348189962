"""What two networks could give to a method: contexts, outputs and targets without a network."""

from __future__ import annotations

import torch
from torch import Tensor

from kdpipe import discover
from kdpipe.methods.base import Context, Distiller, Outputs, Progress, TapSpec

PROGRESS = Progress(epoch=3, epochs=10, step=30, steps=100)
#: by then every term that comes in late is there
LATE = Progress(epoch=9, epochs=10, step=95, steps=100)
CLASSES = 4
IMAGE = {2: (16, 12), 3: (8, 12, 8)}

#: tap -> channels, stride; logits come by themselves
STUDENT = {
    "enc1": (6, 2),
    "enc2": (8, 4),
    "bottleneck": (10, 4),
    "dec1": (7, 2),
    "pre_act": (7, 2),
    "penult": (13, 2),
}
TEACHER = {
    "enc1": (8, 1),
    "enc2": (12, 2),
    "enc3": (16, 4),
    "bottleneck": (16, 4),
    "dec1": (16, 4),
    "dec2": (12, 2),
    "dec3": (8, 1),
    "pre_act": (8, 1),
    "penult": (8, 1),
    "corrected": (8, 1),
    "correction": (8, 1),
}


def context(
    dims: int,
    targets: str = "classes",
    classes: int = CLASSES,
    student: dict[str, tuple[int, int]] = STUDENT,
    teacher: dict[str, tuple[int, int]] = TEACHER,
) -> Context:
    """A context with all logical taps, of two networks of different width and depth."""

    def specs(taps: dict[str, tuple[int, int]]) -> dict[str, TapSpec]:
        found = {name: TapSpec(c, (float(stride),) * dims) for name, (c, stride) in taps.items()}
        logits = TapSpec(classes, (1.0,) * dims, is_logits=True)
        last = {"dec2": logits} if taps is STUDENT else {}  # its output, as in a U-Net
        return found | last | {"logits": logits}

    return Context(classes, dims, specs(student), specs(teacher), targets)  # type: ignore[arg-type]


def outputs(
    taps: tuple[str, ...], specs: dict[str, TapSpec], dims: int, seed: int, batch: int = 2
) -> Outputs:
    """Random leaf tensors for the logits and for the named taps."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(spec: TapSpec) -> Tensor:
        size = [round(s / step) for s, step in zip(IMAGE[dims], spec.stride, strict=True)]
        drawn = torch.randn(batch, spec.channels, *size, generator=generator)
        return drawn.requires_grad_()

    logits = tensor(specs["logits"])
    features = {name: logits if specs[name].is_logits else tensor(specs[name]) for name in taps}
    return Outputs(logits, features)


def target(dims: int, targets: str = "classes", classes: int = CLASSES, batch: int = 2) -> Tensor:
    """Blocks of classes, or nested regions."""
    generator = torch.Generator().manual_seed(5)
    size = IMAGE[dims]
    if targets == "regions":
        noise = torch.rand(batch, 1, *(side // 4 for side in size), generator=generator)
        coarse = torch.nn.functional.interpolate(noise, size=size)
        levels = torch.linspace(0.2, 0.7, classes).view(1, -1, *[1] * dims)
        return (coarse > levels).long()
    drawn = torch.randint(0, classes, (batch, 1, *(s // 4 for s in size)), generator=generator)
    return torch.nn.functional.interpolate(drawn.float(), size=size).long().squeeze(1)


def build(name: str, where: Context, **params: object) -> Distiller:
    """A method of the catalogue with its default parameters but for `params`."""
    module = discover.load("methods", name)
    torch.manual_seed(0)
    method = module.Method(module.Params(**params), where)
    assert isinstance(method, Distiller)
    return method


def pair(method: Distiller, batch: int = 2) -> tuple[Outputs, Outputs | None]:
    """What student and teacher give for the taps that the method wants."""
    where = method.context
    dims = where.spatial_dims
    student = outputs(method.student_taps(), dict(where.student), dims, 1, batch)
    if not (method.needs_teacher or method.past_self):
        return student, None
    return student, outputs(method.teacher_taps(), dict(where.teacher), dims, 2, batch)


def total(terms: dict[str, Tensor]) -> Tensor:
    """The sum of the terms."""
    return torch.stack(list(terms.values())).sum()
