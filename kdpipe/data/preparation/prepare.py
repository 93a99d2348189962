"""Prepare a data set: check, orient, resample, scale, crop and store every case.

Each case is stored as a whole or not at all and knows the digest of what it was made from, so a
second run does only what is missing or has changed. Equal data give equal files: no times, no
absolute paths, nothing that depends on the number of workers.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import SimpleITK as sitk

from kdpipe.atomic import atomic_path, write_json
from kdpipe.cards import Waiver
from kdpipe.data.checks.case_facts import case_facts
from kdpipe.data.checks.findings import CheckError, Finding
from kdpipe.data.checks.integrity import check_case, read_case, refuse
from kdpipe.data.checks.verdict import Checks, conclude, stop_on_errors
from kdpipe.data.geometry import Grid
from kdpipe.data.preparation.fingerprint import describe, intensity_under
from kdpipe.data.preparation.memory import affordable_workers
from kdpipe.data.preparation.preprocess import prepare_images, prepare_label
from kdpipe.data.preparation.shared_cases import give_case, take_case
from kdpipe.data.steps import is_stepped
from kdpipe.data.store import (
    StoredCase,
    is_complete,
    remove_stale,
    remove_temporary,
    sample_foreground,
    write_case,
)
from kdpipe.errors import ConfigError, DataError
from kdpipe.labels import Labels
from kdpipe.presets import Preparation
from kdpipe.progress import ProgressReport, start_log
from kdpipe.workers import worker_pool

if TYPE_CHECKING:
    from kdpipe.data.manifest import Case

log = logging.getLogger(__name__)


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
    checks: Checks | None = None,
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
        checks: of the data set as a whole, with what the card excludes and accepts. Their files
            are written even if there are errors. None: each case is checked by itself only.

    Raises:
        ConfigError: for more classes than a stored label (uint8) can hold.
        DataError: after all cases are done, names every error that the card does not accept;
            neither table exists then.
    """
    if len(labels.raw) > 256:
        raise ConfigError(f"labels.raw has {len(labels.raw)} ids, at most 256 can be stored")
    found = sorted(manifest_cases, key=lambda case: case.case)
    excluded = checks.rules.excluded if checks else {}
    cases = [case for case in found if case.case not in excluded]
    _check_manifest(cases)
    for table in (cases_tsv, fingerprint, *(checks.files if checks else ())):
        table.unlink(missing_ok=True)
    for name in remove_stale(store, {case.case for case in cases}):
        log.info("removed case %s, which is no longer in the data set", name)
    digests = {case.case: case_digest(case, digest) for case in cases}
    todo = [case for case in cases if _stored_digest(store / case.case) != digests[case.case]]
    if len(todo) < len(cases):
        log.info("%d of %d cases are prepared already", len(cases) - len(todo), len(cases))
    waivers = checks.rules.integrity.waivers if checks else ()
    arguments = [
        (case, preset, labels, channels, store, digests[case.case], waivers) for case in todo
    ]
    try:
        failed = _prepare_all(arguments, affordable_workers(todo, preset, workers, memory_mb))
    except BaseException:  # a signal too
        remove_temporary(store)
        raise
    geometries = {
        case.case: StoredCase(store / case.case).geometry
        for case in cases
        if case.case not in failed
    }
    findings = [finding for name in sorted(failed) for finding in failed[name]]
    if checks:
        findings = conclude(checks, found, labels, channels, geometries, findings, store)
    stop_on_errors(findings, list(failed))
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
    waivers: Sequence[Waiver] = (),
) -> None:
    """Check, prepare and store one case, unless another study has done so (`kdpipe.sharing`).

    Its `geometry.json` keeps the `digest`, and with the findings and facts of the case all that
    `kdpipe.data.checks.data_set` needs, so that its files are read once.

    Args:
        case: its files.
        preset: how images are prepared.
        labels: ids and names, and which structures a case may lack.
        channels: names of the image channels.
        store: folder of the prepared cases.
        digest: see `case_digest`.
        waivers: errors of a case that the card accepts.

    Raises:
        CheckError: if the case fails a check; nothing is stored then.
    """
    if take_case(case, store, digest, waivers):
        return
    images, label = read_case(case)
    findings = check_case(case, images, label, labels, channels, waivers)
    facts = case_facts(case, images, label, labels)
    intensity = [intensity_under(channel, label) for channel in images]
    try:
        image, geometry = prepare_images(images, preset, release=True)
    except DataError as error:
        file = str(case.images[0])
        raise refuse([Finding("P01", "error", str(error), case.case, file, False)]) from None
    prepared_label = prepare_label(label, geometry)
    del label
    gc.collect()  # SimpleITK's images lie in cycles of references
    counts = [np.bincount(plane.ravel(), minlength=len(labels.raw)) for plane in prepared_label]
    voxels = np.sum(counts, axis=0).tolist()
    for name, index in labels.structures.items():
        if name in facts["structures"] and not voxels[index]:
            findings.append(Finding("D15", "warning", f"{name} is lost by the preparation"))
    geometry |= {
        "digest": digest,
        "voxels_per_class": voxels,
        "native_intensity": intensity,
        "findings": [finding.stored() for finding in findings],
        "warnings": [finding.text for finding in findings if finding.level == "warning"],
        "facts": facts,
    }
    foreground = sample_foreground(prepared_label, len(labels.raw))
    stepped = is_stepped(geometry)
    write_case(store / case.case, image, prepared_label, geometry, foreground, stepped)
    give_case(case, store, digest, waivers)


def _prepare_all(arguments: list[tuple[Any, ...]], workers: int) -> dict[str, tuple[Finding, ...]]:
    """Prepare every case that can be; return the findings of all the others."""
    failed: dict[str, tuple[Finding, ...]] = {}
    folders = {case.case: store / case.case for case, _, _, _, store, *_ in arguments}
    with ProgressReport("prepare", len(arguments)) as progress:
        for name, findings in _run(arguments, workers):
            if findings:
                failed[name] = findings
                shutil.rmtree(folders[name], ignore_errors=True)
                for finding in findings:
                    log.warning("%s", finding)
            progress.advance(note=name)
    return failed


def _run(
    arguments: list[tuple[Any, ...]], workers: int
) -> Iterator[tuple[str, tuple[Finding, ...]]]:
    """Prepare cases in this process or in others; yield each name and why it was refused."""
    if workers == 1:
        gc.freeze()  # what is there already need not be looked through for cycles after each image
        try:
            for argument in arguments:
                yield argument[0].case, _attempt(*argument)
        finally:
            gc.unfreeze()
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    with worker_pool(workers, _start_worker, threads, log.getEffectiveLevel()) as pool:
        futures: dict[Future[tuple[Finding, ...]], str] = {
            pool.submit(_attempt, *argument): argument[0].case for argument in arguments
        }
        for future in as_completed(futures):
            yield futures[future], future.result()


def _attempt(case: Case, *arguments: Any) -> tuple[Finding, ...]:
    """Prepare a case; return its findings if it is refused, else none."""
    try:
        prepare_case(case, *arguments)
    except CheckError as error:
        return error.findings
    return ()


def _start_worker(threads: int, level: int) -> None:
    start_log(level)
    gc.freeze()
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
                "part": case.part,
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
