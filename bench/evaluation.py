"""Time kdpipe's metrics against MONAI's and medpy's, all on the same synthetic cases, on the CPU.

Usage: python bench/evaluation.py [--cases organ13 poor brats tiny] [--rounds 5]
           [--medpy-classes 1] [--shape 150 512 512] [--cpu-time] [--out evaluation.json]

kdpipe computes Dice, both 95th percentiles, the maximum and the average distance of every
structure; MONAI computes its 95th percentile alone (one-hot conversion included, as its users pay
it); medpy its `hd95`, on the full volume, of the first `--medpy-classes` structures only on the big
cases, and its time is then scaled to all of them. Runs of one case alternate; ratios are medians
over rounds
of the ratio within a round. medpy runs once on the big cases. Peak memory is what one run adds,
in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from kdpipe.metrics.case import LabelPair, StructurePair
from kdpipe.metrics.labelled import mask_of
from kdpipe.metrics.surface import assd, max_hausdorff, pooled_hausdorff

Structures = dict[str, tuple[int, ...]]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """Label volumes of shape `(Z, Y, X)`, spacing in mm, and the structures in them."""

    reference: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, float, float]
    structures: Structures


def _blob(
    volume: np.ndarray, centre: np.ndarray, radii: np.ndarray, label: int, rng: np.random.Generator
) -> None:
    """Draw a bumpy ellipsoid; `centre` and `radii` in voxels."""
    low = np.maximum(np.floor(centre - 1.3 * radii), 0).astype(int)
    high = np.minimum(np.ceil(centre + 1.3 * radii) + 1, volume.shape).astype(int)
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    shape = tuple(int(b - a) for a, b in zip(low, high, strict=True))
    coarse = rng.standard_normal([max(n // 8, 2) for n in shape])
    bumps = ndimage.zoom(coarse, [n / c for n, c in zip(shape, coarse.shape, strict=True)], order=1)
    axes = np.ogrid[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    square = sum(((x - c) / r) ** 2 for x, c, r in zip(axes, centre, radii, strict=True))
    volume[window][square < 1 + 0.15 * bumps[tuple(slice(n) for n in shape)]] = label


def organ13(shape: tuple[int, int, int], poor: bool = False) -> Case:
    """Thirteen organs from liver to adrenal gland; `poor`: the prediction is off by centimetres."""
    place, size = np.random.default_rng(0), np.array(shape)
    volumes = []
    share = np.array([24, 17, 14, 12, 11, 9, 8, 7, 6, 5, 4, 3.5, 3]) / 100
    centres = place.uniform(0.25, 0.75, (13, 3)) * size
    # A prediction's own bumps and a small shift: Dice from about 0.65 (small) to 0.98 (large).
    for seed in (1, 2):
        rng, volume = np.random.default_rng(seed), np.zeros(shape, np.uint8)
        for label, (centre, part) in enumerate(zip(centres, share, strict=True), start=1):
            radii = part * size * np.array([0.9, 0.7, 0.7])
            _blob(volume, centre + (seed - 1) * rng.uniform(-1, 1, 3), radii, label, rng)
        volumes.append(volume)
    if poor:
        volumes[1] = np.roll(volumes[1], (5, -20, 25), axis=(0, 1, 2))
    return Case(*volumes, (3.0, 0.8, 0.8), {f"organ{k}": (k,) for k in range(1, 14)})


def brats(shape: tuple[int, int, int]) -> Case:
    """A tumour of three labels, scored as BraTS does: three regions that overlap, 1 mm."""
    centre, volumes = np.array(shape) * 0.45, []
    for seed in (1, 2):
        rng, volume = np.random.default_rng(seed), np.zeros(shape, np.uint8)
        for label, radius in ((2, 34), (1, 22), (4, 14)):
            _blob(
                volume, centre + (seed - 1) * rng.uniform(-2, 2, 3), np.full(3, radius), label, rng
            )
        volumes.append(volume)
    return Case(*volumes, (1.0, 1.0, 1.0), {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)})


def tiny(shape: tuple[int, int, int]) -> Case:
    """A hippocampus: two structures in a small volume, 1 mm."""
    volumes = []
    for seed in (1, 2):
        rng, volume = np.random.default_rng(seed), np.zeros(shape, np.uint8)
        for label, along in ((1, 0.4), (2, 0.65)):
            centre = np.array([0.5, along, 0.5]) * shape + (seed - 1) * rng.uniform(-1, 1, 3)
            _blob(volume, centre, np.array([5.0, 9.0, 6.0]), label, rng)
        volumes.append(volume)
    return Case(*volumes, (1.0, 1.0, 1.0), {"anterior": (1,), "posterior": (2,)})


def ours(case: Case, jit: bool | None, threads: int = 1) -> list[float]:
    """All metrics of all structures by kdpipe; returns the two 95th percentiles."""
    labels = LabelPair(
        case.reference, case.prediction, case.spacing, case.structures, jit=jit, threads=threads
    )
    answer = []
    for ids in case.structures.values():
        pair = StructurePair(labels, ids)
        distances = pair.distances
        _ = pair.overlap.dice, max_hausdorff(distances, 100.0), assd(distances)
        answer += [pooled_hausdorff(distances, 95.0), max_hausdorff(distances, 95.0)]
    return answer


def _masks(case: Case, ids: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return mask_of(case.prediction, ids), mask_of(case.reference, ids)


def monai(case: Case) -> list[float]:
    """MONAI's 95th percentile of all structures, from one-hot booleans made here."""
    import torch
    from monai.metrics import compute_hausdorff_distance

    stacked = (
        torch.from_numpy(np.stack([mask_of(volume, ids) for ids in case.structures.values()]))
        for volume in (case.prediction, case.reference)
    )
    values = compute_hausdorff_distance(
        *(masks[None] for masks in stacked),
        include_background=True,
        percentile=95,
        spacing=list(case.spacing),
    )
    return [float(value) for value in values[0]]


