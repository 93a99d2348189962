"""What a GPU gains: the distillation step, waiting for data, distances, a cohort, memory.

Usage: bench/gpu.sh [--device cuda] [--parts step data ...] [--rounds 5]
       python bench/gpu.py --device cpu --tiny        (a test of this file, in seconds)

Needs torch and what kdpipe's own modules import; a part whose packages are not there is named and
left out. Writes ``gpu.json`` and ``gpu.md`` after each part. A part is not begun after eight
minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from side_by_side import Row, in_turns, ratio, shown, shown_bytes, table

PACKAGES = ("torch", "triton", "numpy", "scipy", "pandas", "pydantic", "monai", "blosc2", "numba")
LAST_START = 480.0  # seconds after which no part is begun
WAITING = 0.05  # share of a training that may be waiting for data


@dataclass(frozen=True)
class Setting:
    """How large all is."""

    device: torch.device
    rounds: int = 5
    tiny: bool = False
    side: int = field(init=False)
    batch: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "side", 32 if self.tiny else 96)
        object.__setattr__(self, "batch", 1 if self.tiny else 2)

    def wait(self) -> None:
        """Wait for what was started."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak(self, work: Callable[[], object]) -> str:
        """Memory of the GPU at most while `work` runs, with all that is there; else nothing."""
        if self.device.type != "cuda":
            return ""
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.wait()
        return f"peak {shown_bytes(torch.cuda.max_memory_allocated(self.device))}"


def step(setting: Setting) -> list[Row]:
    """Bfloat16, channels innermost and compiled, against float32 as it is written."""
    from kd_scene import CLASSES, Scene

    from kdpipe.settings import Training

    scene = Scene(str(setting.device), setting.batch, setting.side)
    recipes = {"eager fp32": Training(precision="fp32"), "bf16, channels last": Training(fast=True)}
    if not setting.tiny:
        recipes["bf16, channels last, compiled"] = Training(fast=True, compile=True)
    ways = {name: scene.distilled(recipe) for name, recipe in recipes.items()}
    ways |= {"plain loop": scene.plain()} if find_spec("monai") else {}
    for _ in range(1 if setting.tiny else 3):  # until all is compiled, and chosen by cuDNN
        for way in ways.values():
            way()
    seconds = in_turns(ways, setting.rounds)
    peaks = {name: setting.peak(way) for name, way in ways.items()}
    work = f"KD step, {setting.batch} crops of {setting.side}³, {CLASSES} classes"
    return [
        Row(
            "training", f"{work}; {ours}", shown(seconds[ours]), peer, shown(seconds[peer]),
            ratio(seconds, ours, peer), 2.0 if "compiled" in ours else None,
            note=peaks[ours] and f"{peaks[ours]}, peer {peaks[peer]}, networks of all included",
        )
        for peer in ("eager fp32", "plain loop") if peer in ways
        for ours in ways if ours.startswith("bf16") or (peer, ours) == ("plain loop", "eager fp32")
    ]  # fmt: skip


def data(setting: Setting) -> list[Row]:
    """How much of a training is waiting for crops."""
    from kd_scene import CLASSES, WARM, Scene

    from kdpipe.data.crops.sampler import CropDataset, CropRecipe
    from kdpipe.data.targets import Targets
    from kdpipe.engine.train import _batches
    from kdpipe.settings import Augmentation, Training

    recipe = Training(fast=True, batch_size=setting.batch, epochs=1)
    trainer = Scene(str(setting.device), setting.batch, setting.side).trainer(recipe, "kd")
    loaders = 1 if setting.tiny else min(12, max(1, (os.cpu_count() or 2) - 1))
    begin, count = (1, 3) if setting.tiny else (20, 200)
    with tempfile.TemporaryDirectory() as folder:
        cases = _store(Path(folder), 2 * setting.side, 1 if setting.tiny else 8, CLASSES)
        crops = CropRecipe((setting.side,) * 3, 0.5, Augmentation(), 0)
        dataset = CropDataset(Path(folder), cases, Targets(CLASSES), crops)
        end = WARM + begin + count
        batches = iter(_batches(dataset, recipe, end, WARM, setting.device, loaders))
        for _ in range(begin):
            trainer.advance(next(batches))
        waited, start = 0.0, time.perf_counter()
        for _ in range(count):
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
            trainer.advance(batch)  # ends when the GPU has ended
        total = time.perf_counter() - start
        del batches  # ends the loaders before their files go
    share = max(waited / total, 1e-6)
    return [
        Row(
            "training", f"waiting for data in {count} steps, fast, {loaders} loaders",
            f"{100 * share:.2g} % of the time", "wanted: at most", f"{100 * WAITING:.0f} %",
            WAITING / share, 1.0, note=f"{count * setting.batch / total:.3g} crops a second",
        )
    ]  # fmt: skip


