"""The same predictions by MONAI, nnU-Net and kdpipe; `bench/inference.py` compares them.

Usage as a worker, whose answer is one line of JSON: python bench/inference_ways.py WAY ...
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

CLASSES = 14
PATCH = (96, 96, 96)
OVERLAP = 0.5
NETWORKS = {
    "tiny U-Net": ("unet_tiny", {}),
    "SegResNet-8": ("segresnet", {"init_filters": 8}),
}
VOLUMES = {"tiny U-Net": (256, 256, 96), "SegResNet-8": (192, 144, 96)}
LOGITS, NATIVE = (273, 273, 300), (512, 512, 150)


def network_of(title: str) -> nn.Module:
    """A network with random weights, the same in each process."""
    from kdpipe.nets.base import build_network

    torch.manual_seed(0)
    name, params = NETWORKS[title]
    return build_network(name, params, 1, CLASSES).eval().requires_grad_(False)


def scan(title: str = "tiny U-Net", kind: str = "full") -> Tensor:
    """A volume (1, *S) of smooth noise, for the network of this title.

    "corner": outside a body in one corner it is air, clipped to one value, so that 13 of the 25
    windows are empty. "centre": air around a body in the middle, as in most scans.
    """
    generator = torch.Generator().manual_seed(1)
    volume = VOLUMES[title]
    coarse = torch.randn(1, 1, 32, 32, 12, generator=generator)
    image = nn.functional.interpolate(coarse, volume, mode="trilinear")[0]
    x, y = (torch.arange(n)[:, None] for n in volume[:2])
    if kind == "corner":
        image[:, ((x < 150) | (y.T < 100))] = -1.0
    if kind == "centre":
        image[:, (x - 128.0) ** 2 / 115**2 + (y.T - 128.0) ** 2 / 90**2 > 1] = -1.0
    return image


def monai_scores(network: nn.Module, image: Tensor) -> Tensor:
    """MONAI's inferer, one window a pass."""
    from monai.inferers.utils import sliding_window_inference

    with torch.inference_mode():
        scores = sliding_window_inference(
            image[None], PATCH, 1, network, overlap=OVERLAP, mode="gaussian"
        )
    assert isinstance(scores, Tensor)
    return scores[0]


def monai(network: nn.Module, image: Tensor) -> np.ndarray:
    """MONAI's inferer and torch's argmax: what its users write."""
    return monai_scores(network, image).argmax(0).to(torch.uint8).numpy()


def monai_fast_argmax(network: nn.Module, image: Tensor) -> np.ndarray:
    """MONAI's inferer with the fastest argmax that is known, kdpipe's."""
    from kdpipe.data.relabel import labels_of
    from kdpipe.data.targets import Targets

    return labels_of(monai_scores(network, image).numpy(), Targets(CLASSES), 2)


def kdpipe_labels(network: Callable[[Tensor], Tensor], image: Tensor) -> np.ndarray:
    """kdpipe's windows, one a pass."""
    from kdpipe.data.targets import Targets
    from kdpipe.infer.window import sliding_labels, sliding_slabs

    slabs = sliding_slabs(network, image, PATCH, OVERLAP, 1)
    return sliding_labels(slabs, image.shape[1:], Targets(CLASSES))


