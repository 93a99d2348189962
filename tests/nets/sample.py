"""What a network is tested by: a table of facts, one `Sample` a network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Stages = dict[str, tuple[int, int | tuple[int, ...]]]


@dataclass(frozen=True)
class Sample:
    """How a network is tested.

    Attributes:
        patch: a patch that fits the default network (sides differ), in its own dimensions.
        stages: stage -> (channels, stride), with default parameters, 14 classes, at `patch`.
        small: parameters of a version that runs in a fraction of a second.
        small_patch: a patch that fits it.
        published: (image channels, classes, patch, parameters, GMACs; None if not published),
            with default parameters; `rel` of the GMACs in tests: 1 %.
        copies: stages that are recorded as copies, since the network overwrites them.
        flat: stages that differ in 2D, of a network for both.
        unused: prefixes of parameters that take no part in the logits.
        needs: a package of an optional extra; without it the network's tests are skipped.
    """

    patch: tuple[int, ...]
    stages: Stages
    small: dict[str, Any]
    small_patch: tuple[int, ...]
    published: tuple[tuple[int, int, tuple[int, ...], int, float | None], ...] = ()
    copies: frozenset[str] = field(default_factory=frozenset)
    flat: Stages = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    needs: str = ""
