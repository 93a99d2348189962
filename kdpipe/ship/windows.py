"""Windows of real cases, for forms that are calibrated and for the check of all forms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdpipe.data.crops.sampler import CropDataset, CropRecipe
from kdpipe.infer.description import Description
from kdpipe.settings import Augmentation

_UNCHANGED = Augmentation(flip_probability=0, affine_probability=0, intensity_probability=0)


class CaseWindow(NamedTuple):
    """A window ``(C, *patch)`` float32 and the case that it is of."""

    case: str
    image: np.ndarray


def draw_windows(
    store: Path, cases: Sequence[str], description: Description, count: int, most_cases: int
) -> list[CaseWindow]:
    """Return windows centred on voxels of random structures; the same for the same cases.

    Args:
        store: folder of prepared cases.
        cases: ids; of more than `most_cases` some that lie evenly in the sorted list are taken.
        description: of the network, for its patch and labels.
        count: of windows in all, as evenly divided among the cases as can be.
        most_cases: that windows are taken from.

    Raises:
        DataError: a case cannot be read.
    """
    chosen = sorted(cases)
    if len(chosen) > most_cases:
        chosen = [chosen[index * len(chosen) // most_cases] for index in range(most_cases)]
    recipe = CropRecipe(tuple(description.patch), 1.0, _UNCHANGED, seed=0)
    crops = {case: CropDataset(store, [case], description.decoded, recipe) for case in chosen}
    keys = [divmod(index, len(chosen)) for index in range(count)] if chosen else []
    return [
        CaseWindow(chosen[place], crops[chosen[place]][(0, turn)]["image"].numpy())
        for turn, place in keys
    ]
