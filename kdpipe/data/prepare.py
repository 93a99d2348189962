"""Prepare a data set: check, orient, resample, scale, crop and store every case.

Each case is stored as a whole or not at all and knows the digest of what it was made from, so a
second run does only what is missing or has changed. Equal data give equal files: no times, no
absolute paths, nothing that depends on the number of workers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import SimpleITK as sitk

from kdpipe.atomic import atomic_path, write_json
from kdpipe.data.fingerprint import describe, intensity_under
from kdpipe.data.geometry import Grid, to_array
from kdpipe.data.integrity import check_case, read_case
from kdpipe.data.preprocess import prepare_images, prepare_label
from kdpipe.data.store import (
    StoredCase,
    is_complete,
    remove_stale,
    sample_foreground,
    write_case,
)
from kdpipe.errors import ConfigError, DataError
from kdpipe.labels import Labels
from kdpipe.presets import Preparation
from kdpipe.progress import ProgressReport

if TYPE_CHECKING:
    from kdpipe.data.layout import Case

log = logging.getLogger(__name__)

_WORKER_MB = 200
"""Memory of a worker before it reads anything: Python, numpy, SimpleITK."""


def prepare(
    manifest_cases: Sequence[Case],
    preset: Preparation,
    labels: Labels,
    channels: Sequence[str],
    store: Path,
    cases_tsv: Path,
    fingerprint: Path,
    digest: str,
    workers: int,
    memory_mb: int | None,
) -> None:
    """Prepare all cases of a data set into `store`, then write the two tables.

    Args:
        manifest_cases: what the data set consists of; a stored case that is not there any more
            is deleted.
        preset: how images are prepared.
        labels: ids and names, and which structures a case may lack.
        channels: names of the image channels.
        store: folder of the prepared cases, see `kdpipe.data.store`.
        cases_tsv: one row a case; written last, so that it vouches for the store.
        fingerprint: JSON with the data set's ranges, intensities and class frequencies.
        digest: of everything but the images that decides the result (preset, labels, code).
        workers: processes; fewer are used where the memory does not suffice for all.
        memory_mb: memory for all workers, MB; None takes that of the machine.

    Raises:
        ConfigError: for more classes than a stored label (uint8) can hold.
        DataError: after all other cases are done, names every bad case; neither table exists then.
    """
    if len(labels.raw) > 256:
        raise ConfigError(f"labels.raw has {len(labels.raw)} ids, at most 256 can be stored")
    cases = sorted(manifest_cases, key=lambda case: case.case)
    _check_manifest(cases)
    for table in (cases_tsv, fingerprint):
        table.unlink(missing_ok=True)
    for name in remove_stale(store, {case.case for case in cases}):
        log.info("removed case %s, which is no longer in the data set", name)
    digests = {case.case: case_digest(case, digest) for case in cases}
    todo = [case for case in cases if _stored_digest(store / case.case) != digests[case.case]]
    if len(todo) < len(cases):
        log.info("%d of %d cases are prepared already", len(cases) - len(todo), len(cases))
    arguments = [(case, preset, labels, channels, store, digests[case.case]) for case in todo]
    _prepare_all(arguments, affordable_workers(todo, preset, workers, memory_mb))
    geometries = {case.case: StoredCase(store / case.case).geometry for case in cases}
    write_json(fingerprint, describe(list(geometries.values()), labels, channels))
    _write_table(cases_tsv, cases, geometries, labels)


def case_digest(case: Case, digest: str) -> str:
    """Return the digest that a stored case must have to be used again."""
    return hashlib.sha256(f"{case.sha256}\n{digest}".encode()).hexdigest()


def prepare_case(
    case: Case,
    preset: Preparation,
    labels: Labels,
    channels: Sequence[str],
    store: Path,
    digest: str,
) -> None:
    """Check, prepare and store one case; `digest` is kept in its `geometry.json`.

    Raises:
        DataError: if the case fails a check; nothing is stored then.
    """
    images, label = read_case(case)
    warnings = check_case(case, images, label, labels, channels)
    try:
        image, geometry = prepare_images(images, preset)
    except DataError as error:
        raise DataError(f"case {case.case!r}, {case.images[0]}: {error}") from None
    prepared_label = prepare_label(label, geometry)
    voxels = np.bincount(prepared_label.ravel(), minlength=len(labels.raw)).tolist()
    native_ids = np.unique(to_array(label)).astype(int).tolist()
    lost = [name for name, i in labels.structures.items() if i in native_ids and not voxels[i]]
    warnings += [f"{name} is lost by the preparation" for name in lost]
    geometry |= {
        "digest": digest,
        "voxels_per_class": voxels,
        "native_intensity": [intensity_under(channel, label) for channel in images],
        "warnings": warnings,
    }
    foreground = sample_foreground(prepared_label, len(labels.raw))
    write_case(store / case.case, image, prepared_label, geometry, foreground)


def affordable_workers(
    cases: Sequence[Case], preset: Preparation, workers: int, memory_mb: int | None
) -> int:
    """Return how many workers fit into the memory if each holds the largest case; at least 1."""
    workers = max(1, min(workers, len(cases)))
    if memory_mb is None:
        memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    largest = max((estimated_mb(case, preset) for case in cases), default=0)
    fitting = max(1, min(workers, int(memory_mb // (_WORKER_MB + largest))))
    if fitting < workers:
        log.info(
            "%d workers instead of %d: a case may need %d MB, %d MB are there in all",
            fitting, workers, _WORKER_MB + largest, memory_mb,
        )  # fmt: skip
    return fitting


def estimated_mb(case: Case, preset: Preparation) -> int:
    """Estimate from the headers the memory that preparing a case takes, MB; 0 if unreadable.

    Counted a voxel: raw, oriented and float copies of each channel (16 bytes), B-spline
    coefficients of one (8), the label maps (8); on the prepared grid two float copies of each
    channel and one in work (12 for each, 4) and labels and masks (8).
    """
    native = prepared = 0.0
    for file in case.images:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            return 0
        size, spacing = reader.GetSize(), reader.GetSpacing()
        voxels = float(np.prod(size)) * reader.GetNumberOfComponents()
        native += voxels
        steps = zip(preset.spacing or spacing, spacing, strict=False)
        prepared += voxels * float(np.prod([old / (new or old) for new, old in steps]))
    return int((native * 32 + prepared * 24) / 2**20)


def _prepare_all(arguments: list[tuple[Any, ...]], workers: int) -> None:
    """Prepare every case that can be; then raise one DataError that names all the others."""
    problems: dict[str, str] = {}
    folders = {case.case: store / case.case for case, _, _, _, store, _ in arguments}
    with ProgressReport("prepare", len(arguments)) as progress:
        for name, problem in _run(arguments, workers):
            if problem is not None:
                log.warning("%s", problem)
                problems[name] = problem
                shutil.rmtree(folders[name], ignore_errors=True)
            progress.advance(note=name)
    if problems:
        lines = "".join(f"\n  {problems[name]}" for name in sorted(problems))
        raise DataError(f"{len(problems)} cases cannot be prepared:{lines}")


def _run(arguments: list[tuple[Any, ...]], workers: int) -> Iterator[tuple[str, str | None]]:
    """Prepare cases in this process or in others; yield each case's name and what is wrong."""
    if workers == 1:
        for argument in arguments:
            yield argument[0].case, _attempt(*argument)
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _limit_threads, (threads,)) as pool:
        futures: dict[Future[str | None], str] = {
            pool.submit(_attempt, *argument): argument[0].case for argument in arguments
        }
        try:
            for future in as_completed(futures):
                yield futures[future], _result(future, futures[future])
        finally:
            pool.shutdown(cancel_futures=True)


