"""How long a job takes before it works: kdpipe's commands against those of MONAI and nnU-Net.

Usage: python bench/startup.py [--rounds 5] [--json FILE]

Each command is a process of its own, in turns; the first round, which fills the file cache, does
not count. "Ready to train" is what a training imports; reading its data comes after that.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

from side_by_side import Row, in_turns, main, ratio, shown

HELP = [sys.executable, "-m", "kdpipe", "--help"]
EVALUATE = [
    sys.executable,
    "-c",
    "import sys, kdpipe.commands.evaluation; assert 'torch' not in sys.modules",
]
TRAIN = [sys.executable, "-c", "import kdpipe.engine.train"]
BUNDLE = [sys.executable, "-m", "monai.bundle", "download", "--help"]
METRICS = [sys.executable, "-c", "import monai.metrics"]
NNUNET_PREDICT = [sys.executable, "-c", "import nnunetv2.inference.predict_from_raw_data"]
NNUNET_TRAIN = [sys.executable, "-c", "import nnunetv2.run.run_training"]


def _process(command: Sequence[str]) -> Callable[[], None]:
    def run() -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    return run


def rows(rounds: int = 5) -> list[Row]:
    """Each of kdpipe's commands beside what a user would start instead."""
    pairs = [
        ("kdpipe --help", HELP, "python -m monai.bundle", BUNDLE, "target: 0.3 s"),
        ("kdpipe --help", HELP, "nnU-Net's predictor, imported", NNUNET_PREDICT, ""),
        ("evaluate, imported; no torch", EVALUATE, "monai.metrics, imported", METRICS, ""),
        ("ready to train", TRAIN, "nnU-Net's run_training, imported", NNUNET_TRAIN, "target: 4 s"),
    ]
    ways = {" ".join(command): _process(command) for _, *two in pairs for command in two[::2]}
    seconds = in_turns(ways, rounds)
    return [
        Row(
            "start of a job", work, shown(seconds[" ".join(mine)]), peer,
            shown(seconds[" ".join(theirs)]), ratio(seconds, " ".join(mine), " ".join(theirs)),
            limit="0.02 s for Python itself", note=note,
        )
        for work, mine, peer, theirs, note in pairs
    ]  # fmt: skip


if __name__ == "__main__":
    main(rows, packages=("nnunetv2",))
