"""Prediction: sliding windows with argmax, the memory allocator, logits back to the native grid.

Usage: python bench/inference.py [--rounds 5] [--json FILE]

`KDPIPE_BENCH="windows air"` takes these parts only. The slow network has a smaller volume. All ways
of a row run in turns; those that need a process of their own (the allocator, the peak of memory)
alternate as processes.
"Tuned" is with kdpipe's setting of glibc's malloc on both sides.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import inference_ways as ways
import numpy as np
import torch
from side_by_side import Row, in_turns, main, ratio, shown, shown_bytes

HERE = Path(__file__).resolve().parent
STAGE = "inference"


def worker(*arguments: str, tuned: bool) -> dict[str, float]:
    """Run `inference_ways.py` in a process, with or without the setting of malloc."""
    environment = os.environ | {
        "KDPIPE_MALLOC": str(int(tuned)),
        "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}",
    }
    command = [sys.executable, str(HERE / "inference_ways.py"), *arguments]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def processes(rounds: int, **commands: tuple[tuple[str, ...], bool]) -> dict[str, list[float]]:
    """Seconds that workers report, process by process in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    names = list(commands)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            arguments, tuned = commands[name]
            seconds[name].append(worker(*arguments, tuned=tuned)["seconds"])
    return seconds


def same(one: np.ndarray, other: np.ndarray) -> str:
    """How many labels are equal."""
    differ = int((one != other).sum())
    return f"{differ} of {one.size / 1e6:.1f} M labels differ ({1 - differ / one.size:.6f} equal)"


def windows(rounds: int) -> list[Row]:
    """MONAI's inferer, tuned, against both engines."""
    rows = []
    for title in ways.NETWORKS:
        network, image = ways.network_of(title), ways.scan(title)
        run = {
            "monai": partial(ways.monai, network, image),
            "monai, fast argmax": partial(ways.monai_fast_argmax, network, image),
            "torch": partial(ways.kdpipe_labels, network, image),
            "openvino": partial(ways.kdpipe_labels, ways.by_openvino(network), image),
        }
        labels = {name: way() for name, way in run.items()}
        seconds = in_turns(run, rounds)
        size = "x".join(map(str, image.shape[1:]))
        work = f"windows + argmax, {title}, {size}, 14 classes, patch 96, overlap 0.5"
        for ours, peer, target in (
            ("openvino", "monai", 2.0),
            ("openvino", "monai, fast argmax", None),
            ("torch", "monai", None),
            ("torch", "monai, fast argmax", None),
        ):
            rows.append(
                Row(
                    STAGE, f"{work}; {ours} fp32", shown(seconds[ours]),
                    f"MONAI 1.6 tuned{peer[5:]}", shown(seconds[peer]),
                    ratio(seconds, ours, peer), target, equal=same(labels[ours], labels["monai"]),
                )
            )  # fmt: skip
    return rows


def untuned(rounds: int) -> list[Row]:
    """MONAI as it comes, against kdpipe as it comes."""
    seconds = processes(
        rounds,
        theirs=(("volume", "monai", "tiny U-Net"), False),
        ours=(("volume", "openvino", "tiny U-Net"), True),
        torch=(("volume", "torch", "tiny U-Net"), True),
    )
    work = "windows + argmax, tiny U-Net, processes of their own"
    return [
        Row(
            STAGE, f"{work}; {name} fp32", shown(seconds[key]), "MONAI 1.6, malloc untuned",
            shown(seconds["theirs"]), ratio(seconds, key, "theirs"), target,
        )
        for key, name, target in (("ours", "openvino", 4.0), ("torch", "torch", None))
    ]  # fmt: skip


def memory(_: int) -> list[Row]:
    """What a volume adds to the resident memory; malloc untuned, as it gives memory back."""
    rows = []
    for title in ways.NETWORKS:
        mib = {
            way: worker("memory", way, title, tuned=False)["mib"]
            for way in ("monai", "torch", "openvino")
        }
        rows += [
            Row(
                STAGE, f"memory added by windows + argmax, {title}; {way} fp32",
                shown_bytes(mib[way] * 2**20), "MONAI 1.6 + argmax",
                shown_bytes(mib["monai"] * 2**20), mib["monai"] / mib[way], 2.0,
                note="activations of the network included",
            )
            for way in ("torch", "openvino")
        ]  # fmt: skip
    return rows


