"""Record a network's features by logical name, with forward hooks and without rewriting it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdpipe.errors import ConfigError, did_you_mean
from kdpipe.methods.base import TapSpec
from kdpipe.nets.base import COPY, INPUT, dry_forward


class TapRecorder:
    """Keep the tensors that pass the wanted taps in each forward pass of `network`.

    Recorded tensors are the network's own, with their gradient; nothing is copied but a tap that
    its network marks ``:copy``. The output stays the same to the bit. A deep copy of the network
    (an average of weights) is not recorded. Hooks are set at once; `remove` or leaving a ``with``
    block takes them off.

    Args:
        network: the built network, on any device.
        stages: logical name -> place, as `kdpipe.nets.base.network_stages` gives it.
        wanted: logical names to record; None for all.

    Raises:
        ConfigError: a wanted name is no stage, or a stage's place is not in the network.
    """

    def __init__(
        self, network: nn.Module, stages: Mapping[str, str], wanted: Iterable[str] | None = None
    ):
        self.names: tuple[str, ...] = ()
        self._network, self._stages = network, stages
        self._recorded: dict[str, tuple[Tensor, int | None]] = {}
        self._handles: list[RemovableHandle] = []
        self.add(stages if wanted is None else wanted)

    def add(self, wanted: Iterable[str]) -> None:
        """Record these taps too.

        Raises:
            ConfigError: as above; no tap is added then.
        """
        new = [name for name in dict.fromkeys(wanted) if name not in self.names]
        found = {name: _find(self._network, self._stages, name) for name in new}
        self.names += tuple(new)
        for name, module in found.items():
            self._handles.append(self._attach(name, module, self._stages[name]))

    @property
    def features(self) -> dict[str, Tensor]:
        """Tap name -> feature ``(B, c, *s)`` of the last forward pass, in the wanted order.

        Raises:
            ConfigError: a tap was not passed, or its tensor was overwritten after it was recorded.
        """
        for name in self.names:
            if name not in self._recorded:
                raise ConfigError(
                    f"tap {name!r} was not passed in the last forward pass; correct the place that "
                    "the network's stages() gives for it"
                )
            tensor, version = self._recorded[name]
            if version != count_changes(tensor):
                raise ConfigError(
                    f"tap {name!r} was overwritten in place after it was recorded; append "
                    f"{COPY!r} to its place in the network's stages()"
                )
        return {name: self._recorded[name][0] for name in self.names}

    def take(self) -> dict[str, Tensor]:
        """Return `features` and forget them, so that they do not outlive the training step."""
        features = self.features
        self._recorded.clear()
        return features

    def remove(self) -> None:
        """Take the hooks off and forget what was recorded."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._recorded.clear()

    def __enter__(self) -> TapRecorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def _attach(self, name: str, owner: nn.Module, place: str) -> RemovableHandle:
        def record(module: nn.Module, value: Any) -> None:
            # deepcopy copies hooks but not what they close over: a copied network is not `owner`
            if module is not owner:
                return
            if not isinstance(value, Tensor):
                raise ConfigError(
                    f"tap {name!r} at {place!r} gives a {type(value).__name__}, not a tensor; "
                    "correct the network's stages()"
                )
            tensor = value.clone() if place.endswith(COPY) else value
            self._recorded[name] = (tensor, count_changes(tensor))

        if place.endswith(INPUT):
            return owner.register_forward_pre_hook(
                lambda module, given: record(module, _first_tensor(given))
            )
        return owner.register_forward_hook(lambda module, _, output: record(module, output))


def probe(
    network: nn.Module, stages: Mapping[str, str], input_shape: Sequence[int]
) -> dict[str, TapSpec]:
    """Measure channels and stride of every stage with one forward pass on shapes alone.

    Weights, buffers, random state and modes are left as they are, and nothing is computed; see
    `kdpipe.nets.base.dry_forward`.

    Args:
        network: the built network, on any device.
        stages: logical name -> place.
        input_shape: ``(B, C, *S)``, of a patch that fits the network.

    Raises:
        ConfigError: a stage is not in the network, or its tensor is not ``(B, c, *s)``.
    """
    with TapRecorder(network, stages) as recorder:
        dry_forward(network, input_shape)
        features = recorder.take()
    specs = {}
    for name, feature in features.items():
        if feature.dim() != len(input_shape):
            raise ConfigError(
                f"tap {name!r} at {stages[name]!r} has shape {tuple(feature.shape)}, which is no "
                f"feature map of an image {tuple(input_shape)}; correct the network's stages()"
            )
        sides = zip(input_shape[2:], feature.shape[2:], strict=True)
        stride = tuple(image / side for image, side in sides)
        specs[name] = TapSpec(feature.shape[1], stride, feature is features.get("logits"))
    return specs


def _find(network: nn.Module, stages: Mapping[str, str], name: str) -> nn.Module:
    if name not in stages:
        kind = type(network).__name__
        raise ConfigError(f"{kind} has no tap {name!r}: {did_you_mean(name, stages)}")
    path = stages[name].removesuffix(INPUT).removesuffix(COPY)
    try:
        return network.get_submodule(path)
    except AttributeError as error:
        raise ConfigError(
            f"tap {name!r}: the network has no module {path!r} ({error}); correct its stages()"
        ) from None


def _first_tensor(given: Sequence[Any]) -> Any:
    """Exported programs hand sizes to their modules too, before the tensors."""
    return next((value for value in given if isinstance(value, Tensor)), None)


def count_changes(tensor: Tensor) -> int | None:
    """Return the count of in-place changes; inference tensors keep none."""
    return None if tensor.is_inference() else tensor._version
