"""The ``run.json`` of each stage of a study.

Each holds all settings that its stage depends on and nothing else, so that a change of the
configuration reruns exactly the stages that it touches.
"""

from __future__ import annotations

from typing import Any

from kdpipe import discover
from kdpipe.cards import card_files
from kdpipe.composition import check_method, is_reading
from kdpipe.config import DatasetUse, Entry
from kdpipe.plan import Cell, Plan
from kdpipe.provenance import file_digest
from kdpipe.rules import Rules
from kdpipe.ship_runs import ship_runs
from kdpipe.splits import ImportedSplit
from kdpipe.tuning import label, settings_of, with_settings

Run = dict[str, Any]


def run_files(plan: Plan) -> dict[str, Run]:
    """Return path -> content of every ``run.json`` of the study."""
    runs: dict[str, Run] = {}
    paths = plan.paths
    for use in plan.study.datasets:
        runs[paths.raw(use.name)] = _fetch_run(plan, use)
        runs[plan.prepared_of(use.name)] = _prepare_run(plan, use)
        runs[f"{plan.prepared_of(use.name)}/names"] = {"names": plan.cards[use.name].labels.raw}
        runs[paths.stage(use.name, "predict")] = _predict_run(plan)
        runs[paths.stage(use.name, "evaluate")] = _evaluate_run(plan, use)
    for use, split, fold in plan.folds():
        folder = paths.fold(dataset=use.name, split=split, fold=fold)
        runs[folder] = _split_run(plan, use, split, fold)
    for folder, cell in (plan.cells | plan.trials).items():
        runs[folder] = _train_run(plan, cell)
    for folder, cell in plan.choices.items():
        runs[folder] = _choose_run(plan, cell)
    for folder, cell in plan.profiles.items():
        runs[folder] = _profile_run(plan, cell)
    runs[paths.tables(plan.study.study)] = _study_run(plan)
    runs |= ship_runs(plan)
    return {f"{folder}/run.json": run for folder, run in runs.items()}


def _fetch_run(plan: Plan, use: DatasetUse) -> Run:
    card = plan.cards[use.name]
    run = card.model_dump(mode="json", include={"id", "channels", "access", "generator", "layout"})
    labels = card.labels
    if card.generator is not None or card.layout.masks:  # the others do not depend on names
        run["structures"] = labels.structures
    return run | {
        "ids": {
            "n_labels": len(labels.raw),
            **labels.model_dump(mode="json", include={"remap", "unlisted", "palette"}),
        },
        "files": [file.model_dump(mode="json") for file in plan.intake.files(use.name)],
        "accept_checksum": use.name in plan.study.accept_checksum,
        "source": plan.study.data_source.get(use.name),
    }


def _prepare_run(plan: Plan, use: DatasetUse) -> Run:
    """Labels go by their ids: a new name of a structure changes no prepared image."""
    card, preset = plan.cards[use.name], plan.presets[use.name]
    absent = card.labels.may_be_absent
    ids = card.labels.structures
    return {
        "dataset": use.name,
        "channels": list(card.channels),
        "labels": {
            "raw": {
                index: f"label_{index}" if index else "background" for index in card.labels.raw
            },
            "may_be_absent": absent if absent == "all" else [f"label_{ids[n]}" for n in absent],
        },
        "preset": preset.preparation.model_dump(mode="json"),
        # of the data set as a whole; a change checks again and prepares no image again
        "rules": Rules.of(card, preset.patch).model_dump(mode="json", exclude={"names"}),
    }


def _split_run(plan: Plan, use: DatasetUse, split: str, fold: int) -> Run:
    """An edit of the file of an imported split changes the run; the note of a rule does not."""
    rule = plan.cards[use.name].split(split)
    settings = rule.model_dump(mode="json", exclude={"note"})
    waivers = [waiver.model_dump(mode="json") for waiver in plan.cards[use.name].integrity.waivers]
    run = {"dataset": use.name, "split": split, "fold": fold, "rule": settings, "waivers": waivers}
    if isinstance(rule, ImportedSplit):
        file = rule.path(card_files(plan.study.cards)[use.name])
        run["file"] = {"path": str(file), "sha256": file_digest(file)}
    return run


