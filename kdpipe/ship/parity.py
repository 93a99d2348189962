"""Whether an exported network gives what ``model.pt`` gives, checked on real cases.

What is compared is torch in float32 on the CPU. A form in float32 must agree in the logits of
windows and in the labels of whole cases; of one in 8 bits it is reported what it loses.

Where a network decides between two values that rounding alone can swap, as ENet does when it takes
the place of a maximum, torch differs from torch in float64 by as much as from any other program.
The logits of such a window prove nothing and do not count; the labels of its case do.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdpipe.data.store import StoredCase
from kdpipe.errors import ConfigError, DataError
from kdpipe.infer.description import Description
from kdpipe.infer.window import Network, sliding_labels, sliding_slabs
from kdpipe.metrics.overlap import dice, mean_of_known
from kdpipe.ship.windows import CaseWindow, draw_windows

LOGITS = 1e-4
"""By which a logit may differ, at most, in float32."""
LABELS = 0.9999
"""Share of a case's voxels whose labels must be the same, in float32."""
CASES = 3
WINDOWS = 12
ROUGH = ("int8",)
"""Forms without limits."""
_BATCH = 2
_DRAWS = 4


@dataclass(frozen=True)
class Reference:
    """What torch gives.

    Attributes:
        network: on the CPU, in evaluation mode.
        description: of the network.
        store: folder of prepared cases.
        cases: ids of those that are compared as a whole.
        windows: of these cases.
        labels: case -> (X, Y, Z) uint8.
        dice: case -> mean over the structures of the case.
    """

    network: nn.Module
    description: Description
    store: Path
    cases: list[str]
    windows: list[CaseWindow]
    labels: dict[str, np.ndarray]
    dice: dict[str, float]

    @classmethod
    def of(
        cls, network: nn.Module, description: Description, store: Path, cases: Sequence[str]
    ) -> Reference:
        """Run the network of a ``model.pt`` on up to three of the cases.

        Raises:
            ConfigError: there is no case.
            DataError: a case cannot be read.
        """
        chosen = sorted(cases)[:CASES]
        if not chosen:
            raise ConfigError(
                "the split has no validation case to check the exported forms with; export with "
                "the split of a study that has some"
            )
        windows = draw_windows(store, chosen, description, WINDOWS, CASES)
        labels, scores = {}, {}
        for case in chosen:
            labels[case], scores[case] = _segmented(network, description, store, case, 4)
        return cls(network, description, store, chosen, windows, labels, scores)

    def compare(self, network: Network, window_batch: int, limited: bool = True) -> dict[str, Any]:
        """Return how another network differs.

        Args:
            network: that takes the same windows.
            window_batch: windows a forward pass.
            limited: it is to agree; else no window is looked at twice.

        Returns:
            JSON-serialisable: ``largest_difference`` of logits, ``same_labels``, a share, and
            ``dice``, each also by case in ``cases``; ``dice`` is a mean over cases, and
            ``dice_loss`` that of the reference minus it. ``unsteady_windows`` is how many windows
            do not count, since rounding alone changes their logits by more than the limit.
        """
        apart = self._apart(network)
        counts = [
            not (limited and far > LOGITS and self._is_unsteady(index))
            for index, far in enumerate(apart.tolist())
        ]
        steady = torch.where(torch.tensor(counts), apart, 0.0)
        cases = {}
        for case in self.cases:
            labels, score = _segmented(network, self.description, self.store, case, window_batch)
            mine = torch.tensor([window.case == case for window in self.windows])
            cases[case] = {
                "largest_difference": float(steady[mine].max()),
                "same_labels": float((labels == self.labels[case]).mean()),
                "dice": score,
            }
        mean = mean_of_known([facts["dice"] for facts in cases.values()])
        return {
            "largest_difference": float(steady.max()),
            "unsteady_windows": counts.count(False),
            "same_labels": min(facts["same_labels"] for facts in cases.values()),
            "dice": mean,
            "dice_loss": mean_of_known(list(self.dice.values())) - mean,
            "cases": cases,
        }

    @torch.inference_mode()
    def _apart(self, network: Network) -> Tensor:
        """Return the largest difference of logits in each window, (N,).

        The first window goes alone and others together, to try two batch sizes. Logits of many
        windows would need gigabytes, so torch's are computed anew each time.
        """
        images = torch.from_numpy(np.stack([window.image for window in self.windows]))
        found = []
        for part in (images[:1], *torch.split(images[1:], _BATCH)):
            expected = self.network(part)
            found.append((network(part).float() - expected).abs().flatten(1).amax(dim=1))
        return torch.cat(found)

    @torch.inference_mode()
    def _is_unsteady(self, index: int) -> bool:
        """Say whether float64, or a change of the last bit of the image, moves torch's logits."""
        image = torch.from_numpy(self.windows[index].image)[None]
        own = self.network(image)
        exact = copy.deepcopy(self.network).double()(image.double())
        others = [exact.float()]
        draw = torch.Generator().manual_seed(0)
        for _ in range(_DRAWS):
            signs = torch.randint(0, 2, image.shape, generator=draw) * 2 - 1
            others.append(self.network(image * (1 + signs * torch.finfo(torch.float32).eps)))
        return any(float((other - own).abs().max()) > LOGITS for other in others)


def check(form: str, facts: dict[str, Any]) -> None:
    """Raise DataError where what `Reference.compare` found is beyond the limits of the form."""
    for case, found in facts["cases"].items():
        where = f"form {form!r}, case {case!r}"
        apart, same = found["largest_difference"], found["same_labels"]
        if not np.isfinite(apart):
            raise DataError(f"{where}: logits are not finite; {_mend(form)}")
        if form in ROUGH:
            continue
        if apart > LOGITS:
            raise DataError(
                f"{where}: logits differ by up to {apart:.3g} from those of torch, at most "
                f"{LOGITS:g} is allowed; {_mend(form)}"
            )
        if same < LABELS:
            raise DataError(
                f"{where}: {same:.6f} of the labels are those of torch, at least {LABELS:g} must "
                f"be; {_mend(form)}"
            )


def _mend(form: str) -> str:
    return f"nothing was written; leave {form!r} out of the forms to export the others"


def _segmented(
    network: Network, description: Description, store: Path, case: str, window_batch: int
) -> tuple[np.ndarray, float]:
    """Return the labels (X, Y, Z) of a prepared case and their mean Dice."""
    stored = StoredCase(store / case)
    image, label = stored.whole()
    slabs = sliding_slabs(
        network,
        torch.from_numpy(image),
        description.patch,
        description.overlap,
        window_batch,
        stored.geometry["pad_value"],
    )
    targets = description.decoded
    labels = sliding_labels(slabs, image.shape[1:], targets)
    return labels, mean_of_known(list(dice(label, labels, targets.structures).values()))
