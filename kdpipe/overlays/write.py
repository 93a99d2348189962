"""Pictures of single cases: outlines of reference, teacher and students, and their errors.

For each student of each split they show the worst, the median and the best test case of the
undistilled student, so that nobody chooses what is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdpipe.atomic import atomic_folder, check_replaceable, write_json
from kdpipe.data.manifest import Case, read_manifest
from kdpipe.errors import DataError
from kdpipe.metrics.labelmaps import LabelMap, check_same_grid, read_label_map
from kdpipe.overlays.choice import CaseResult, Choice, choose, read_dice
from kdpipe.overlays.outlines import Masks, Style, styles_of
from kdpipe.overlays.panels import Column, Picture, draw
from kdpipe.overlays.slices import View, frame_of, grey_window, read_first_channel, to_grey, view_of
from kdpipe.progress import ProgressReport

INDEX = "overlays.json"
_MOST = "most reference foreground"
_DIFFERS = "largest difference between the undistilled and the best distilled student"


def write_overlays(run: Mapping[str, Any], tables: Path, out: Path) -> None:
    """Write the pictures of a study and ``overlays.json``; the folder appears when complete.

    Args:
        run: of the study: `cells` with their folders, `datasets` with structures, channels and
            manifest, `entries` and `protocols`, the first of which ranks the cases.
        tables: folder with ``scores.csv``.
        out: folder to write; replaced if it exists. ``overlays.json`` lists for each picture its
            ``file``, dataset, split, student, case and ``role`` (worst, median, best); ``slice``
            (index from 0 along ``axis`` of the stored (z, y, x) array) and why it was chosen;
            ``spacing`` (through, down, across; mm or voxels); ``columns`` with their Dice in
            [0, 1] by structure, null where it is undefined; and a ``caption``.

    Raises:
        ConfigError: `out` holds something else.
        DataError: scores, manifest, an image or a prediction is missing or unreadable, or a
            prediction lies on another grid.
    """
    check_replaceable(out, lambda names: INDEX in names)
    choices = choose(run, read_dice(tables / "scores.csv", run["protocols"][0]))
    names = list(
        dict.fromkeys(s for facts in run["datasets"].values() for s in facts["structures"])
    )
    styles = styles_of(names)
    with atomic_folder(out) as temporary:
        entries = []
        with ProgressReport("drawing, case", len(choices)) as report:
            for choice in choices:
                entries += _draw_case(choice, run["datasets"][choice.dataset], styles, temporary)
                report.advance(note=choice.case)
        write_json(temporary / INDEX, entries)


def _draw_case(
    choice: Choice, facts: Mapping[str, Any], styles: Mapping[str, Style], folder: Path
) -> list[dict[str, Any]]:
    """Draw one or two slices of a case and describe them."""
    case = _find(choice, Path(facts["manifest"]))
    reference = read_label_map(case.label, case.case)
    volumes = [reference.labels, *(_prediction(arm, case.case, reference) for arm in choice.arms)]
    image = read_first_channel(case.images, case.case, reference)
    window = None if image.ndim == 4 else grey_window(image, _intensity(facts))
    view, entries = view_of(reference), []
    for index, why in _slices(choice, facts["structures"], volumes, view):
        plane = view.slice(image, index)
        masks = [_masks(view.slice(labels, index), facts["structures"]) for labels in volumes]
        frame, cut = frame_of(masks, view.spacing[1:])
        columns = zip(choice.arms, masks[1:], strict=True)
        where = _where(view, index, facts["has_spacing"])
        picture = Picture(
            image=plane / 255.0 if window is None else to_grey(plane, window),
            channel="" if window is None else facts["channels"][0],
            spacing=view.spacing[1:],
            in_mm=facts["has_spacing"],
            edges=view.edges,
            reference=masks[0],
            columns=[Column(arm.title, mask) for arm, mask in columns],
            frame=frame,
            notes=_notes(choice, where, why),
            styles={name: styles[name] for name in facts["structures"]},
        )
        name = "--".join((choice.dataset, choice.split, choice.student, choice.role))
        file = f"{name}{'' if why == _MOST else '--difference'}.png"
        draw(picture, folder / file)
        entries.append(_describe(choice, view, index, why, file, _caption(choice, where, why, cut)))
    return entries


def _find(choice: Choice, manifest: Path) -> Case:
    for case in read_manifest(manifest):
        if case.case == choice.case:
            return case
    raise DataError(
        f"{manifest}: has no case {choice.case!r}, which is scored. Evaluate the study again"
    )


def _prediction(arm: CaseResult, case: str, reference: LabelMap) -> np.ndarray:
    found = read_label_map(Path(arm.folder) / "predictions" / f"{case}.nii.gz", case)
    check_same_grid(case, reference, found)
    return found.labels


def _intensity(facts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the preset does with the first channel."""
    given = facts.get("intensity")
    return given[0] if isinstance(given, list) else given