def _store(folder: Path, side: int, count: int, classes: int) -> list[str]:
    """Prepared cases of blocks and noise."""
    from kdpipe.data.store import sample_foreground, write_case

    names = [f"case_{number}" for number in range(count)]
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        blocks = rng.integers(0, classes, (4,) * 3).astype(np.uint8)
        label = np.kron(blocks, np.ones((side // 4,) * 3, np.uint8))
        image = rng.normal(0, 0.3, (1, *label.shape)) + label / classes
        foreground = sample_foreground(label, classes)
        facts = {"pad_value": 0.0, "digest": name}
        write_case(folder / name, image.astype(np.float32), label, facts, foreground, stepped=True)
    return names


def distances(setting: Setting) -> list[Row]:
    """Distance to the contour of 13 masks: on the device, and by scipy."""
    from distance_transform import organs, reference

    from kdpipe.terms.distance import contour_distance

    masks = organs(setting.side)
    there = masks.to(setting.device)

    def ours() -> None:
        contour_distance(there)
        setting.wait()

    torch.testing.assert_close(contour_distance(there).cpu(), reference(masks), rtol=2e-7, atol=0)
    seconds = in_turns({"ours": ours, "scipy": lambda: reference(masks)}, setting.rounds)
    return [
        Row(
            "distances", f"to the contours of 13 organs, {setting.side}³, on {setting.device.type}",
            shown(seconds["ours"]), "scipy, one thread", shown(seconds["scipy"]),
            ratio(seconds, "ours", "scipy"), equal="equal to rtol 2e-7",
            note=setting.peak(ours),
        )
    ]  # fmt: skip


def evaluation(setting: Setting) -> list[Row]:
    """All metrics on the CPU, beside what an evaluation on the device would need at least."""
    from evaluation import organ13, ours

    from kdpipe.terms.distance import distance_transform

    case = organ13((24, 48, 48) if setting.tiny else (150, 512, 512))
    volumes = [torch.from_numpy(v).to(setting.device) for v in (case.reference, case.prediction)]

    def transforms() -> None:
        for volume in volumes:
            for ids in case.structures.values():
                distance_transform((volume == ids[0])[None])
        setting.wait()

    ways = {"ours": lambda: ours(case, jit=None), "device": transforms}
    seconds = in_turns(ways, setting.rounds)
    shape = "×".join(map(str, reversed(case.reference.shape)))
    return [
        Row(
            "evaluation", f"all metrics of 13 organs, {shape}, on the CPU, one thread",
            shown(seconds["ours"]), f"26 distance transforms alone, on {setting.device.type}",
            shown(seconds["device"]), ratio(seconds, "ours", "device"),
            note=f"the least that an evaluation there would do; {setting.peak(transforms)}",
        )
    ]  # fmt: skip


def cohort(setting: Setting) -> list[Row]:
    """A cohort against one training after the other; see `bench/cohort.py`."""
    import cohort as bench

    bench.SIDE = setting.side
    if setting.tiny:
        bench.METHODS, bench.TEACHER = ("none", "kd"), "unet_tiny"
    return bench.rows(setting.rounds)


def shrink() -> None:
    """Take small networks."""
    import kd_scene

    small = {"channels": (4, 8, 16), "strides": (2, 2)}
    kd_scene.TEACHER, kd_scene.STUDENT = ("res_unet", small), ("unet_tiny", small)


PARTS: dict[str, Callable[[Setting], list[Row]]] = {
    "step": step, "data": data, "distances": distances, "evaluation": evaluation, "cohort": cohort,
}  # fmt: skip


def card(device: torch.device) -> str:
    """Name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    from kdpipe.engine.device import processor

    return f"no GPU: {processor()}"


def versions() -> dict[str, str]:
    """Versions of what is installed; kdpipe itself may be a folder on the path."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def write(out: Path, facts: dict[str, object], rows: list[Row]) -> None:
    """Write both files anew."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts | {"rows": [asdict(row) for row in rows]}, indent=1, ensure_ascii=False)
    (out / "gpu.json").write_text(text + "\n", encoding="utf-8")
    left = "".join(f"\nLeft out: {name}: {why}" for name, why in facts["left_out"].items())  # type: ignore[attr-defined]
    head = f"{facts['device']}, torch {torch.__version__}"
    (out / "gpu.md").write_text(f"{head}\n\n{table(rows)}\n{left}\n", encoding="utf-8")


def main() -> int:
    """Measure part after part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    there = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=there)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="as small as works, to test this file")
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    options = parser.parse_args()
    setting = Setting(torch.device(options.device), options.rounds, options.tiny)
    left_out: dict[str, str] = {}
    facts: dict[str, object] = {"versions": versions(), "left_out": left_out}
    facts["device"] = "unknown"
    rows: list[Row] = []
    start = time.monotonic()
    for name in options.parts:
        if time.monotonic() - start > LAST_START:
            left_out[name] = "no time left"
            continue
        try:
            facts["device"] = card(setting.device)
            if setting.tiny:
                shrink()
            rows += PARTS[name](setting)
        except ImportError as error:
            left_out[name] = f"the package {error.name} is missing"
        except Exception as error:  # the other parts are worth having
            said = str(error).strip().splitlines() or [""]
            left_out[name] = f"failed: {type(error).__name__}: {said[0]}"
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        write(options.out, facts, rows)
    write(options.out, facts, rows)
    print((options.out / "gpu.md").read_text(encoding="utf-8"))
    return int(bool(left_out))


if __name__ == "__main__":
    raise SystemExit(main())
