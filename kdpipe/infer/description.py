"""All that a network needs beside its weights, so that a raw scan is all that it is given.

``model.pt`` holds it, and each form that a network is exported to carries it as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from kdpipe.data.targets import Targets
from kdpipe.errors import DataError
from kdpipe.presets import Preparation

FORMAT = 1
KEY = "kdpipe"
"""Under which exported files carry their description."""


@dataclass(frozen=True)
class Description:
    """What a network expects and what its labels mean.

    Attributes:
        network: name, parameters, `in_channels` and `out_channels` as in a cell's ``run.json``.
        patch: sliding-window size in voxels of the prepared grid; two sides: slices.
        targets: `n_labels` and `regions`, see `kdpipe.data.targets.Targets`.
        channels: names of the image channels, in their order.
        preset: how images are prepared, `kdpipe.presets.Preparation` as plain values.
        labels: label id -> name, background included.
        overlap: of neighbouring windows, a share in [0, 1).
        provenance: cell, method, digests and versions, for people; nothing depends on it.
    """

    network: Mapping[str, Any]
    patch: Sequence[int]
    targets: Mapping[str, Any]
    channels: Sequence[str]
    preset: Mapping[str, Any]
    labels: Mapping[int, str]
    overlap: float
    provenance: Mapping[str, Any]

    @classmethod
    def of_run(
        cls,
        run: Mapping[str, Any],
        preparation: Mapping[str, Any],
        labels: Mapping[int, str] | None = None,
        overlap: float = 0.5,
        provenance: Mapping[str, Any] | None = None,
    ) -> Description:
        """Return the description of a trained network, from what its ``model.pt`` holds.

        Args:
            run: of the cell.
            preparation: ``run.json`` of the images that it was trained on.
            labels: names of the label ids; without them those of the preparation, which are
                numbers.
            overlap: of windows.
            provenance: beside the cell's keys and its method.
        """
        found = labels or preparation["labels"]["raw"]
        return cls(
            network=run["network"],
            patch=tuple(run["patch"]),
            targets=run["targets"],
            channels=tuple(preparation["channels"]),
            preset=preparation["preset"],
            labels={int(index): str(name) for index, name in found.items()},
            overlap=overlap,
            provenance={"cell": run.get("cell", {}), "method": run.get("method", {})}
            | dict(provenance or {}),
        )

    @classmethod
    def from_json(cls, text: str, source: object) -> Description:
        """Return the description that `to_json` gave.

        Raises:
            DataError: it is damaged, or of another format; names `source`.
        """
        try:
            content = json.loads(text)
            if content.pop("format") != FORMAT:
                raise ValueError("of another format")
            content["labels"] = {int(index): name for index, name in content["labels"].items()}
            description = cls(**content)
            description._check()
        except (ValueError, LookupError, TypeError, AttributeError, ValidationError) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(
                f"{source}: its description is not usable ({reason}); export the network again"
            ) from None
        return description

    def to_json(self) -> str:
        """Return it as one line of JSON, the same for equal descriptions."""
        return json.dumps({"format": FORMAT} | asdict(self), sort_keys=True)

    def _check(self) -> None:
        """Raise ValueError, or what pydantic raises, for a value that cannot be."""
        _ = self.preparation
        count = self.decoded.n_labels
        if sorted(self.labels) != list(range(count)):
            raise ValueError(f"labels {sorted(self.labels)} of {count}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap {self.overlap}")

    @property
    def preparation(self) -> Preparation:
        """How a scan is prepared."""
        return Preparation.model_validate(self.preset)

    @property
    def decoded(self) -> Targets:
        """What the logits' channels stand for."""
        return Targets.of({"targets": self.targets})

    @property
    def window(self) -> tuple[int, ...]:
        """Shape ``(1, C, *patch)`` of one window."""
        return (1, len(self.channels), *self.patch)