def by_openvino(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network as kdpipe's engine runs it, in float32."""
    from kdpipe.infer.engine import openvino_network

    return openvino_network(network, (1, 1, *PATCH), "fp32")


def prepared_way(way: str, title: str) -> Callable[[Tensor], np.ndarray]:
    """Return the way by its name, ready to run: "monai", "torch" or "openvino"."""
    network = network_of(title)
    if way == "monai":
        return lambda image: monai(network, image)
    run = by_openvino(network) if way == "openvino" else network
    return lambda image: kdpipe_labels(run, image)


def resident_kib(name: str) -> int:
    """`VmRSS` (now) or `VmHWM` (the most so far) of this process, KiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name)))


def reset_peak() -> None:
    """Let VmHWM begin anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def added_mib(work: Callable[[], object]) -> float:
    """What `work` adds to the resident memory at its most, MiB."""
    reset_peak()
    before = resident_kib("VmRSS")
    work()
    return (resident_kib("VmHWM") - before) / 1024


def logits() -> np.ndarray:
    """Scores (CLASSES, *LOGITS) of 13 blobs in smooth background, with some roughness."""
    generator = torch.Generator().manual_seed(0)
    coarse = [n // 6 for n in LOGITS]
    grid = torch.stack(torch.meshgrid(*[torch.linspace(0, 1, n) for n in coarse], indexing="ij"))
    out = torch.empty(CLASSES, *LOGITS)
    for channel in range(CLASSES):
        centre = 0.15 + 0.7 * torch.rand(3, generator=generator)
        radius = 0.03 + 0.13 * torch.rand(1, generator=generator)
        distance = (grid - centre[:, None, None, None]).norm(dim=0)
        field = torch.full(coarse, 0.0) if channel == 0 else 40 * (radius - distance)
        field = field + 0.8 * torch.randn(coarse, generator=generator)
        out[channel] = nn.functional.interpolate(field[None, None], LOGITS, mode="trilinear")[0, 0]
    return out.numpy()


def restored_by_nnunet(scores: np.ndarray) -> np.ndarray:
    """nnU-Net's resampling with torch and its argmax, as its export of a prediction calls them."""
    from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    threads = torch.get_num_threads()
    large = resample_torch_fornnunet(
        torch.from_numpy(scores),
        NATIVE,
        (1.5, 1.5, 1.5),
        (0.8, 0.8, 3.0),
        is_seg=False,
        num_threads=threads,
        force_separate_z=False,
    )
    names = {"background": 0} | {f"organ{i}": i for i in range(1, CLASSES)}
    return np.asarray(LabelManager(names, None).convert_logits_to_segmentation(large))


def restored_by_kdpipe(scores: np.ndarray) -> np.ndarray:
    """kdpipe's labels on the prepared grid, then on the native one; scores are checked as well."""
    from kdpipe.data.relabel import labels_between, labels_of
    from kdpipe.data.targets import Targets

    targets, threads = Targets(CLASSES), torch.get_num_threads()
    labels = labels_of(scores, targets, threads)
    where = [
        (np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(NATIVE, scores.shape[1:], strict=True)
    ]
    return labels_between(labels, where, scores, targets, threads)


def train_step() -> Callable[[], object]:
    """Forward, loss, backward and optimiser of the tiny U-Net on one patch."""
    from monai.losses.dice import DiceCELoss

    network = network_of("tiny U-Net").train().requires_grad_(True)
    optimiser = torch.optim.AdamW(network.parameters())
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    image, label = torch.randn(1, 1, *PATCH), torch.randint(CLASSES, (1, 1, *PATCH))

    def step() -> None:
        optimiser.zero_grad()
        loss(network(image), label).backward()
        optimiser.step()

    return step


def _seconds(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def worker(task: str, *arguments: str) -> dict[str, float]:
    """Do one task of a process of its own; `KDPIPE_MALLOC` decides on the memory allocator."""
    from kdpipe.engine.device import keep_freed_memory, return_freed_memory

    keep_freed_memory()
    if task == "memory":
        way, title = arguments
        run, image = prepared_way(way, title), scan(title)
        run(image[:, :96, :96])  # imports and what is compiled on first use
        return_freed_memory()
        return {"mib": added_mib(lambda: run(image))}
    if task == "volume":
        way, title = arguments
        run, image = prepared_way(way, title), scan(title)
        run(image[:, :96, :96])  # one window: what is compiled or chosen on first use
        start = time.perf_counter()
        run(image)
        return {"seconds": time.perf_counter() - start}
    if task == "restore":
        restore = restored_by_kdpipe if arguments[0] == "kdpipe" else restored_by_nnunet
        scores = logits()
        restore(scores[:, ::16, ::16, ::16].copy())
        return {"mib": added_mib(lambda: restore(scores))}
    if task == "step":
        return {"seconds": _seconds(train_step(), 4)}
    network = network_of("tiny U-Net")
    patch = torch.randn(1, 1, *PATCH)
    with torch.inference_mode():
        return {"seconds": _seconds(lambda: network(patch), 6)}


if __name__ == "__main__":
    sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1]))
    print(json.dumps(worker(*sys.argv[1:])))