def _train_run(plan: Plan, cell: Cell) -> Run:
    labels = plan.cards[cell.dataset.name].labels
    method = cell.method or Entry(name="none")
    recipe = getattr(plan.study.training, cell.role).model_dump(mode="json")
    run = {
        "cell": cell.keys,
        "network": _network(plan, cell),
        "targets": {"n_labels": len(labels.raw), "regions": labels.region_ids},
        "patch": list(plan.presets[cell.dataset.name].patch),
    }
    if cell.adopted:  # it is validated, not trained
        wanted = ("validation_overlap", "precision")
        return run | {"adopt": {name: recipe[name] for name in wanted}}
    run |= {
        "method": {"name": method.name, "params": check_method(method.name, method.params)},
        "training": recipe,
    }
    if cell.tuned:  # its settings come from choice.json
        return run | {"tuned": True}
    return with_settings(run, _settings_of(plan, cell, cell.trial)) if cell.trial else run


def _choose_run(plan: Plan, cell: Cell) -> Run:
    """The settings of all trials: the choice hands those of the best one to the tuned cells."""
    trials = [_settings_of(plan, cell, trial) for trial in range(plan.study.budget)]
    return {"arm": cell.keys["method"], "trials": trials}


def _settings_of(plan: Plan, cell: Cell, trial: int) -> Run:
    recipe = plan.study.training.student
    has_terms = cell.method is not None and cell.method.name != "none"
    return settings_of(trial, recipe.learning_rate, plan.study.search, has_terms)


def _profile_run(plan: Plan, cell: Cell) -> Run:
    settings = plan.study.profile.model_dump(mode="json")
    patch = list(plan.presets[cell.dataset.name].patch)
    network = _network(plan, cell)
    network.pop("weights", None)  # which cost the same, whatever their values
    return {"network": network, "patch": patch, **settings}


def _network(plan: Plan, cell: Cell) -> Run:
    card, network = plan.cards[cell.dataset.name], cell.network
    spec = {
        "name": network.name,
        "params": discover.check_params("nets", network.name, network.params),
        "in_channels": len(card.channels),
        "out_channels": card.labels.n_channels,
    }
    return spec | {"weights": network.weights} if network.weights else spec


def _predict_run(plan: Plan) -> Run:
    """Predictions on the prepared grid are asked for where needed: others need not be redone."""
    run = plan.study.inference.model_dump(mode="json")
    return run | {"prepared": True} if plan.study.evaluation.on_prepared_grid else run


def _evaluate_run(plan: Plan, use: DatasetUse) -> Run:
    card = plan.cards[use.name]
    return {
        "dataset": use.name,
        "structures": {name: list(ids) for name, ids in card.labels.scored.items()},
        "protocols": [p.scoring.model_dump(mode="json") for p in plan.study.evaluation.scored],
        "tolerances_mm": card.metrics.tolerances_of(card.labels.scored),
        "has_spacing": card.has_spacing,
    }


def _study_run(plan: Plan) -> Run:
    """All that tables, statistics, figures and report know of a study besides its results."""
    study = plan.study
    cells = [
        {"folder": folder, "profile": plan.profile_folder(cell), **cell.keys}
        for folder, cell in plan.cells.items()
    ]
    readings = [m.label for m in study.methods if is_reading(m.name, m.params)]
    entries = {
        axis: {
            entry.label: {"name": entry.name, "params": entry.params}
            for entry in getattr(study, axis)
        }
        for axis in ("teachers", "students", "methods")
    }
    if study.budget:
        readings += [label(reading, tuned=True) for reading in readings]
        entries["methods"] |= {
            label(name, tuned=True): entry for name, entry in entries["methods"].items()
        }
    return {
        "study": study.study,
        "cells": cells,
        "readings": readings,
        "entries": entries,
        "datasets": {use.name: _dataset_facts(plan, use) for use in study.datasets},
        "protocols": list(study.evaluation.protocols),
        "definitions": {
            protocol.name: protocol.model_dump(mode="json", exclude={"name", "metrics"})
            for protocol in study.evaluation.scored
        },
        "statistics": study.statistics.model_dump(mode="json"),
        "training": study.training.model_dump(mode="json"),
        "budget": study.budget,
        "search": study.search.model_dump(mode="json") if study.budget else {},
    }


def _dataset_facts(plan: Plan, use: DatasetUse) -> Run:
    card, paths = plan.cards[use.name], plan.paths
    return {
        "title": card.title,
        "modality": card.modality,
        "licence": card.licence.spdx,
        "channels": list(card.channels),
        "structures": {name: list(ids) for name, ids in card.labels.scored.items()},
        "has_spacing": card.has_spacing,
        "tolerances_mm": card.metrics.tolerances_of(card.labels.scored),
        "intensity": plan.presets[use.name].model_dump(mode="json")["intensity"],
        "preset": use.preset_label,
        "patch": list(plan.presets[use.name].patch),
        "manifest": f"{paths.raw(use.name)}/manifest.tsv",
        "prepared": plan.prepared_of(use.name),
    }