def _attempt(case: Case, *arguments: Any) -> str | None:
    """Prepare a case; return what is wrong with it, or None."""
    try:
        prepare_case(case, *arguments)
    except DataError as error:
        return str(error)
    return None


def _result(future: Future[str | None], name: str) -> str | None:
    try:
        return future.result()
    except BrokenProcessPool:
        return (
            f"case {name!r}: a worker process died, most often for lack of memory; "
            "use fewer workers or give the job more memory, and run again"
        )


def _limit_threads(threads: int) -> None:
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def _check_manifest(cases: Sequence[Case]) -> None:
    if not cases:
        raise DataError("the data set has no cases; check the card's layout and the data folder")
    twice = sorted(name for name, n in Counter(case.case for case in cases).items() if n > 1)
    if twice:
        raise DataError(f"case ids that occur twice: {', '.join(twice)}; each needs its own")


def _stored_digest(folder: Path) -> str | None:
    """Return the digest of a stored case, None if it is absent or damaged."""
    if not is_complete(folder):
        return None
    try:
        stored: dict[str, Any] = json.loads((folder / "geometry.json").read_text(encoding="utf-8"))
    except ValueError:
        return None
    return stored.get("digest")


def _write_table(
    file: Path, cases: Sequence[Case], geometries: dict[str, dict[str, Any]], labels: Labels
) -> None:
    rows = []
    for case in cases:
        geometry = geometries[case.case]
        native = Grid.from_dict(geometry["native"])
        rows.append(
            {
                "case": case.case,
                "subject": case.subject,
                "digest": geometry["digest"],
                "native_shape": "x".join(map(str, native.size)),
                "native_spacing": "x".join(f"{step:.6g}" for step in native.spacing),
                "native_orientation": native.orientation,
                "prepared_shape": "x".join(map(str, geometry["prepared"]["size"])),
                **{
                    f"voxels_{name}": geometry["voxels_per_class"][i]
                    for name, i in labels.structures.items()
                },
                "warnings": "; ".join(geometry["warnings"]),
            }
        )
    with atomic_path(file) as temporary:
        pd.DataFrame(rows).to_csv(temporary, sep="\t", index=False, lineterminator="\n")
