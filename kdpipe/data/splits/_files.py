"""Splits that other tools have written: nnU-Net's ``splits_final.json``, data lists of MONAI."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from kdpipe.errors import DataError
from kdpipe.images.files import case_name

Lists = dict[str, list[str]]


def read_nnunet(file: Path, fold: int) -> Lists:
    """Return the lists ``train`` and ``val`` of a fold.

    Raises:
        DataError: if the file is no list of folds, or has not so many.
    """
    content = _json(file)
    if not isinstance(content, list) or not all(
        isinstance(entry, dict) and {"train", "val"} <= entry.keys() for entry in content
    ):
        raise DataError(f"{file}: no splits of nnU-Net, a list of {{train, val}} is expected")
    if fold >= len(content):
        raise DataError(
            f"{file}: has {len(content)} folds, fold {fold} is wanted; set 'folds: {len(content)}' "
            "in the card's split"
        )
    return {part: [str(case) for case in content[fold][part]] for part in ("train", "val")}


def read_monai(file: Path, fold: int | None, known: Collection[str]) -> Lists:
    """Return ``train`` and ``val``, and ``test`` if that list has labels.

    Args:
        file: with ``training`` and perhaps ``validation`` and ``test``, lists of
            ``{image: path, label: path}``; an image may be a list of channels.
        fold: of the items' ``fold``; None for a file with a list of its own for validation.
        known: case ids of the data set, by which paths are understood.

    Raises:
        DataError: if a list or the folds are missing.
    """
    content = _json(file)
    if not isinstance(content, dict) or not isinstance(content.get("training"), list):
        raise DataError(f"{file}: no data list of MONAI, a list 'training' is expected")
    training = content["training"]
    if fold is None:
        lists = {"train": training, "val": content.get("validation", [])}
        if not lists["val"]:
            raise DataError(
                f"{file}: no list 'validation'; if its items have a 'fold', set 'folds' in the "
                "card's split"
            )
    else:
        numbers = [item.get("fold") if isinstance(item, dict) else None for item in training]
        if fold not in numbers:
            raise DataError(
                f"{file}: no item of 'training' has fold {fold}; mend 'folds' in the card's split"
            )
        held_out = [number == fold for number in numbers]
        lists = {
            "train": [item for item, out in zip(training, held_out, strict=True) if not out],
            "val": [item for item, out in zip(training, held_out, strict=True) if out],
        }
    test = content.get("test", [])
    if fold is None and test and all(isinstance(item, dict) and "label" in item for item in test):
        lists["test"] = test
    return {part: [_case(item, known) for item in items] for part, items in lists.items()}


def _case(item: Any, known: Collection[str]) -> str:
    """Return the case that an item of a data list means; its image's stem if none is known.

    The stem of the image or of the label, without a channel number, or a folder above them.
    """
    entries: Mapping[str, Any] = item if isinstance(item, dict) else {"image": item}
    paths = []
    for key in ("image", "label"):
        value = entries.get(key)
        paths += value if isinstance(value, list) else [value] if value else []
    stems = [case_name(Path(path)) or Path(path).stem for path in paths]
    stems += [re.sub(r"_\d{4}$", "", stem) for stem in stems]
    folders = [name for path in paths for name in reversed(PurePosixPath(path).parts[:-1])]
    found = (name for name in (*stems, *folders) if name in known)
    return next(found, stems[0] if stems else str(item))


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not readable as JSON ({error}); restore it") from None
