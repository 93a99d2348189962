"""What an exported MONAI bundle runs: kdpipe's preparation, windows and way back as MONAI's parts.

A bundle carries a copy of this file and of all that it imports under a package name of its own
(`kdpipe.ship.bundle.code`), so nothing here may name the package `kdpipe` but in imports.

Between the parts a scan is a `MetaTensor`, see `kdpipe.ship.bundle.tensors`.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import Inferer
from monai.transforms.io.dictionary import LoadImaged, SaveImaged
from monai.transforms.transform import MapTransform
from monai.utils.misc import ensure_tuple
from torch import Tensor, nn

from kdpipe.data.geometry import Grid, to_array
from kdpipe.data.preparation.preprocess import prepare_images
from kdpipe.data.steps import round_as_stored
from kdpipe.data.targets import Targets
from kdpipe.errors import DataError
from kdpipe.images.files import SCAN_SUFFIXES, case_name
from kdpipe.infer.restore import restore_labels, write_labels
from kdpipe.infer.window import sliding_scores
from kdpipe.presets import Preparation
from kdpipe.scans.dicom import is_dicom
from kdpipe.scans.find import find_scans
from kdpipe.scans.read import read_scan
from kdpipe.scans.scan import Scan
from kdpipe.ship.bundle.tensors import (
    KEY,
    affine_of,
    exact_grids,
    for_torch,
    images_of,
    meta_of,
    scan_tensor,
)

CASE = "case"
"""Of a data item, if it is there: the name that its label map gets."""
Data = Mapping[Hashable, Any]

log = logging.getLogger(__name__)
_NAMES = (CASE, "filename_or_obj", "spatial_shape", "original_affine")


def network(
    name: str,
    params: Mapping[str, Any],
    in_channels: int,
    out_channels: int,
    spatial_dims: int,
) -> nn.Module:
    """Build the network whose file lies beside this package's others; weights are random."""
    package = __name__.removesuffix(".ship.bundle.parts")
    module = importlib.import_module(f"{package}.nets.{name}")
    built: nn.Module = module.build(
        module.Params(**params),
        in_channels=in_channels,
        out_channels=out_channels,
        spatial_dims=spatial_dims,
    )
    return built


def datalist(dataset_dir: str, channels: Sequence[str]) -> list[dict[str, Any]]:
    """Return the scans of a folder as `kdpipe predict` finds them, items for MONAI's datasets.

    Args:
        dataset_dir: with image files, or DICOM series in folders of their own. If it is not there
            the list is empty: programs that bring their own data set the bundle up without one.
        channels: names of the channels that a scan has.

    Raises:
        ConfigError: there is no scan in it, or two have one name.
        DataError: a scan lacks a channel.
    """
    if not Path(dataset_dir).is_dir():
        log.warning("%s: no such folder, so there is no scan", dataset_dir)
        return []
    scans = find_scans([Path(dataset_dir)], len(channels))
    for scan in scans:
        if scan.wrong:
            raise DataError(f"{scan.place}: {scan.wrong}")
    return [{"image": [str(file) for file in scan.files], CASE: scan.name} for scan in scans]


def check_scans(items: Sequence[Mapping[str, Any]], output_dir: str) -> None:
    """Refuse what MONAI would do without a word: nothing at all, or to replace the scans.

    Raises:
        DataError: there is no scan, or one lies where the label maps are to be written.
    """
    if not items:
        raise DataError("there is no scan: --dataset_dir is to name a folder with scans")
    out = Path(output_dir).resolve()
    for file in (Path(file) for item in items for file in ensure_tuple(item["image"])):
        if out in (file.parent.resolve(), file.resolve().parent):
            raise DataError(
                f"{file} lies in --output_dir, where a label map of its name would replace it: "
                "name another folder"
            )


class LoadImageScand(LoadImaged):
    """Read the file of a key, or its files (one a channel, or a DICOM series): (C, X, Y, Z).

    Args:
        keys: of the file names.
        channels: names of the channels that a scan has.
    """

    def __init__(self, keys: Sequence[str] | str, channels: Sequence[str]):
        super().__init__(keys)
        self.channels = channels

    def __call__(self, data: Data, reader: object = None) -> dict[Hashable, Any]:
        """Return the data with raw images in the place of file names.

        Raises:
            DataError: a file is missing or damaged, or the scan fails a check of `kdpipe predict`.
        """
        found = dict(data)
        for key in self.key_iterator(found):
            files = tuple(Path(file) for file in ensure_tuple(found[key]))
            name = found.get(CASE) or case_name(files[0], SCAN_SUFFIXES) or files[0].stem
            scan = Scan(name, files, dicom=files[0].is_file() and is_dicom(files[0]))
            images = read_scan(scan, self.channels)
            grids = [Grid.of(image) for image in images]
            voxels = np.stack([for_torch(to_array(image)) for image in images])
            meta = {CASE: name, "filename_or_obj": str(files[0])}
            found[key] = scan_tensor(voxels, grids[0], exact_grids(grids), meta)
        return found


