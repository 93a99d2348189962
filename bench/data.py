"""Resampling, the prepared store and training crops against nnU-Net, SimpleITK and MONAI.

Usage: python bench/data.py [--rounds 5] [--json FILE]

A CT of 512 x 512 x 150 voxels (0.8, 0.8, 3 mm), made of noise and organs, goes to 1.5 mm; the
result is stored and cropped. nnU-Net, SimpleITK and MONAI run in this process, with its malloc.
Crops are loaded by one thread, timed by the processor's clock. Takes about four minutes on two
free cores; where a round of resampling is slow there are fewer of them, and the table says so.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from crops import CLASSES, CROP, PATCHES, loader_rows
from scipy import ndimage
from side_by_side import Row, in_turns, main, ratio, shown

from kdpipe.data.geometry import Grid, to_array, to_image
from kdpipe.data.preparation.resampling import CUBIC, image_at, one_hot_at
from kdpipe.data.store import StoredCase, sample_foreground, write_case

SHAPE, SPACING = (512, 512, 150), (0.8, 0.8, 3.0)
NEW, ISOTROPIC = (273, 273, 300), (1.5, 1.5, 1.5)
Resampled = Callable[[], np.ndarray]
_LONGEST = 50.0
"""Seconds that rounds of resampling may take; one round is always measured."""


def scan() -> tuple[np.ndarray, np.ndarray]:
    """A body in air with noise of 15 HU, int16, and 13 organs, uint8."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*[np.linspace(0, 1, n, dtype=np.float32) for n in SHAPE],
                          indexing="ij", sparse=True)  # fmt: skip
    label = np.zeros(SHAPE, np.uint8)
    for organ in range(1, CLASSES):
        centre, radius = rng.uniform(0.25, 0.75, 3), rng.uniform(0.04, 0.17, 3)
        bumps = 1 + 0.2 * np.sin(20 * x) * np.cos(17 * y)
        offsets = zip((x, y, z), centre, radius, strict=True)
        label[sum(((axis - c) / r) ** 2 for axis, c, r in offsets) < bumps] = organ
    coarse = ndimage.zoom(rng.normal(0, 40, (64, 64, 38)).astype(np.float32), (8, 8, 4), order=1)
    image = 20 + 8 * label + coarse[..., :150] + rng.normal(0, 15, SHAPE).astype(np.float32)
    image[np.broadcast_to(((x - 0.5) / 0.45) ** 2 + ((y - 0.5) / 0.35) ** 2 > 1, SHAPE)] = -1000
    return image.astype(np.int16), label


def positions() -> list[np.ndarray]:
    """Where nnU-Net's (and skimage's) voxels lie: both grids cover the same box."""
    return [(np.arange(m) + 0.5) * n / m - 0.5 for n, m in zip(SHAPE, NEW, strict=True)]


def ours_cubic(voxels: np.ndarray) -> np.ndarray:
    """The image on the new grid, float32."""
    out = np.empty(NEW, np.float32)
    image_at(voxels, positions(), CUBIC, out)
    return out


