"""Time kdpipe's metrics against MONAI's and medpy's, all on the same synthetic cases, on the CPU.

Usage: python bench/evaluation.py [--rounds 5] [--json FILE]

kdpipe computes Dice, IoU, both 95th percentiles, the maximum, the average distance and the surface
Dice of every structure; MONAI its 95th percentile alone (one-hot conversion included, as its users
pay it); medpy its `hd95` and surface-distance its robust Hausdorff distance, on the full volume. On
big cases these two run once, for one structure, and their time is scaled to all of them. Peak
memory is what one run adds, in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from side_by_side import Row, in_turns, main, ratio, shown, shown_bytes

from kdpipe.metrics.case import LabelPair, StructurePair
from kdpipe.metrics.labelled import mask_of
from kdpipe.metrics.surface import assd, max_hausdorff, nsd, pooled_hausdorff

Structures = dict[str, tuple[int, ...]]


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
    return Case(volumes[0], volumes[1], (3.0, 0.8, 0.8), {f"organ{k}": (k,) for k in range(1, 14)})


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
    return Case(
        volumes[0], volumes[1], (1.0, 1.0, 1.0), {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}
    )


def tiny(shape: tuple[int, int, int]) -> Case:
    """A hippocampus: two structures in a small volume, 1 mm."""
    volumes = []
    for seed in (1, 2):
        rng, volume = np.random.default_rng(seed), np.zeros(shape, np.uint8)
        for label, along in ((1, 0.4), (2, 0.65)):
            centre = np.array([0.5, along, 0.5]) * shape + (seed - 1) * rng.uniform(-1, 1, 3)
            _blob(volume, centre, np.array([5.0, 9.0, 6.0]), label, rng)
        volumes.append(volume)
    return Case(volumes[0], volumes[1], (1.0, 1.0, 1.0), {"anterior": (1,), "posterior": (2,)})


def ours(case: Case, jit: bool | None, threads: int = 1) -> list[float]:
    """All metrics of all structures by kdpipe; returns the two 95th percentiles."""
    labels = LabelPair(
        case.reference, case.prediction, case.spacing, case.structures, jit=jit, threads=threads
    )
    answer = []
    for ids in case.structures.values():
        pair = StructurePair(labels, ids)
        distances = pair.distances
        _ = pair.overlap.dice, pair.overlap.iou, max_hausdorff(distances, 100.0)
        _ = assd(distances), nsd(distances, 2.0)
        answer += [pooled_hausdorff(distances, 95.0), max_hausdorff(distances, 95.0)]
    return answer


def _masks(case: Case, ids: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return mask_of(case.prediction, ids), mask_of(case.reference, ids)


def monai(case: Case) -> list[float]:
    """MONAI's 95th percentile of all structures, from one-hot booleans made here."""
    import torch
    from monai.metrics import compute_hausdorff_distance

    prediction, reference = (
        torch.from_numpy(np.stack([mask_of(volume, ids) for ids in case.structures.values()]))
        for volume in (case.prediction, case.reference)
    )
    values = compute_hausdorff_distance(
        prediction[None],
        reference[None],
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


def deepmind(case: Case, classes: int) -> list[float]:
    """surface-distance's 95th percentile, weighted by area, of the first `classes` structures."""
    import surface_distance

    answer = []
    for ids in list(case.structures.values())[:classes]:
        prediction, reference = _masks(case, ids)
        found = surface_distance.compute_surface_distances(reference, prediction, case.spacing)
        answer.append(float(surface_distance.compute_robust_hausdorff(found, 95)))
    return answer


def _resident(field: str) -> float:
    """A line of Linux's account of this process's memory, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"no {field} in /proc/self/status")


def _added_memory(case: Case, jit: bool) -> float:
    """MiB that one run adds to this process at its peak; machine code is loaded before."""
    ours(tiny((35, 50, 35)), jit)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _resident("VmRSS")
    ours(case, jit)
    return _resident("VmHWM") - before


def added_memory(case: Case, jit: bool) -> float:
    """MiB that one run of kdpipe adds to the peak of a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_added_memory, case, jit).result()


