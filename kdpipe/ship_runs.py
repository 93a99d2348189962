"""The ``run.json`` of what the target ``ship`` does: the choice, the export, the cards.

Each holds what its stage depends on, so that a new sentence in a card exports nothing again.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from kdpipe.cards import Card, card_files, load_card
from kdpipe.composition import is_reading
from kdpipe.config import DatasetUse
from kdpipe.plan import Cell, Plan
from kdpipe.tuning import label

Run = dict[str, Any]
_Fold = tuple[str, str, int]


def ship_runs(plan: Plan) -> dict[str, Run]:
    """Return folder -> content of its ``run.json``, three for each data set, split and fold."""
    cells = defaultdict[_Fold, list[tuple[str, Cell]]](list)
    for path, cell in plan.cells.items():
        cells[cell.dataset.name, cell.split, cell.fold].append((path, cell))
    runs: dict[str, Run] = {}
    for use, split, fold in plan.folds():
        keys = {"dataset": use.name, "split": split, "fold": fold}
        folder = plan.paths.ship(plan.study.study, **keys)
        runs[folder] = _export_run(plan, use)
        runs[f"{folder}/choice"] = keys | _choice_run(plan, cells[use.name, split, fold])
        runs[f"{folder}/card"] = keys | _card_run(plan, use)
    return runs


def _choice_run(plan: Plan, cells: list[tuple[str, Cell]]) -> Run:
    """What a student is chosen from, and within which limits."""
    limits = plan.study.ship.model_dump(mode="json", exclude={"forms"})
    found: dict[str, list[Run]] = {"student": [], "teacher": []}
    for folder, cell in cells:
        facts = {"folder": folder, "profile": plan.profile_folder(cell), **cell.keys}
        found[cell.role].append(facts)
    return {"limits": limits, "students": found["student"], "teachers": found["teacher"]}


def _export_run(plan: Plan, use: DatasetUse) -> Run:
    """What the exported files say of themselves beside what ``model.pt`` holds."""
    card = plan.cards[use.name]
    return {
        "labels": card.labels.raw,
        "overlap": plan.study.inference.overlap,
        "forms": list(plan.study.ship.forms),
        "provenance": {
            "study": plan.study.study,
            "dataset": card.id,
            "dataset_title": card.title,
            "dataset_licence": card.licence.spdx,
        },
    }


def _card_run(plan: Plan, use: DatasetUse) -> Run:
    """What the cards say of the study and of its data."""
    study, protocol = plan.study, plan.study.evaluation.scored[0]
    readings = [m.label for m in study.methods if is_reading(m.name, m.params)]
    if study.budget:
        readings += [label(name, tuned=True) for name in readings]
    return {
        "study": study.study,
        "data": _data(plan, use),
        "protocol": protocol.model_dump(
            mode="json", include={"name", "version", "definition", "grid", "paper"}
        ),
        "overlap": study.inference.overlap,
        "confidence": study.statistics.confidence,
        "margin_percent": study.statistics.margin_percent,
        "budget": study.budget,
        "readings": readings,
    }


def _data(plan: Plan, use: DatasetUse) -> Run:
    card = plan.cards[use.name]
    return {
        **card.model_dump(
            mode="json", include={"title", "modality", "channels", "has_spacing", "quirks"}
        ),
        "generated": card.access.mode == "generate",
        "own": card.access.mode == "local",
        "labels": card.labels.raw,
        # a list: the order is that of the network's channels, and JSON's keys are sorted
        "regions": list(card.labels.regions.items()) if card.labels.region_ids else [],
        "source": card.source.model_dump(mode="json", exclude={"derived_from"}),
        "licences": [_licence(found) for found in _with_origin(plan, card)],
        "excluded": [entry.model_dump(mode="json") for entry in card.integrity.exclude],
        "waivers": [entry.model_dump(mode="json") for entry in card.integrity.waivers],
        "preset": plan.presets[use.name].model_dump(mode="json"),
        "preset_label": use.preset_label,
    }


def _with_origin(plan: Plan, card: Card) -> list[Card]:
    """A card, and that of the data set whose images these are."""
    origin = card.source.derived_from
    if origin is None or origin not in card_files(plan.study.cards):
        return [card]
    return [card, load_card(origin, plan.study.cards)]


def _licence(card: Card) -> Run:
    return {"title": card.title, "id": card.id, **card.licence.model_dump(mode="json")}
