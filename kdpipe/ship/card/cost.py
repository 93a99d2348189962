"""What the chosen student costs, beside its teacher: ``cost.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdpipe.discover import trained_files
from kdpipe.ship.measured import COSTS, Facts, read_costs, read_facts, size_of

#: what the ratios are of: the costs of a window, and the weights on the disk
RATIOS = (*COSTS, "bytes")
_EXPORTED = (
    "latency_ms",
    "torch_latency_ms",
    "largest_difference",
    "same_labels",
    "dice_loss",
)


def cost_card(choice: Facts, export: Path) -> dict[str, Any]:
    """Return what student and teacher cost, the ratios, and the size of each exported form.

    Args:
        choice: the content of ``choice.json``.
        export: folder that ``kdpipe export`` wrote.

    Returns:
        ``student`` and ``teacher``, each with ``network``, ``bytes`` (of its weights on the disk,
        None where they have moved),
        ``parameters``, ``macs``, ``cpu_ms``, ``cpu_mb``, ``gpu_ms``, ``gpu_mb`` (of one window,
        None where not measured) and ``training_seconds``; ``ratios``: teacher to student;
        ``window``: its patch and the machine; ``forms``: file in the export folder -> ``bytes``,
        and what the export measured: ``latency_ms``, ``torch_latency_ms`` beside it,
        ``largest_difference``, ``same_labels`` and ``dice_loss``.

    Raises:
        DataError: a file of a cell, a profile or the export cannot be read.
    """
    student, teacher = (_of_cell(choice[role]) for role in ("chosen", "teacher"))
    return {
        "student": student,
        "teacher": teacher,
        "ratios": {name: _ratio(teacher[name], student[name]) for name in RATIOS},
        "window": _window(read_facts(Path(choice["chosen"]["profile"]) / "profile.json", "cpu")),
        "forms": _forms(read_facts(export / "parity.json", "reference", "forms")),
    }


def _forms(parity: Facts) -> dict[str, dict[str, Any]]:
    reference = parity["reference"]
    found = {reference["file"]: {"bytes": reference["bytes"]}}
    for facts in parity["forms"].values():
        found[facts["file"]] = {name: facts[name] for name in ("bytes", *_EXPORTED)}
    return found


def _of_cell(cell: Facts) -> dict[str, Any]:
    facts = read_facts(Path(cell["folder"]) / "model.json", "validation_dice")
    return {
        "network": cell["student"] or cell["teacher"],
        **read_costs(Path(cell["profile"])),
        "bytes": _weights(Path(cell["folder"])),
        "training_seconds": facts.get("seconds"),
    }


def _weights(folder: Path) -> int | None:
    """Bytes of ``model.pt``, or of the files that it names instead of holding their weights."""
    spec = read_facts(folder / "run.json", "network")["network"]
    files = trained_files(spec["name"], spec["params"]) or [folder / "model.pt"]
    there = all(file.is_file() for file in files)
    return sum(map(size_of, files)) if there else None


def _window(costs: Facts) -> dict[str, Any]:
    on_cpu, on_gpu = costs["cpu"], costs.get("cuda") or {}
    return {
        "patch": costs.get("patch", []),
        "threads": on_cpu.get("threads"),
        "processor": on_cpu.get("processor"),
        "gpu": on_gpu.get("device"),
    }


def _ratio(teacher: float | None, student: float | None) -> float | None:
    return teacher / student if teacher is not None and student else None