def by_sitk(array: np.ndarray, kind: int) -> np.ndarray:
    """The array on the same grid by SimpleITK; it is turned into an image beforehand."""
    grid = Grid(SHAPE, SPACING, (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    spacing = tuple(n * s / m for n, s, m in zip(SHAPE, SPACING, NEW, strict=True))
    origin = tuple((new - old) / 2 for new, old in zip(spacing, SPACING, strict=True))
    image = to_image(array, grid)
    found = sitk.Resample(
        image, NEW, sitk.Transform(), kind, origin, spacing, grid.direction, 0.0,
        image.GetPixelID(), True,
    )  # fmt: skip
    return to_array(found)


def peak_mb(work: Resampled) -> float:
    """Memory that arrays take at most, MB."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def compared(
    kind: str, ways: dict[str, Resampled], rounds: int, target: float,
    equal: Callable[[np.ndarray, np.ndarray], str], memory: str,
) -> list[Row]:  # fmt: skip
    """One row a peer; the first of `ways` is kdpipe's."""
    mine, *peers = ways
    begin = time.perf_counter()
    results = {name: way() for name, way in ways.items()}
    rounds = max(1, min(rounds, int(_LONGEST / (time.perf_counter() - begin))))
    found = {name: equal(results[mine], results[name]) for name in peers}
    del results
    seconds = in_turns(ways, rounds)
    return [
        Row(
            "preparation", f"{kind}, 512×512×150 to 273×273×300", shown(seconds[mine]), peer,
            shown(seconds[peer]), ratio(seconds, mine, peer), target, memory, found[peer],
            f"median of {rounds}",
        )
        for peer in peers
    ]  # fmt: skip


def label_rows(label: np.ndarray, rounds: int) -> list[Row]:
    """Label maps by linear one-hot codes, 14 labels."""
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
    from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

    channel = label[None].astype(np.int16)
    ways: dict[str, Resampled] = {
        "kdpipe": lambda: one_hot_at(label, positions()),
        "nnU-Net, default (order 1)": lambda: resample_data_or_seg_to_shape(
            channel, NEW, SPACING, ISOTROPIC, is_seg=True, order=1, order_z=0
        )[0],
        "nnU-Net, torch": lambda: resample_torch_fornnunet(
            channel, NEW, SPACING, ISOTROPIC, is_seg=True, force_separate_z=False,
            num_threads=torch.get_num_threads(),
        )[0],
        "SimpleITK LabelLinear": lambda: by_sitk(label, sitk.sitkLabelLinear),
    }  # fmt: skip

    def equal(mine: np.ndarray, theirs: np.ndarray) -> str:
        return f"{(mine != theirs).sum()} of {mine.size} voxels differ"

    extra = peak_mb(ways["kdpipe"]) - np.prod(NEW) / 1e6
    limit = f"reading 39 MB and writing 22 MB, 5 ms; {extra:.0f} MB beside the result"
    return compared("labels, one-hot linear", ways, rounds, 100, equal, limit)


def image_rows(image: np.ndarray, rounds: int) -> list[Row]:
    """An image by cubic splines."""
    from monai.transforms import Spacing
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    floats = image.astype(np.float32)
    tensor, affine = torch.from_numpy(floats)[None], np.diag([*SPACING, 1.0])
    spacing = Spacing(ISOTROPIC, mode=3, padding_mode="nearest")
    ways: dict[str, Resampled] = {
        "kdpipe": lambda: ours_cubic(image),
        "nnU-Net, default (order 3)": lambda: resample_data_or_seg_to_shape(
            floats[None], NEW, SPACING, ISOTROPIC, order=3, order_z=0
        )[0],
        "SimpleITK BSpline": lambda: by_sitk(floats, sitk.sitkBSpline),
        "MONAI Spacing, mode 3": lambda: np.asarray(_spaced(spacing, tensor, affine)),
    }
    low, high = float(image.min()), float(image.max())

    def equal(mine: np.ndarray, theirs: np.ndarray) -> str:
        if mine.shape != theirs.shape:
            return f"another grid, {theirs.shape}"
        off = np.abs(mine - theirs.clip(low, high)) / (high - low)
        inner = off[12:-12, 12:-12, 24:-24].max()
        return f"at most {off.max():.1e} of the range off, {inner:.1e} away from the edges"

    extra = peak_mb(ways["kdpipe"]) / (4e-6 * np.prod(SHAPE))
    limit = f"reading 79 MB and writing 89 MB, 10 ms; {extra:.2f} × the volume with the result"
    return compared("image, cubic spline", ways, rounds, 8, equal, limit)


def _spaced(spacing: Any, tensor: torch.Tensor, affine: np.ndarray) -> torch.Tensor:
    from monai.data import MetaTensor

    spaced: torch.Tensor = spacing(MetaTensor(tensor, affine=torch.from_numpy(affine)))[0]
    return spaced


def _nnunet_writer(folder: Path, image: np.ndarray, label: np.ndarray, **settings: Any) -> Any:
    from nnunetv2.training.dataloading.nnunet_dataset import (
        comp_blosc2_params,
        nnUNetDatasetBlosc2,
    )

    arrays = image.astype(np.float32), label[None].astype(np.int16)
    sizes = [comp_blosc2_params(array.shape, CROP, array.itemsize) for array in arrays]
    (block, chunk), (block_label, chunk_label) = sizes

    def write() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        nnUNetDatasetBlosc2.save_case(
            *arrays, {}, str(folder / "case"), chunk, block, chunk_label, block_label, **settings
        )

    return write


def _our_crops(case: StoredCase, starts: np.ndarray) -> None:
    for start in starts:  # none is kept, as on the other side
        case.crop([int(s) for s in start], CROP)


def _nnunet_crops(folder: Path, starts: np.ndarray) -> Callable[[], None]:
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    def crops() -> None:
        for start in starts:
            box = tuple(slice(int(s), int(s) + n) for s, n in zip(start, CROP, strict=True))
            data, label, _, _ = nnUNetDatasetBlosc2(str(folder), ["case"]).load_case("case")
            data[:, *box], label[:, *box]

    return crops


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.b2nd"))


def store_rows(image: np.ndarray, label: np.ndarray, folder: Path, rounds: int) -> list[Row]:
    """Size, time to write, time of a crop."""
    import blosc2

    blosc2.set_nthreads(1)  # as in nnU-Net's workers
    settings = {
        "nnU-Net as it is (LZ4HC 5)": {},
        "nnU-Net, zstd 8 as before": {"codec": blosc2.Codec.ZSTD, "clevel": 8},
    }
    foreground = sample_foreground(label, CLASSES)
    starts = np.random.default_rng(0).integers(0, np.subtract(NEW, CROP) + 1, (PATCHES, 3))
    case = StoredCase(folder / "kdpipe")
    write: dict[str, Callable[[], object]] = {
        "kdpipe": lambda: write_case(
            case.folder, image, label, {"pad_value": 0.0}, foreground, stepped=True
        )
    }
    crop: dict[str, Callable[[], object]] = {"kdpipe": lambda: _our_crops(case, starts)}
    for number, (name, chosen) in enumerate(settings.items()):
        theirs = folder / f"nnunet{number}"
        write[name] = _nnunet_writer(theirs, image, label, **chosen)
        crop[name] = _nnunet_crops(theirs, starts)
    written = in_turns(write, rounds, time.process_time)
    cropped = in_turns(crop, rounds, time.process_time)
    read, read_label = case.whole()
    off = f"at most {np.abs(read - image).max():.1e} off, {(read_label != label).sum()} labels"
    mine = _bytes(case.folder)
    rows = []
    for number, name in enumerate(settings):
        size = _bytes(folder / f"nnunet{number}")
        rows += [
            Row("store", "size of a case, 273×273×300", f"{mine / 1e6:.1f} MB", name,
                f"{size / 1e6:.1f} MB", size / mine, 2.5, "noise of 15 HU", off),
            Row("store", f"{PATCHES} random crops of 96³", shown(cropped["kdpipe"]), name,
                shown(cropped[name]), ratio(cropped, "kdpipe", name), 3,
                "the blocks it touches hold 1.9 times a crop", "the same boxes", "CPU time"),
            Row("store", "writing a case", shown(written["kdpipe"]), name, shown(written[name]),
                ratio(written, "kdpipe", name), 10, note="CPU time"),
        ]  # fmt: skip
    return rows


def rows(rounds: int = 5) -> list[Row]:
    """Measure all of it."""
    warnings.simplefilter("ignore")
    image, label = scan()
    found = [*label_rows(label, rounds), *image_rows(image, rounds)]
    prepared = ((ours_cubic(image).clip(-175, 250) + 175) / 425)[None]
    labels = one_hot_at(label, positions())
    with tempfile.TemporaryDirectory() as temporary:
        found += store_rows(prepared, labels, Path(temporary), rounds)
        found += loader_rows(prepared, labels, Path(temporary), rounds)
    return found


if __name__ == "__main__":
    main(rows, ("nnunetv2", "SimpleITK", "blosc2"))