def medpy(case: Case, classes: int) -> list[float]:
    """medpy's 95th percentile of the first `classes` structures."""
    from medpy.metric.binary import hd95

    chosen = list(case.structures.values())[:classes]
    return [float(hd95(*_masks(case, ids), voxelspacing=case.spacing)) for ids in chosen]


def seconds(function: Callable[[], list[float]], clock: Clock) -> tuple[float, list[float]]:
    """Time of one call by the clock, and its answer."""
    start = clock()
    answer = function()
    return clock() - start, answer


def _resident(field: str) -> float:
    """A line of Linux's account of this process's memory, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"no {field} in /proc/self/status")


def _added_memory(queue: multiprocessing.Queue, case: Case, jit: bool | None) -> None:
    """Put MiB that one run adds to this process at its peak; machine code is loaded before."""
    ours(tiny((35, 50, 35)), jit)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _resident("VmRSS")
    ours(case, jit)
    queue.put(_resident("VmHWM") - before)


def added_memory(case: Case, jit: bool | None) -> float:
    """MiB that one run of kdpipe adds to the peak of a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue = context.Queue()
    process = context.Process(target=_added_memory, args=(queue, case, jit))
    process.start()
    mebibytes: float = queue.get()
    process.join()
    return mebibytes


def measure(name: str, case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """Alternate all contenders on one case; medians in seconds, ratios within rounds."""
    clock: Clock = time.process_time if arguments.cpu_time else time.perf_counter
    big = case.reference.size > 10**7
    classes = min(arguments.medpy_classes, len(case.structures)) if big else len(case.structures)
    runs: dict[str, Callable[[], list[float]]] = {
        "kdpipe": lambda: ours(case, jit=True),
        "kdpipe_2_threads": lambda: ours(case, jit=True, threads=2),
        "kdpipe_no_jit": lambda: ours(case, jit=False),
        "monai": lambda: monai(case),
    }
    ours(case, jit=True)  # loads the machine code
    times: dict[str, list[float]] = {contender: [] for contender in (*runs, "medpy")}
    answers: dict[str, list[float]] = {}
    for turn in range(arguments.rounds):
        order = list(runs)[turn % len(runs) :] + list(runs)[: turn % len(runs)]
        for contender in order:
            elapsed, answers[contender] = seconds(runs[contender], clock)
            times[contender].append(elapsed)
        if classes and (turn == 0 or not big):
            elapsed, answers["medpy"] = seconds(lambda: medpy(case, classes), clock)
            times["medpy"].append(elapsed * len(case.structures) / classes)
    _check(answers)
    ratios = {
        f"{contender} / {base}": statistics.median(a / b for a, b in zip(*pair, strict=False))
        for contender in ("monai", "medpy")
        for base in ("kdpipe", "kdpipe_2_threads", "kdpipe_no_jit")
        if times[contender]
        for pair in [(times[contender], times[base])]
    }
    labels = LabelPair(case.reference, case.prediction, case.spacing)
    dice = [StructurePair(labels, ids).overlap.dice for ids in case.structures.values()]
    return {
        "case": name,
        "shape": case.reference.shape,
        "spacing_mm": case.spacing,
        "structures": len(case.structures),
        "mean_dice": statistics.mean(dice),
        "medpy_classes_timed": classes,
        "medpy_runs": len(times["medpy"]),
        "rounds": arguments.rounds,
        "clock": "process" if arguments.cpu_time else "wall",
        "seconds": {key: statistics.median(values) for key, values in times.items() if values},
        "ratios": ratios,
        "added_mib": {
            "kdpipe": added_memory(case, True),
            "kdpipe_no_jit": added_memory(case, False),
        },
    }


def _check(answers: dict[str, list[float]]) -> None:
    """Stop if contenders disagree: a ratio between different numbers means nothing."""
    mine = answers["kdpipe"]
    for contender in ("kdpipe_2_threads", "kdpipe_no_jit"):
        if answers[contender] != mine:
            raise SystemExit(f"{contender} differs: {answers[contender]} and {mine}")
    np.testing.assert_allclose(answers["monai"], mine[1::2], rtol=1e-5)
    exact = answers.get("medpy", [])
    if exact != mine[0::2][: len(exact)]:
        raise SystemExit(f"medpy differs: {exact} and {mine[0::2]}")


def main() -> None:
    """Measure, print a table and write the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", default=["organ13", "poor", "brats", "tiny"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--medpy-classes", type=int, default=1, help="on big cases; 0: none")
    parser.add_argument("--shape", type=int, nargs=3, default=(150, 512, 512), help="of organ13")
    parser.add_argument("--cpu-time", action="store_true", help="of all threads, on a busy machine")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    make: dict[str, Callable[[], Case]] = {
        "organ13": lambda: organ13(tuple(arguments.shape)),
        "poor": lambda: organ13(tuple(arguments.shape), poor=True),
        "brats": lambda: brats((155, 240, 240)),
        "tiny": lambda: tiny((35, 50, 35)),
    }
    rows = []
    for name in arguments.cases:
        rows.append(row := measure(name, make[name](), arguments))
        print(
            f"{name}: {row['shape']}, {row['structures']} structures, Dice {row['mean_dice']:.2f}"
        )
        for contender, value in row["seconds"].items():
            print(f"    {contender:<28}{1000 * value:>12.2f} ms")
        for pair, value in row["ratios"].items():
            print(f"    {pair:<28}{value:>12.1f} x")
        for contender, value in row["added_mib"].items():
            print(f"    {contender + ' adds':<28}{value:>12.0f} MiB", flush=True)
    versions = ("numpy", "scipy", "numba", "monai", "medpy")
    record = {
        "versions": {name: importlib.metadata.version(name) for name in versions},
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count()},
        "cases": rows,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
