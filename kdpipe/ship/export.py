"""Write a trained network in other forms, each checked against it, in one folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from kdpipe.atomic import atomic_folder, check_replaceable, write_json, write_text
from kdpipe.data.manifest import Case
from kdpipe.discover import trained_files
from kdpipe.engine.device import processor
from kdpipe.errors import ConfigError, DataError
from kdpipe.infer.description import Description
from kdpipe.infer.model import TrainedModel, load_model
from kdpipe.json_files import read_object
from kdpipe.provenance import environment, file_digest
from kdpipe.ship import parity
from kdpipe.ship.forms import load_form
from kdpipe.ship.measured import size_of
from kdpipe.ship.raw import check_raw
from kdpipe.ship.reading import DESCRIPTION, MODEL, read_network
from kdpipe.ship.speed import REPEATS, latencies
from kdpipe.ship.windows import draw_windows

log = logging.getLogger(__name__)

PARITY = "parity.json"
_DECIDING = ("preset", "channels")
"""What of a preparation an image depends on."""
_CALIBRATION_WINDOWS, _CALIBRATION_CASES = 32, 16


def export(
    model: Path,
    prepared: Path,
    split: Mapping[str, Any],
    out: Path,
    forms: Sequence[str],
    labels: Mapping[int, str] | None = None,
    overlap: float = 0.5,
    provenance: Mapping[str, Any] | None = None,
    raw: Sequence[Case] = (),
) -> None:
    """Write the folder `out`: ``model.pt``, the forms, ``description.json``, ``parity.json``.

    Args:
        model: a ``model.pt``.
        prepared: folder that ``prepare`` wrote, of the images that it was trained on.
        split: case ids; those to train with calibrate the form in 8 bits, up to three of those to
            validate check all forms.
        out: folder to write; it appears as a whole, and replaces an old export.
        forms: of `kdpipe.ship.forms.FORMS`.
        labels: label id -> name, background included; None: as in the model.
        overlap: of windows, in the check and wherever the network will be used.
        provenance: of the description, see there.
        raw: cases with their raw files. With one to validate, a bundle is run on it by MONAI.

    Raises:
        ConfigError: `out` holds something else; there is no such model or form; the prepared
            images are not the model's; the network cannot have a form; a package is missing.
        DataError: the model or a case is damaged, or a form does not give what the model gives.
    """
    check_replaceable(out, lambda names: PARITY in names)
    writers = {name: load_form(name) for name in dict.fromkeys(forms)}
    trained = _trained(model)
    _check_prepared(trained, prepared)
    description = _description(trained, model, labels, overlap, provenance or {})
    store = prepared / "cases"
    held_out = [case for case in raw if case.case in split["val"]]
    reference = parity.Reference.of(trained.network, description, store, split["val"])
    calibration = [
        window.image
        for window in draw_windows(
            store, split["train"], description, _CALIBRATION_WINDOWS, _CALIBRATION_CASES
        )
    ]
    with atomic_folder(out) as folder:
        shutil.copyfile(model, folder / MODEL)
        write_text(folder / DESCRIPTION, description.to_json() + "\n")
        checked = {}
        for name, form in writers.items():
            log.info("export: writing %s", form.FILE)
            form.write(trained, description, folder / form.FILE, calibration)
            path = folder / form.FILE
            checked[name] = _checked(name, path, description, reference)
            checked[name] |= check_raw(form, path, trained.network, description, held_out)
        files = {name: form.FILE for name, form in writers.items()}
        times = latencies(folder, files, reference.windows[0].image)
        facts = {
            name: {"file": files[name], "bytes": size_of(folder / files[name])}
            | checked[name]
            | times[name]
            for name in files
        }
        write_json(folder / PARITY, _summary(model, reference, facts))
    for name, found in facts.items():
        log.info("export: %s", _in_words(name, found))


def _trained(model: Path) -> TrainedModel:
    if not model.is_file():
        raise ConfigError(f"{model} is not there; give the model.pt of a trained network")
    trained = load_model(model)
    spec = trained.run["network"]
    if trained_files(spec["name"], spec["params"]):
        raise ConfigError(
            f"{model} holds no weights: it names files of another project ({spec['name']}), which "
            "are a network to ship already; export a network that kdpipe has trained"
        )
    return trained


def _check_prepared(trained: TrainedModel, prepared: Path) -> None:
    run = read_object(prepared / "run.json", *_DECIDING)
    for key in _DECIDING:
        if run[key] != trained.preparation.get(key):
            raise ConfigError(
                f"{prepared} was prepared with the {key} {run[key]}, the network was trained "
                f"with {trained.preparation.get(key)}: give the folder that it was trained on"
            )


def _description(
    trained: TrainedModel,
    model: Path,
    labels: Mapping[int, str] | None,
    overlap: float,
    provenance: Mapping[str, Any],
) -> Description:
    own = Description.of_run(trained.run, trained.preparation, None, overlap)
    if labels is not None:
        named = {int(index): name for index, name in labels.items()}
        if named.keys() != own.labels.keys():
            raise ConfigError(
                f"names are given for the label ids {sorted(named)}, the network in {model} has "
                f"{sorted(own.labels)}: name each of them"
            )
        own = replace(own, labels=named)
    facts = {
        "model_sha256": file_digest(model),
        "versions": environment() | _converters(),
        **provenance,
    }
    return replace(own, provenance={**own.provenance, **facts})


def _checked(
    form: str, path: Path, description: Description, reference: parity.Reference
) -> dict[str, Any]:
    loaded = read_network(path, "auto", torch.device("cpu"))
    if loaded.description.to_json() != description.to_json():
        raise DataError(
            f"form {form!r}: {path.name} has another description than was written; nothing was "
            "written"
        )
    facts = reference.compare(loaded.network, loaded.window_batch, limited=form not in parity.ROUGH)
    parity.check(form, facts)
    return facts


def _summary(model: Path, reference: parity.Reference, forms: dict[str, Any]) -> dict[str, Any]:
    scores = list(reference.dice.values())
    return {
        "format": 1,
        "reference": {
            "file": MODEL,
            "bytes": size_of(model),
            "sha256": file_digest(model),
            "dice": sum(scores) / len(scores),
            "cases": reference.dice,
            "windows": len(reference.windows),
        },
        "limits": {
            "largest_difference": parity.LOGITS,
            "same_labels": parity.LABELS,
            "without": list(parity.ROUGH),
        },
        "timing": {
            "threads": 1,
            "repeats": REPEATS,
            "window": list(reference.description.window),
            "processor": processor(),
        },
        "forms": forms,
        "environment": environment() | _converters(),
    }


def _in_words(form: str, facts: Mapping[str, Any]) -> str:
    return (
        f"{form}: {facts['bytes'] / 1e6:.2f} MB, logits differ by at most "
        f"{facts['largest_difference']:.2g}, {facts['same_labels']:.6f} of the labels are the "
        f"same, Dice {100 * facts['dice']:.2f} % (loss {100 * facts['dice_loss']:.2f}), "
        f"{facts['latency_ms']:.1f} ms a window (torch {facts['torch_latency_ms']:.1f} ms)"
    )


def _converters() -> dict[str, str]:
    """Versions of the packages that write forms, where they are installed."""
    found = {}
    for package in ("onnx", "onnxscript", "onnxruntime"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
