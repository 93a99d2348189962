"""MONAI's random affine of an image and its label map, with one pass over both.

The draws, the grid and the bits are MONAI's. What it does key by key in double precision, to make
a grid ready and to sample at it, is one compiled loop here, where numba can be imported and
`KDPIPE_JIT` is not `0`.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from monai.transforms import RandAffined
from monai.transforms.utils import create_grid

from kdpipe.jit import compiled


class RandomAffine(RandAffined):
    """`RandAffined` of the keys `image` (C, X, Y, Z) float32 and `label` (1, X, Y, Z).

    The image is interpolated linearly, the label is that of the nearest voxel and keeps its type.
    Beyond the edge the nearest voxel counts.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            ["image", "label"], mode=["bilinear", "nearest"], padding_mode="border", **settings
        )

    def __call__(self, data: Any, lazy: bool | None = None) -> Any:
        """Change both or none; other numbers of dimensions are left to MONAI."""
        loop = kernels()
        image, label = data["image"], data["label"]
        if loop is None or image.ndim != 4:
            return super().__call__(data, lazy)
        self.randomize(None)
        self.rand_affine.randomize()
        if not self._do_transform:
            return data
        size = image.shape[1:]
        grid = self.rand_affine.rand_affine_grid(size, grid=_identity(tuple(size)), lazy=False)
        warped = torch.empty_like(image), torch.empty_like(label)
        loop.sample(
            image.numpy(), label[0].numpy(), grid.numpy(), warped[0].numpy(), warped[1][0].numpy()
        )
        return {**data, "image": warped[0], "label": warped[1]}


@lru_cache(maxsize=1)
def _identity(size: tuple[int, ...]) -> torch.Tensor:
    """Offsets of all voxels from the centre (4, X, Y, Z) float32; it is only read."""
    return torch.as_tensor(create_grid(size, backend="torch"), dtype=torch.float32)


def kernels() -> ModuleType | None:
    """Return the compiled loop; None where numba is not there or switched off."""
    return compiled(_loops)


def _loops() -> ModuleType:
    from kdpipe.data.crops import warp_jit

    return warp_jit
