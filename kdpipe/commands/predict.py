"""What ``kdpipe predict`` runs: the test cases of a study, or raw scans."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpipe.errors import ConfigError, DataError
from kdpipe.json_files import read_object

if TYPE_CHECKING:
    import torch

    from kdpipe.scans.batch import Segmenter
    from kdpipe.ship.reading import Loaded

log = logging.getLogger(__name__)
REPORT = "report.json"
_GRAPH = ("run", "prepared", "split")


def run_predict(given: argparse.Namespace) -> None:
    """Segment the test cases of a split, or scans."""
    graph = [name for name in _GRAPH if getattr(given, name) is not None]
    if not graph:
        _segment_scans(given)
    elif given.scans or len(graph) < len(_GRAPH):
        raise ConfigError("--run, --prepared and --split go together, and without scans")
    else:
        _predict_cases(given)


def _predict_cases(given: argparse.Namespace) -> None:
    from kdpipe.data.splits.split import read_split
    from kdpipe.engine.device import keep_freed_memory, pick_device
    from kdpipe.engine.slots import gpu_slot
    from kdpipe.infer.predict import predict_cases
    from kdpipe.settings import Inference

    keep_freed_memory()
    run = read_object(given.run, "overlap", "window_batch")
    on_prepared_grid = run.pop("prepared", False)
    split = read_split(given.split)
    with gpu_slot():
        predict_cases(
            model=given.model,
            store=given.prepared / "cases",
            cases=split["test"],
            settings=Inference.model_validate(run),
            out=given.out,
            device=pick_device(),
            on_prepared_grid=on_prepared_grid,
            checked=split["val"],
        )


def _segment_scans(given: argparse.Namespace) -> None:
    from kdpipe.scans.find import check_paths, find_scans

    check_paths(given.scans)
    _check_options(given)
    _check_places(given)

    from kdpipe.scans.batch import out_files, segment_scans
    from kdpipe.scans.report import Report, begun_before, done_before, earlier_entries
    from kdpipe.ship.reading import read_network

    with _device(given) as device:
        loaded = read_network(given.model, given.backend, device)
        segmenter = _segmenter(given, loaded, device)
        scans = find_scans(given.scans, len(loaded.description.channels))
        out = out_files(scans, given.out, given.suffix)
        file = given.report or given.out / REPORT
        facts = _facts(given, loaded, segmenter)
        entries = earlier_entries(file, facts) if given.continues else {}
        begun = begun_before(entries, scans, out)
        kept = done_before(begun, scans, out)
        todo = [scan for scan in scans if scan.name not in kept]
        if not given.overwrite:  # what a run that was killed has left may be replaced
            unknown = [out[scan.name] for scan in todo if scan.name not in begun]
            _refuse_existing(unknown, given.continues)
        if kept:
            log.info("%d of %d scans are done already", len(kept), len(scans))
        report = Report(file, facts, scans, out, kept)
        try:
            segment_scans(todo, segmenter, out, report)
        except BaseException:  # a signal too
            if report.done:
                log.warning(
                    "%d of %d scans are done; with --continue they are kept",
                    report.done,
                    len(scans),
                )
            raise
    if report.failed:
        lines = "\n".join(f"  {name}: {error}" for name, error in report.failed.items())
        raise DataError(
            f"{len(report.failed)} of {len(scans)} scans could not be segmented, the others are "
            f"done ({file}):\n{lines}"
        )


def _check_options(given: argparse.Namespace) -> None:
    if given.overlap is not None and not 0 <= given.overlap < 1:
        raise ConfigError(f"--overlap {given.overlap}: a share in [0, 1) is expected")
    for name in ("window_batch", "threads"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: at least 1 is expected")
    if given.backend == "openvino" and given.window_batch not in (None, 1):
        raise ConfigError("--backend openvino takes windows one by one; leave --window-batch out")
    if given.continues and given.overwrite:
        raise ConfigError("--continue and --overwrite exclude one another")


def _check_places(given: argparse.Namespace) -> None:
    """Refuse to write where a scan may lie, or where nothing can."""
    above = next(place for place in (given.out, *given.out.parents) if os.path.exists(place))
    if not above.is_dir():
        raise ConfigError(f"--out {given.out}: {above} is a file, a folder is expected")
    if given.out.resolve() in {path.resolve() for path in given.scans}:
        raise ConfigError(
            f"--out {given.out} is the folder of the scans: its label maps would be taken for "
            "scans the next time; name another folder"
        )
    if given.report and (given.report.suffix != ".json" or given.report.is_dir()):
        raise ConfigError(f"--report {given.report}: the name of a file that ends with .json")


@contextlib.contextmanager
def _device(given: argparse.Namespace) -> Iterator[torch.device]:
    """Set the number of threads, and hold a GPU if one is to be used."""
    import torch

    from kdpipe.engine.device import pick_device
    from kdpipe.engine.slots import gpu_slot
    from kdpipe.scans.batch import use_threads

    if given.threads is not None:
        use_threads(given.threads)
    if given.backend == "openvino" and given.device == "cuda":
        raise ConfigError("--backend openvino runs on a CPU; leave --device cuda out")
    if given.device == "cpu" or given.backend == "openvino":
        yield torch.device("cpu")
        return
    with gpu_slot():
        device = pick_device()
        if given.device == "cuda" and device.type != "cuda":
            raise ConfigError("--device cuda: torch finds no GPU here; use --device cpu")
        yield device


def _segmenter(given: argparse.Namespace, loaded: Loaded, device: torch.device) -> Segmenter:
    from kdpipe.scans.batch import Segmenter
    from kdpipe.scans.components import cleanups

    description = loaded.description
    wanted = given.largest_component
    return Segmenter(
        network=loaded.network,
        description=description,
        device=device,
        overlap=description.overlap if given.overlap is None else given.overlap,
        window_batch=loaded.window_batch if given.window_batch is None else given.window_batch,
        frugal=given.window_batch is None and device.type == "cpu",
        cleanup=() if wanted is None else cleanups(description.decoded, description.labels, wanted),
    )


def _refuse_existing(files: list[Path], continues: bool) -> None:
    there = [str(file) for file in files if os.path.exists(file)]
    if not there:
        return
    more = f" and {len(there) - 1} more" if len(there) > 1 else ""
    if continues:
        why = "its report does not say that they are of these scans; use --overwrite"
    else:
        why = "use --continue to keep what is done, --overwrite to make it again"
    raise ConfigError(f"{there[0]}{more}: there already; {why}, or name another --out")


def _facts(given: argparse.Namespace, loaded: Loaded, segmenter: Segmenter) -> dict[str, Any]:
    """Return what the report says of the run as a whole, as JSON gives it back."""
    import json

    import torch

    from kdpipe.engine.device import processor
    from kdpipe.provenance import environment

    device = segmenter.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "model": {
            "file": str(given.model),
            "form": loaded.form,
            "sha256": _digest(given.model),
            "description": json.loads(segmenter.description.to_json()),
        },
        "settings": {
            "overlap": segmenter.overlap,
            "largest_component": [cleanup.name for cleanup in segmenter.cleanup],
            "suffix": given.suffix,
        },
        "backend": given.backend,
        "window_batch": segmenter.window_batch,
        "device": {"type": device.type, "name": name, "threads": torch.get_num_threads()},
        "versions": environment(),
    }


def _digest(model: Path) -> str:
    """Return the SHA-256 of a file, or of the names and digests of all files of a folder."""
    from kdpipe.provenance import digest, file_digest

    if model.is_file():
        return file_digest(model)
    files = sorted(file for file in model.rglob("*") if file.is_file())
    return digest(*([file.relative_to(model).as_posix(), file_digest(file)] for file in files))
