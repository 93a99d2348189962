"""Small stand-ins for published data sets: real files under their names, in their layout.

Each case has the channels, the label ids (or colours) and the dimensions of the original; images
are tiny, and all cases of a set are one file with many names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

from kdpipe.cards import Card, load_card

SHAPE = (12, 18, 20)  # z, y, x


def _btcv() -> Iterator[str]:
    for case in (*range(1, 11), *range(21, 41)):
        yield f"RawData/Training/img/img{case:04}.nii.gz"


def _word() -> Iterator[str]:
    for case in range(1, 151):
        part = "Tr" if case <= 100 else "Val" if case <= 120 else "Ts"
        yield f"WORD-V0.1.0/images{part}/word_{case:04}.nii.gz"


def _brats() -> Iterator[str]:
    for case in range(1251):
        name = f"BraTS-GLI-{case:05}-000"
        yield f"ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData/{name}/{name}-t1n.nii.gz"


def _flare() -> Iterator[str]:
    for case in range(1, 51):
        yield f"FLARE22Train/images/FLARE22_Tr_{case:04}_0000.nii.gz"


def _kits() -> Iterator[str]:
    for case in range(210):
        yield f"data/case_{case:05}/imaging.nii.gz"


def _lits() -> Iterator[str]:
    for case in range(131):
        batch = 1 if case < 28 else 2
        yield f"media/nas/01_Datasets/CT/LITS/Training Batch {batch}/volume-{case}.nii"


def _m2cai() -> Iterator[str]:
    for frame in range(307):
        part = "train" if frame < 245 else "test"
        yield f"m2caiSeg dataset/{part}/images/{frame * 37}.jpg"


#: card -> the first channel of each case
IMAGES = {
    "btcv": _btcv,
    "synapse_multiorgan": _btcv,
    "word": _word,
    "brats23_gli": _brats,
    "flare22": _flare,
    "kits19": _kits,
    "kits19_tumor": _kits,
    "lits17_tumor": _lits,
    "m2caiseg": _m2cai,
}


def mock_dataset(name: str, folder: Path) -> Path:
    """Write a stand-in for a published data set below `folder` and return `folder`."""
    card = load_card(name)
    assert card.layout.find is not None
    originals: dict[str, Path] = {}
    for image in IMAGES[name]():
        root = next(r for r in card.layout.roots if r == "." or image.startswith(f"{r}/"))
        inside = image if root == "." else image.removeprefix(f"{root}/")
        groups = re.fullmatch(card.layout.find, inside)
        assert groups, f"{inside} is no image of {name}"
        fields = groups.groupdict()
        label = (card.layout.label or "").format(**fields)
        channels = [inside, *(channel.format(**fields) for channel in card.layout.channels)]
        for file, kind in [*((channel, "image") for channel in channels), (label, "label")]:
            _place(card, kind, folder / root / file, originals)
    return folder


def _place(card: Card, kind: str, file: Path, originals: dict[str, Path]) -> None:
    """Write the file of its kind, or one more name for the one that is there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    key = f"{kind}{''.join(file.suffixes)}"
    if key in originals:
        os.link(originals[key], file)
        return
    originals[key] = file
    if card.labels.palette:
        _picture(card, kind).save(file, quality=95)
    else:
        sitk.WriteImage(_volume(card, kind), str(file))


def _ids(card: Card) -> list[int]:
    """Label ids as the files have them, background first."""
    return [0, *(card.labels.remap or sorted(set(card.labels.raw) - {0}))]


def _volume(card: Card, kind: str) -> sitk.Image:
    ids = np.array(_ids(card))
    labels = ids[np.indices(SHAPE).sum(axis=0) // 2 % len(ids)]
    noise = np.random.default_rng(0).normal(0, 20, SHAPE)
    image = sitk.GetImageFromArray(
        labels.astype(np.uint8) if kind == "label" else (labels * 10 + noise).astype(np.int16)
    )
    image.SetSpacing((0.8, 0.8, 2.5))
    return image


def _picture(card: Card, kind: str) -> Image.Image:
    colours = np.array([[int(part) for part in name.split(",")] for name in card.labels.palette])
    rows, columns = np.indices((96, 128))
    pixels = colours[(rows // 8 + columns // 8) % len(colours)].astype(np.uint8)
    return Image.fromarray(pixels if kind == "label" else np.roll(pixels, 3, axis=0))
