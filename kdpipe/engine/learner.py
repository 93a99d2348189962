"""A network in a training: its taps, its layout in memory, and what of it the terms see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdpipe.engine import parallel
from kdpipe.engine.device import channels_innermost, for_terms, lay_out
from kdpipe.engine.prelu import speed_up_prelu
from kdpipe.engine.taps import TapRecorder
from kdpipe.methods.base import Outputs
from kdpipe.settings import Training


@dataclass
class Learner:
    """A network with the taps that a method wants recorded; it gives those of the whole batch.

    `channels_last` says how the network is laid out; `compiled` computes the same faster.
    """

    network: nn.Module
    recorder: TapRecorder
    channels_last: bool = False
    compiled: Callable[[Tensor], Tensor] | None = None

    def speed_up(self, settings: Training) -> None:
        """Do with the network what `fast`, `channels_last` and `compile` ask for.

        Validation runs the network as it is: its windows would be compiled once more.
        """
        self.channels_last = settings.channels_last
        if settings.fast and not settings.compile:  # the compiler has a fast one of its own
            speed_up_prelu(self.network)
        if settings.channels_last:
            lay_out(self.network)
        if settings.compile:
            self.compiled = torch.compile(self.network)

    def __call__(self, image: Tensor) -> Outputs:
        """Return logits and recorded features for images ``(B, C, *S)``, float32 or wider."""
        image = channels_innermost(image) if self.channels_last else image
        logits = (self.network if self.compiled is None else self.compiled)(image)
        outputs = Outputs(logits, self.recorder.take()).map(parallel.gather)
        return outputs.map(lambda tensor: for_terms(tensor, self.channels_last))
