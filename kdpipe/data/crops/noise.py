"""MONAI's random Gaussian noise with its draws and its bits, in one compiled pass.

numpy makes its legacy normal draws one by one; here only the uniform ones are its own. Where numba
is missing, `KDPIPE_JIT` is `0`, or a trial gives other bits than numpy (another mathematical
library, fused instructions), it is MONAI's way.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from monai.transforms import RandGaussianNoised

from kdpipe.jit import compiled

_DRAWS = 1 << 15  # uniform draws at a time, even


class RandomNoise(RandGaussianNoised):
    """`RandGaussianNoised` of the key `image` (C, *S) float32.

    The random state must be set anew before each call: it is left elsewhere than by MONAI.
    """

    def __init__(self, prob: float, std: float) -> None:
        super().__init__(["image"], prob, std=std)

    def __call__(self, data: Any) -> Any:
        """Return the data with noise on the image, or as they are."""
        loop = kernels()
        if loop is None:
            return super().__call__(data)
        self.randomize(None)
        if not self._do_transform:
            return data
        noise = self.rand_gaussian_noise
        noise.R.rand()  # MONAI asks twice whether to add noise; the second time it is certain
        sd = noise.R.uniform(0, noise.std)
        image = data["image"].contiguous()
        return {**data, "image": torch.from_numpy(_noisy(loop, image.numpy(), noise.R, sd))}


def _noisy(loop: ModuleType, image: np.ndarray, state: Any, sd: float) -> np.ndarray:
    out, done = np.empty_like(image), 0
    while done < image.size:
        uniform = state.random_sample(_DRAWS)
        done = loop.add_normal(image.ravel(), uniform, sd, out.reshape(-1), done)
    return out


def kernels() -> ModuleType | None:
    """Return the compiled loop; None where it is not to be used."""
    loop = compiled(_loop)
    return loop if loop and _is_equal(loop) else None


def _loop() -> ModuleType:
    from kdpipe.data.crops import noise_jit

    return noise_jit


@cache
def _is_equal(loop: ModuleType) -> bool:
    """Whether this numpy draws as the loop does."""
    image = np.zeros(1 << 16, np.float32)
    mine = _noisy(loop, image, np.random.RandomState(0), 0.05)
    theirs = np.random.RandomState(0).normal(0, 0.05, image.size).astype(np.float32)
    return np.array_equal(mine, theirs)