def case_rows(name: str, case: Case, rounds: int, targets: tuple[float, ...]) -> list[Row]:
    """Against MONAI with one thread, two, and without machine code; against medpy."""
    big = case.reference.size > 10**7
    timed = 1 if big else len(case.structures)
    answers: dict[str, list[float]] = {}

    def keep(contender: str, run: Callable[[], list[float]]) -> Callable[[], None]:
        return lambda: answers.__setitem__(contender, run())

    ways = {
        "kdpipe": keep("kdpipe", lambda: ours(case, jit=True)),
        "kdpipe, 2 threads": keep("kdpipe, 2 threads", lambda: ours(case, jit=True, threads=2)),
        "kdpipe without JIT": keep("kdpipe without JIT", lambda: ours(case, jit=False)),
        "MONAI": keep("MONAI", lambda: monai(case)),
    }
    ours(case, jit=True)  # loads the machine code
    seconds = in_turns(ways, rounds)
    start = time.perf_counter()
    answers["medpy"] = medpy(case, timed)
    middle = time.perf_counter()
    deepmind(case, timed)
    scale = len(case.structures) / timed
    once = {
        "medpy's hd95": (middle - start) * scale,
        "surface-distance's robust Hausdorff": (time.perf_counter() - middle) * scale,
    }
    _check(answers)
    shape = "×".join(str(side) for side in reversed(case.reference.shape))
    work = f"{name} {shape}, {len(case.structures)} structures"
    equal = "equal to rtol 1e-5, MONAI rounds to float32"
    rows = []
    for contender, target in zip(list(ways)[:3], targets[:3], strict=True):
        note = f"{contender}, adds {_added(case, contender)}"
        rows.append(
            Row(
                "evaluation", work, shown(seconds[contender]), "MONAI's HD95 alone",
                shown(seconds["MONAI"]), ratio(seconds, contender, "MONAI"), target or None,
                "6 ms to read both volumes" if big else "", equal, note,
            )
        )  # fmt: skip
    note = "one structure timed, once, and scaled" if big else "once"
    for peer, least, equal in (
        ("medpy's hd95", targets[3] or None, "equal to the bit"),
        ("surface-distance's robust Hausdorff", None, "another definition"),
    ):
        mine = statistics.median(once[peer] / value for value in seconds["kdpipe"])
        rows.append(
            Row(
                "evaluation", work, shown(seconds["kdpipe"]), peer, shown([once[peer]]), mine,
                least, "", equal, note,
            )
        )  # fmt: skip
    return rows


def _added(case: Case, contender: str) -> str:
    if "threads" in contender:
        return "as with one thread"
    return shown_bytes(2**20 * added_memory(case, "without" not in contender))


def rows(rounds: int = 5) -> list[Row]:
    """All cases of the table; targets: one thread, two, no machine code, medpy."""
    size = (150, 512, 512)
    found = case_rows("organs", organ13(size), rounds, (60, 100, 3, 500))
    found += case_rows("poor prediction", organ13(size, poor=True), rounds, (15, 15, 0, 0))
    found += case_rows("brain tumour", brats((155, 240, 240)), rounds, (0, 0, 0, 0))
    return found + case_rows("hippocampus", tiny((35, 50, 35)), rounds, (8, 8, 0, 0))


def _check(answers: dict[str, list[float]]) -> None:
    """Stop if contenders disagree: a ratio between different numbers means nothing."""
    mine = answers["kdpipe"]
    for contender in ("kdpipe, 2 threads", "kdpipe without JIT"):
        if answers[contender] != mine:
            raise SystemExit(f"{contender} differs: {answers[contender]} and {mine}")
    np.testing.assert_allclose(answers["MONAI"], mine[1::2], rtol=1e-5)
    exact = answers["medpy"]
    if exact != mine[0::2][: len(exact)]:
        raise SystemExit(f"medpy differs: {exact} and {mine[0::2]}")


if __name__ == "__main__":
    main(rows, packages=("medpy",))
