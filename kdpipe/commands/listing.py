"""What there is: the catalogues for ``kdpipe list``, the machine for ``kdpipe doctor``."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdpipe import discover
from kdpipe.cards import card_files, load_card
from kdpipe.facts import method_facts, network_facts
from kdpipe.protocols import get_protocol, protocol_names
from kdpipe.provenance import environment
from kdpipe.resources import memory_of_machine
from kdpipe.yaml_files import load_yaml

_STUDIES = Path(__file__).parents[2] / "workflow" / "studies"


def catalogue(what: str, cards: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the entries of a catalogue, each with at least ``name`` and ``summary``."""
    if what == "methods":
        return [method_facts(name) for name in discover.names("methods")]
    if what == "nets":
        return [network_facts(name) for name in discover.names("nets")]
    if what == "datasets":
        return [_dataset(name, cards) for name in sorted(card_files(cards))]
    if what == "studies":
        return [
            {"name": file.stem, "summary": _first_sentence(file), "file": str(file)}
            for file in sorted(_STUDIES.glob("*.yaml"))
        ]
    return [_protocol(name) for name in protocol_names()]


def _protocol(name: str) -> dict[str, Any]:
    protocol = get_protocol(name)
    facts = protocol.model_dump(
        mode="json", include={"version", "grid", "distance_unit", "paper", "internal", "source"}
    )
    metrics = {
        metric.name: {"unit": protocol.unit(metric), "direction": protocol.direction(metric.name)}
        for metric in protocol.metrics
    }
    return {"name": name, "summary": protocol.definition, **facts, "metrics": metrics}


def _dataset(name: str, cards: Sequence[str]) -> dict[str, Any]:
    card = load_card(name, cards)
    return {
        "name": name,
        "summary": card.title,
        "modality": card.modality,
        "structures": card.labels.structures,
        "splits": sorted(card.splits),
        "presets": sorted(card.presets),
        "licence": card.licence.spdx,
        "access": card.access.mode,
    }


def _first_sentence(file: Path) -> str:
    """Of the comment that a study begins with; its name if there is none."""
    text = file.read_text(encoding="utf-8")
    comment = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    if said := " ".join(line.lstrip("# ") for line in comment):
        return said.partition(". ")[0].rstrip(".")
    return str((load_yaml(text) or {}).get("study", file.stem))


def diagnosis() -> dict[str, str]:
    """Return versions, processors, memory and GPUs, without importing torch."""
    return {
        **environment(),
        "processors": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory_of_machine() / 2**30:.1f} GiB",
        "gpus": _gpus(),
    }


def _gpus() -> str:
    if shutil.which("nvidia-smi") is None:
        return "none found (no nvidia-smi)"
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return "; ".join(answer.stdout.split("\n")[:-1]) or answer.stderr.strip()