def _masks(labels: np.ndarray, structures: Mapping[str, Sequence[int]]) -> Masks:
    return {name: np.isin(labels, ids) for name, ids in structures.items()}


def _slices(
    choice: Choice,
    structures: Mapping[str, Sequence[int]],
    volumes: Sequence[np.ndarray],
    view: View,
) -> Iterator[tuple[int, str]]:
    """Yield the index of each slice to draw and why; the second only where it is another.

    Where the reference is empty, the first volume that is not stands for it.
    """
    others = tuple(axis for axis in range(3) if axis != view.axes[0])
    scored = sorted({index for ids in structures.values() for index in ids})
    labelled = [np.isin(labels, scored).sum(others) for labels in volumes]
    counts = next((count for count in labelled if count.any()), None)
    most = volumes[0].shape[view.axes[0]] // 2 if counts is None else int(counts.argmax())
    yield most, _MOST
    first: dict[str, np.ndarray] = {}  # of each kind, which is the best
    for arm, labels in zip(choice.arms, volumes[1:], strict=True):
        first.setdefault(arm.kind, labels)
    if {"none", "distilled"} <= first.keys():
        differing = (first["none"] != first["distilled"]).sum(others)
        if differing.any() and (index := int(differing.argmax())) != most:
            yield index, _DIFFERS


# words


def _where(view: View, index: int, in_mm: bool) -> str:
    """Name the slice; nothing to say of a picture, which is shown as it is stored."""
    if view.name == "picture":
        return ""
    through, down, across = view.spacing
    unit = "mm" if in_mm else "voxels"
    return f"{view.name} slice {index}, {down:.3g} × {across:.3g} × {through:.3g} {unit}"


def _notes(choice: Choice, where: str, why: str) -> list[str]:
    """Lines beside the panels."""
    seeds = sorted({arm.seed for arm in choice.arms if arm.kind != "teacher"})
    slice_is = [where, f"slice with {why}"] if where else []
    shown = f"students of seed {', '.join(map(str, seeds))}"
    return [f"{choice.role} case, {choice.case}", *slice_is, shown]


def _caption(choice: Choice, where: str, why: str, cut: bool) -> str:
    best = [arm.label for arm in choice.arms if arm.kind == "distilled"]
    parts = [
        f"{choice.dataset}, split {choice.split}, {choice.student}: {choice.role} of "
        f"{choice.n_cases} test cases by the mean Dice of {choice.ranked_by}, {choice.case}.",
    ]
    if where:
        parts.append(
            f"Slice with {why}: {where}; radiological view, letters are the patient's sides."
        )
    if best:
        parts.append(f"Distilled students by mean Dice over all test cases: {', '.join(best)}.")
    parts.append(
        "Dice is of the whole case and of the seed that is shown. Above: outlines. Below: voxels "
        "that are missed, false, or in another structure than in the reference."
    )
    if cut:
        parts.append("Some predicted voxels lie outside the frame.")
    return " ".join(parts)


def _describe(
    choice: Choice, view: View, index: int, why: str, file: str, caption: str
) -> dict[str, Any]:
    return {
        "file": file,
        "dataset": choice.dataset,
        "split": choice.split,
        "student": choice.student,
        "case": choice.case,
        "role": choice.role,
        "plane": view.name,
        "axis": view.axes[0],
        "slice": index,
        "why": why,
        "spacing": list(view.spacing),
        "columns": [
            {
                "name": arm.label,
                "kind": arm.kind,
                "seed": arm.seed,
                "dice": {n: None if math.isnan(v) else v for n, v in arm.dice.items()},
            }
            for arm in choice.arms
        ],
        "caption": caption,
    }
