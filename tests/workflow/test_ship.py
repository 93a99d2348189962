"""The target ship: one student of each split leaves its study, and no other one is exported."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from checkouts import FAKE_CLI, Checkout

CONFIG = """
study: tiny
cards: [cards]
data_source: {mine: source}
datasets: [mine]
teachers: [segresnet]
students: [unet_tiny]
methods: [none, kd, cwd]
seeds: [0]
ship: {forms: [onnx]}
"""
SHIP = "results/mine/default/fold0/ship/tiny"
STUDENTS = "results/mine/default/fold0/students"

#: trains what depends on the code, chooses the method in wanted.txt, and takes only real options
CLI = (
    FAKE_CLI.replace("def main():", "def other_stages():")
    + """

def main():
    from kdpipe.real_cli import build_parser

    stage, *rest = sys.argv[1:]
    build_parser().parse_args(sys.argv[1:])
    given = {flag: value for flag, value in zip(rest, rest[1:]) if flag.startswith("--")}
    out = Path(given.get("--out", given.get("--model", "")))
    if stage == "choose-student":
        run = json.loads(Path(given["--run"]).read_text())
        seen = [Path(c["folder"], "model.json").read_text() for c in run["students"]]
        wanted = Path("wanted.txt").read_text()
        chosen = next(cell for cell in run["students"] if cell["method"] == wanted)
        choice = {"seen": seen, "chosen": chosen, "teacher": run["teachers"][0]}
        out.write_text(json.dumps(choice))
    elif stage == "export":
        out.mkdir()
        (out / "exported").write_text(Path(given["--model"]).read_text())
    elif stage == "model-card":
        out.write_text("card")
        Path(given["--cost"]).write_text("cost")
    else:
        other_stages()
        if stage == "distill":
            for file in (out, out.with_name("model.json")):
                file.write_text(f"{file} by {given['--code']}")
    return 0
"""
)


class Shipping(Checkout):
    """A checkout whose study was run to the end of the target ship."""

    def __init__(self, folder: Path, root: Path):
        super().__init__(folder, root, CONFIG)
        self.write("kdpipe/real_cli.py", (root / "kdpipe/cli.py").read_text())
        self.write("kdpipe/cli.py", CLI)
        self.write("wanted.txt", "kd")
        self.snakemake("ship")

    def jobs(self, *arguments: str) -> set[str]:
        """Rules of the jobs that are run, or planned."""
        text = self.snakemake(*arguments, "ship")
        found = re.findall(r"^(?:local)?(?:rule|checkpoint) (\w+):$", text, re.M)
        return set(found) - {"ship"}

    def planned(self, *targets: str) -> set[str]:
        """Rules of the jobs that a dry run plans."""
        return self.jobs("--dry-run", *targets)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Shipping:
    return Shipping(tmp_path_factory.mktemp("shipping") / "study", root)


def edit(file: str, old: str, new: str) -> Callable[[Checkout], None]:
    return lambda checkout: checkout.replace(file, old, new)


#: until a checkpoint has run again, Snakemake plans all that may follow from it
AFTER_CHOICE = {"choose_student", "export", "model_card"}
CASES: dict[str, tuple[Callable[[Checkout], None], set[str]]] = {
    "the choice": (edit("kdpipe/ship/choice.py", "import math", "import os, math"), AFTER_CHOICE),
    "the export": (
        edit("kdpipe/ship/export.py", "import shutil", "import os, shutil"),
        {"export", "model_card"},
    ),
    "a form": (
        edit("kdpipe/ship/forms/onnx.py", "from __future__", "import os\nfrom __future__"),
        {"export", "model_card"},
    ),
    "a form that is not asked for": (
        edit("kdpipe/ship/forms/int8.py", "from __future__", "import os\nfrom __future__"),
        set(),
    ),
    "a sentence of the card": (
        edit("kdpipe/templates/model_card.md.j2", "Research only", "Only research"),
        {"model_card"},
    ),
    "what is known of the data": (
        edit("cards/mine.yaml", "splits:", "quirks: [odd]\nsplits:"),
        {"configure", "model_card"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_one_edit_reruns_what_it_touches(checkout: Shipping, name: str) -> None:
    change, expected = CASES[name]
    assert checkout.planned_after(change) == expected


@pytest.mark.slow
def test_only_another_choice_or_another_training_of_it_exports_again(checkout: Shipping) -> None:
    exported = checkout.folder / SHIP / "export/exported"
    first = exported.read_text()
    assert first.startswith(f"{STUDENTS}/segresnet/unet_tiny/kd/seed0/model.pt by ")
    before = exported.stat().st_mtime_ns

    checkout.replace("kdpipe/methods/cwd.py", "dim=2).mean()", "dim=2).sum()")
    again = checkout.jobs()
    assert {"distill", "choose_student", "model_card"} <= again and "export" not in again
    assert exported.stat().st_mtime_ns == before
    assert checkout.jobs("--dry-run") == set()

    checkout.replace("kdpipe/methods/kd.py", "return ", "return 2 * ")
    assert {"distill", "choose_student", "export", "model_card"} <= checkout.jobs()
    assert exported.read_text() != first

    checkout.write("wanted.txt", "cwd")
    checkout.replace("config.yaml", "forms: [onnx]", "forms: [onnx], max_parameters: 5")
    again = checkout.jobs()
    assert again == {"configure", "choose_student", "export", "model_card"}
    assert exported.read_text().startswith(f"{STUDENTS}/segresnet/unet_tiny/cwd/seed0/model.pt")
