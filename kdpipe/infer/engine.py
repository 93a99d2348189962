"""What runs the network in a prediction: torch, or OpenVINO on a CPU; in full or half precision.

Whatever is faster than torch in float32 has to prove on real cases that its labels are as good.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdpipe.data.store import StoredCase
from kdpipe.data.targets import Targets
from kdpipe.errors import ConfigError
from kdpipe.infer.model import TrainedModel
from kdpipe.infer.window import Network, sliding_labels, sliding_slabs
from kdpipe.metrics.overlap import dice, mean_of_known
from kdpipe.settings import Inference

log = logging.getLogger(__name__)

SAME_LABELS = 0.9999
"""Share of voxels whose labels another engine must not change, at full precision."""
CHECKED_CASES = 3


@dataclass(frozen=True)
class Engine:
    """A way to run a network.

    Attributes:
        name: "torch fp32" and so on.
        network: maps windows ``(B, C, *patch)`` to logits; its result may change with the next
            call.
        window_batch: largest B.
    """

    name: str
    network: Network
    window_batch: int


def build_engine(
    trained: TrainedModel, name: str, precision: str, window_batch: int, device: torch.device
) -> Engine:
    """Return an engine for a network that is on `device` already.

    Args:
        trained: the network, in evaluation mode.
        name: ``torch`` or ``openvino``.
        precision: ``fp32`` or ``bf16``.
        window_batch: windows a forward pass, for torch; OpenVINO takes them one by one.
        device: of the network.

    Raises:
        ConfigError: OpenVINO is not installed, or has no operation for some layer.
    """
    label = f"{name} {precision}"
    if name == "openvino":
        shape = (1, int(trained.run["network"]["in_channels"]), *trained.patch)
        return Engine(label, openvino_network(trained.network, shape, precision), 1)
    if precision == "fp32":
        return Engine(label, trained.network, window_batch)

    def halved(windows: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            scores: Tensor = trained.network(windows)
        return scores

    return Engine(label, halved, window_batch)


def openvino_network(network: nn.Module, shape: Sequence[int], precision: str) -> Network:
    """Return a network that OpenVINO runs on the CPU, for windows of one shape.

    Args:
        network: on the CPU, in evaluation mode.
        shape: ``(1, C, *patch)``.
        precision: ``fp32`` or ``bf16``, of the sums inside; logits are float32.

    Raises:
        ConfigError: OpenVINO is not installed, or has no operation for some layer.
    """
    openvino = _openvino()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its tracing, which is called here
            model = openvino.convert_model(
                network, example_input=torch.zeros(*shape), input=[list(shape)]
            )
        compiled = openvino.Core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            },
        )
    except Exception as error:  # whatever a converter of ten thousand operations may raise
        raise ConfigError(
            f"OpenVINO cannot run this network ({error}); set inference.engine to torch"
        ) from error
    request = compiled.create_infer_request()

    def run(windows: Tensor) -> Tensor:
        found = request.infer([windows.numpy()], share_inputs=True, share_outputs=True)
        return torch.from_numpy(found[0])

    return run


def _openvino() -> Any:
    # Its converter reports each use to its maker unless this optional package is missing.
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError:
        raise ConfigError(
            "inference.engine is openvino, which is not installed: pip install 'kdpipe[openvino]', "
            "or set inference.engine to torch"
        ) from None
    return openvino


def checked_engine(
    trained: TrainedModel,
    settings: Inference,
    device: torch.device,
    store: Path,
    cases: Sequence[str],
) -> Engine:
    """Return the engine of the settings, or torch in float32 where the other fails its check.

    The check predicts up to three validation cases with both. In float32 a ten-thousandth of the
    labels may differ; in bfloat16 the mean Dice may be lower by `precision_margin_percent`.

    Args:
        trained: the network, on `device`.
        settings: of the prediction.
        device: where the network is.
        store: folder of prepared cases.
        cases: ids of validation cases; test cases must not choose anything.

    Raises:
        ConfigError: as `build_engine`; or there is no case to check a reduced precision with.
    """
    plain = build_engine(trained, "torch", "fp32", settings.window_batch, device)
    name = settings.engine
    if name == "openvino" and device.type != "cpu":
        log.info("inference.engine: openvino is for a CPU; torch runs on the %s", device.type)
        name = "torch"
    if (name, settings.precision) == ("torch", "fp32"):
        return plain
    if not cases:
        raise ConfigError(
            "the split has no validation case to check inference.engine and inference.precision "
            "with; leave both out"
        )
    other = build_engine(trained, name, settings.precision, settings.window_batch, device)
    verdict, good = _compared(plain, other, trained, settings, device, store, cases)
    log.info("%s: %s", other.name, verdict)
    if not good:
        log.warning("%s is not good enough, %s is used: %s", other.name, plain.name, verdict)
    return other if good else plain


def _compared(
    plain: Engine,
    other: Engine,
    trained: TrainedModel,
    settings: Inference,
    device: torch.device,
    store: Path,
    cases: Sequence[str],
) -> tuple[str, bool]:
    """Say how the labels of two engines differ on some cases, and whether that is little enough."""
    targets = Targets.of(trained.run)
    scores: dict[str, list[float]] = {plain.name: [], other.name: []}
    same = voxels = 0
    for case in sorted(cases)[:CHECKED_CASES]:
        stored = StoredCase(store / case)
        image, label = stored.whole()
        found = [
            labels_by(engine, trained, settings, device, image, stored.geometry["pad_value"])
            for engine in (plain, other)
        ]
        for engine, labels in zip((plain, other), found, strict=True):
            values = list(dice(label, labels, targets.structures).values())
            scores[engine.name].append(mean_of_known(values))
        same += int((found[0] == found[1]).sum())
        voxels += label.size
    before, after = (100 * mean_of_known(values) for values in scores.values())
    verdict = (
        f"Dice {after:.3f} % instead of {before:.3f} %, {same / voxels:.6f} of the labels are the "
        f"same, on {min(len(cases), CHECKED_CASES)} validation case(s)"
    )
    if settings.precision == "fp32":
        return verdict, same / voxels >= SAME_LABELS
    return verdict, after >= before - settings.precision_margin_percent


def labels_by(
    engine: Engine,
    trained: TrainedModel,
    settings: Inference,
    device: torch.device,
    image: np.ndarray,
    pad_value: float,
) -> np.ndarray:
    """Return the labels (*S) uint8 of an image (C, *S) on the prepared grid."""
    slabs = sliding_slabs(
        engine.network,
        torch.from_numpy(image).to(device),
        trained.patch,
        settings.overlap,
        engine.window_batch,
        pad_value,
    )
    return sliding_labels(slabs, image.shape[1:], Targets.of(trained.run))
