"""Score a folder of predicted label maps against reference label maps, into one tidy table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kdpipe.atomic import atomic_path
from kdpipe.errors import ConfigError, DataError
from kdpipe.images.files import SUFFIXES, case_name
from kdpipe.metrics.labelmaps import LabelMap, check_same_grid, read_label_map
from kdpipe.metrics.protocol import Score, as_scorings, check_structures, score_case
from kdpipe.protocols import Scoring
from kdpipe.workers import worker_pool

#: folder, within that of the predictions, of those on the prepared grid
PREPARED = "prepared"
COLUMNS = ("case", "structure", "metric", "protocol", "value", "unit", "status")

_LOG = logging.getLogger(__name__)


ReadLabels = Callable[[], LabelMap]


@dataclass(frozen=True)
class _Task:
    """What is asked of every case."""

    structures: dict[str, tuple[int, ...]]
    protocols: tuple[Scoring, ...]
    tolerances_mm: Mapping[str, float]


@dataclass(frozen=True)
class _Job:
    """All that a worker process needs to score one case on one grid."""

    case: str
    reference: Path | ReadLabels
    prediction: Path
    task: _Task


def evaluate_folders(
    reference: Path | None,
    prediction: Path,
    structures: Mapping[str, Sequence[int]],
    protocols: Scoring | str | Sequence[Scoring | str],
    out: Path | None = None,
    workers: int = 1,
    keys: Mapping[str, str] | None = None,
    cases: Sequence[str] | None = None,
    references: Mapping[str, Path] | None = None,
    in_voxels: bool = False,
    tolerances_mm: Mapping[str, float] | None = None,
    prepared: Mapping[str, ReadLabels] | None = None,
) -> pd.DataFrame:
    """Score every case of a reference folder that a prediction folder must hold under one name.

    Args:
        reference: folder of label maps (.nii.gz, .nii, .nrrd, .mha), named `<case><suffix>`.
        prediction: folder of predicted label maps, `<case>` with any of the suffixes.
        structures: name -> labels whose union is the structure.
        protocols: a protocol or several, themselves or by name; each case is read once for all.
        out: CSV file to write, atomically; floats keep every digit, NaN is written as `nan`.
        workers: processes that score cases side by side. Above 1 they are spawned, so a script
            that calls this needs its `if __name__ == "__main__":`.
        keys: constant columns to put first, such as dataset, method and seed.
        cases: the cases to score; all of the references if None.
        references: case -> label map, where the references do not lie in one folder under
            the names of their cases; `reference` is then not read and may be None.
        in_voxels: the files' spacing means nothing (pictures): distances are in voxels.
        tolerances_mm: see `score_case`.
        prepared: case -> function that reads its labels on the prepared grid. Protocols of that
            grid score them against `<prediction>/prepared`; if None, they score the two folders
            as they are.

    Returns:
        Long table, one row a case, structure and metric, sorted by case: the columns of `keys`,
        then case, structure, metric, protocol, value, unit, status (see `protocol.Score`).

    Raises:
        ConfigError: unknown protocol, bad structures, `workers` below 1, a key named like a
            column, no references given.
        DataError: no or missing references or predictions (all are listed), two files for one
            case, a file that is unreadable, truncated or no label map, different grids.
    """
    scorings = as_scorings(protocols)
    if in_voxels:
        scorings = tuple(s.model_copy(update={"distance_unit": "voxel"}) for s in scorings)
    _check_arguments(reference, structures, workers, keys or {}, references)
    native: Mapping[str, Path] = _list_cases(reference) if references is None else references
    selected = _select(native, cases, reference)
    named = {name: tuple(ids) for name, ids in structures.items()}
    there = tuple(s for s in scorings if s.grid == "prepared" and prepared is not None)
    here = tuple(s for s in scorings if s not in there)
    jobs = []
    for grid, wanted, folder in (
        (native, here, prediction),
        (prepared, there, prediction / PREPARED),
    ):
        if wanted and grid is not None:
            task = _Task(named, wanted, tolerances_mm or {})
            jobs += _jobs(selected, grid, folder, task)
    jobs.sort(key=lambda job: job.case)
    table = _table(zip(jobs, _run(jobs, workers), strict=True), keys or {})
    if out is not None:
        with atomic_path(out) as temporary:
            table.to_csv(temporary, index=False, na_rep="nan")
    return table


def _jobs(
    selected: Sequence[str],
    references: Mapping[str, Path | ReadLabels] | Mapping[str, Path] | Mapping[str, ReadLabels],
    folder: Path,
    task: _Task,
) -> list[_Job]:
    predicted = _match(selected, folder)
    return [_Job(case, references[case], predicted[case], task) for case in selected]


def _check_arguments(
    reference: Path | None,
    structures: Mapping[str, Sequence[int]],
    workers: int,
    keys: Mapping[str, str],
    references: Mapping[str, Path] | None,
) -> None:
    check_structures(structures)
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    if taken := sorted(set(keys) & set(COLUMNS)):
        raise ConfigError(f"keys {taken} are columns of the table already: rename them")
    if reference is None and references is None:
        raise ConfigError("no references: give a reference folder or a file for each case")


def _list_cases(folder: Path | None) -> dict[str, Path]:
    """Case -> file for every label map of `folder`, sorted by case."""
    if folder is None or not folder.is_dir():
        raise DataError(f"{folder} is no folder: give the folder that holds the label maps")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        case = case_name(path)
        if case is None:
            continue
        if case in files:
            raise DataError(
                f"case {case}: two label maps in {folder}, {files[case].name} and {path.name}: "
                "keep one of them"
            )
        files[case] = path
    return dict(sorted(files.items()))


def _select(
    files: Mapping[str, Path], cases: Sequence[str] | None, folder: Path | None
) -> list[str]:
    """Sorted names of the cases to score, each with a reference file."""
    selected = sorted(files) if cases is None else sorted(set(cases))
    if not selected:
        raise DataError(
            f"no case to score: {folder} holds no label map ({', '.join(SUFFIXES)})"
            if cases is None
            else "no case to score: the list of cases is empty"
        )
    if unknown := [case for case in selected if case not in files]:
        raise DataError(
            f"no reference for {_count(unknown)}: {', '.join(unknown)}. "
            "Add the label maps or leave these cases out"
        )
    return selected


def _match(selected: Sequence[str], folder: Path) -> dict[str, Path]:
    """Case -> prediction file; DataError that lists every case without one."""
    predicted = _list_cases(folder)
    if missing := [case for case in selected if case not in predicted]:
        raise DataError(
            f"no prediction in {folder} for {_count(missing)}: {', '.join(missing)}. Predict "
            "them, or name the cases to score; leaving them out silently would flatter the mean"
        )
    if extra := sorted(set(predicted) - set(selected)):
        _LOG.info("%s: not scored, not among the cases: %s", folder, ", ".join(extra))
    return predicted


def _run(jobs: Sequence[_Job], workers: int) -> Iterable[list[Score]]:
    """Scores of every job, in order."""
    if workers == 1 or len(jobs) == 1:
        return map(_score_files, jobs)
    with worker_pool(min(workers, len(jobs))) as pool:
        return list(pool.map(_score_files, jobs))


def _score_files(job: _Job) -> list[Score]:
    """Read and score one case (runs in a worker)."""
    source = job.reference
    reference = read_label_map(source, job.case) if isinstance(source, Path) else source()
    prediction = read_label_map(job.prediction, job.case)
    check_same_grid(job.case, reference, prediction)
    labels, spacing = (reference.labels, prediction.labels), reference.spacing_mm
    if len(labels[0]) == 1:  # in 3D every voxel of a single slice would be surface
        labels, spacing = (labels[0][0], labels[1][0]), spacing[1:]
    task = job.task
    return score_case(*labels, spacing, task.structures, task.protocols, task.tolerances_mm)


def _table(scored: Iterable[tuple[_Job, list[Score]]], keys: Mapping[str, str]) -> pd.DataFrame:
    rows = [
        (job.case, s.structure, s.metric, s.protocol, s.value, s.unit, s.status)
        for job, scores in scored
        for s in scores
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    for position, (name, value) in enumerate(keys.items()):
        table.insert(position, name, value)
    return table


def _count(cases: Sequence[str]) -> str:
    return f"{len(cases)} case{'s' if len(cases) != 1 else ''}"
