"""One forward pass of a frozen teacher for several students that see the same batch."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from kdpipe.engine.learner import Learner
from kdpipe.engine.taps import count_changes
from kdpipe.methods.base import Outputs


class SharedTeacher:
    """A frozen teacher that looks at each batch once, for all members."""

    def __init__(self, learner: Learner):
        self.learner = learner
        self._image: Tensor | None = None
        self._outputs: Outputs | None = None
        self._changes: list[int | None] = []

    def __call__(self, image: Tensor) -> Outputs:
        """Return what it gives for `image`, computed anew only for another one.

        It is computed anew too if a method has written into the tensors, which are its own when
        it is alone.
        """
        if self._outputs is None or image is not self._image or self._counted() != self._changes:
            self._image, self._outputs = image, self.learner(image)
            self._changes = self._counted()
        return self._outputs

    def forget(self) -> None:
        """Free the memory of the last batch."""
        self._image = self._outputs = None

    def _counted(self) -> list[int | None]:
        assert self._outputs is not None
        tensors = (self._outputs.logits, *self._outputs.features.values())
        return [count_changes(tensor) for tensor in tensors]


class View(Learner):
    """What one member sees of a shared teacher: the taps that its method wants, in its order."""

    def __init__(self, shared: SharedTeacher, wanted: Iterable[str]):
        super().__init__(shared.learner.network, shared.learner.recorder)
        self.shared, self.wanted = shared, tuple(dict.fromkeys(wanted))
        self.recorder.add(self.wanted)

    def __call__(self, image: Tensor) -> Outputs:
        """Return logits and features for images ``(B, C, *S)``."""
        outputs = self.shared(image)
        return Outputs(outputs.logits, {name: outputs.features[name] for name in self.wanted})