class PrepareScand(MapTransform):
    """Orient, resample, scale and crop a raw scan (C, X, Y, Z), as for the training.

    Args:
        keys: of the images.
        preset: `kdpipe.presets.Preparation` as plain values.
        channels: names of the channels that a scan has.
    """

    def __init__(
        self, keys: Sequence[str] | str, preset: Mapping[str, Any], channels: Sequence[str]
    ):
        super().__init__(keys)
        self.preparation, self.channels = Preparation.model_validate(preset), channels

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Return the data with prepared images, float32.

        Raises:
            DataError: the scan has other channels, or cannot be prepared.
        """
        found = dict(data)
        for key in self.key_iterator(found):
            raw = found.pop(key)
            meta = {name: raw.meta[name] for name in _NAMES if name in raw.meta}
            images = images_of(raw, len(self.channels))
            del raw
            image, geometry = prepare_images(images, self.preparation, release=True)
            round_as_stored(image, geometry)
            native = Grid.from_dict(geometry["native"])
            meta |= {"spatial_shape": np.array(native.size), "original_affine": affine_of(native)}
            prepared = Grid.from_dict(geometry["prepared"])
            found[key] = scan_tensor(image, prepared, json.dumps(geometry), meta)
        return found


class SlidingScanInferer(Inferer):
    """Logits of whole prepared scans by sliding windows, blended with Gaussian weights.

    Args:
        roi_size: of a window, voxels; two sides: slices along the last axis.
        overlap: of neighbouring windows, a share in [0, 1).
        sw_batch_size: windows a forward pass.
    """

    def __init__(self, roi_size: Sequence[int], overlap: float, sw_batch_size: int):
        self.roi_size, self.overlap, self.sw_batch_size = tuple(roi_size), overlap, sw_batch_size

    def __call__(
        self, inputs: Tensor, network: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return logits (B, K, X, Y, Z) float32 of prepared scans (B, C, X, Y, Z)."""
        stored = ensure_tuple(meta_of(inputs)[KEY])
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        return torch.stack(
            [
                sliding_scores(
                    network,
                    image,
                    self.roi_size,
                    self.overlap,
                    self.sw_batch_size,
                    json.loads(geometry)["pad_value"],
                )
                for image, geometry in zip(plain, stored, strict=True)
            ]
        )


class RestoreLabelsd(MapTransform):
    """Turn logits (K, X, Y, Z) into a label map (1, X, Y, Z) uint8 on the grid of the raw scan.

    Args:
        keys: of the logits.
        orig_keys: of the prepared scans that they belong to.
        n_labels: label ids of the data set, background included.
        regions: label ids of each channel where channels are regions, else None.
    """

    def __init__(
        self,
        keys: Sequence[str] | str,
        orig_keys: Sequence[str] | str,
        n_labels: int,
        regions: Sequence[Sequence[int]] | None = None,
    ):
        super().__init__(keys)
        self.orig_keys = ensure_tuple(orig_keys)
        self.targets = Targets(n_labels, regions)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Return the data with label maps in the place of logits.

        Raises:
            DataError: the logits are not finite, or belong to another scan.
        """
        found = dict(data)
        for key, original in self.key_iterator(found, self.orig_keys):
            meta = meta_of(found[original])
            geometry = json.loads(meta[KEY])
            scores = found[key].detach().cpu().float().numpy()
            image = restore_labels(scores, geometry, self.targets, torch.get_num_threads())
            grid = Grid.from_dict(geometry["native"])
            kept = {name: value for name, value in meta.items() if name in _NAMES}
            found[key] = scan_tensor(to_array(image)[None], grid, exact_grids([grid]), kept)
        return found


class SaveImageLabelsd(SaveImaged):
    """Write a label map as ``<output_dir>/<case>.nii.gz``, with the affine of the raw scan.

    Args:
        keys: of label maps of `RestoreLabelsd`.
        output_dir: folder to write to; it is made.
    """

    def __init__(self, keys: Sequence[str] | str, output_dir: str):
        super().__init__(keys, output_dir=output_dir)
        self.output_dir = Path(output_dir)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Return the data as they are, after writing.

        Raises:
            DataError: the disk does not take it.
        """
        for key in self.key_iterator(dict(data)):
            image = images_of(data[key], 1)[0]
            file = write_labels(image, self.output_dir, meta_of(data[key])[CASE])
            log.info("%s", file)
        return dict(data)