def air(rounds: int) -> list[Row]:
    """Windows of clipped air, computed once."""
    network = ways.network_of("tiny U-Net")
    engine, rows = ways.by_openvino(network), []
    for kind, target in (("corner", 4.0), ("centre", None)):
        image, passes = ways.scan(kind=kind), list[int]()

        def counted(window: torch.Tensor, passes: list[int] = passes) -> torch.Tensor:
            passes.append(len(window))
            return engine(window)

        run = {
            "monai": partial(ways.monai, network, image),
            "ours": partial(ways.kdpipe_labels, engine, image),
        }
        found = ways.kdpipe_labels(counted, image)
        seconds = in_turns(run, rounds)
        share = float((image == -1).float().mean())
        rows.append(
            Row(
                STAGE,
                f"empty windows computed once, body in the {kind}, {100 * share:.0f} % of the "
                f"voxels air, {sum(passes)} of 25 windows computed; openvino fp32",
                shown(seconds["ours"]), "MONAI 1.6 tuned", shown(seconds["monai"]),
                ratio(seconds, "ours", "monai"), target, equal=same(found, run["monai"]()),
            )
        )  # fmt: skip
    return rows


def malloc(rounds: int) -> list[Row]:
    """The same program with and without the setting of malloc, in processes that alternate."""
    rows = []
    for task, work, target in (
        ("forward", "one 96^3 window, tiny U-Net", 1.7),
        ("step", "a training step on one 96^3 patch, tiny U-Net", 1.5),
    ):
        seconds = processes(rounds, ours=((task,), True), theirs=((task,), False))
        rows.append(
            Row(
                STAGE, f"malloc keeps freed memory: {work}", shown(seconds["ours"]),
                "the same, KDPIPE_MALLOC=0", shown(seconds["theirs"]),
                ratio(seconds, "ours", "theirs"), target,
                note="each round the median of several passes",
            )
        )  # fmt: skip
    return rows


def restore(rounds: int) -> list[Row]:
    """Logits on the prepared grid to labels on the native one."""
    scores = ways.logits()
    run: dict[str, Callable[[], np.ndarray]] = {
        "ours": partial(ways.restored_by_kdpipe, scores),
        "theirs": partial(ways.restored_by_nnunet, scores),
    }
    equal = same(*(way() for way in run.values()))
    seconds = in_turns(run, rounds)
    # 45 GB/s: what two cores of the machine of the study copied at most
    limit = scores.nbytes / 45e9
    del scores, run
    mib = {way: worker("restore", way, tuned=False)["mib"] for way in ("kdpipe", "nnunet")}
    work = "logits to native labels, 14 classes, 273x273x300 to 512x512x150"
    peer = "nnU-Net 2.8, torch resampling + argmax"
    return [
        Row(
            STAGE, work, shown(seconds["ours"]), peer, shown(seconds["theirs"]),
            ratio(seconds, "ours", "theirs"), 30.0, f"{1000 * limit:.0f} ms to read them", equal,
        ),
        Row(
            STAGE, f"memory added by {work}", shown_bytes(mib["kdpipe"] * 2**20), peer,
            shown_bytes(mib["nnunet"] * 2**20), mib["nnunet"] / mib["kdpipe"], None,
            note=f"wanted: at most 100 MiB; {mib['kdpipe']:.0f}",
        ),
    ]  # fmt: skip


PARTS = {
    "windows": windows, "untuned": untuned, "memory": memory, "air": air, "malloc": malloc,
    "restore": restore,
}  # fmt: skip


def rows(rounds: int = 5) -> list[Row]:
    """All comparisons, or those that KDPIPE_BENCH names."""
    from kdpipe.engine.device import keep_freed_memory

    keep_freed_memory()
    chosen = os.environ.get("KDPIPE_BENCH", " ".join(PARTS)).split()
    return [row for name in chosen for row in PARTS[name](rounds)]


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    main(rows, ("openvino", "nnunetv2"))
