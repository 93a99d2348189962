"""Sliding-window scores of a whole volume, one finished slab after another.

The scores are those of MONAI's `sliding_window_inference` to the bit; only the slab of the volume
that windows still reach is kept. Windows of one value alone (air, padding) are computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kdpipe.data.relabel import labels_of
from kdpipe.data.targets import Targets
from kdpipe.errors import DataError
from kdpipe.infer.blending import Start, Sums, window_starts

Network = Callable[[Tensor], Tensor]
Window = tuple[int, Start]
"""Number of the image, and first voxel."""


class Slab(NamedTuple):
    """Finished scores, valid until the next slab is asked for.

    Attributes:
        axis: of the volume, along which slabs follow one another.
        start: first plane; all but the first slab begin with the last plane of the one before,
            for those who interpolate between planes.
        scores: (K, *part) float32.
    """

    axis: int
    start: int
    scores: Tensor

    @property
    def fresh(self) -> Tensor:
        """The scores without the plane that the slab before had."""
        repeated = int(self.start > 0)
        length = self.scores.shape[1 + self.axis]
        return self.scores.narrow(1 + self.axis, repeated, length - repeated)


def sliding_scores(
    network: Network,
    image: Tensor,
    patch: Sequence[int],
    overlap: float,
    window_batch: int = 4,
    pad_value: float = 0.0,
) -> Tensor:
    """Return logits ``(K, *S)`` in float32 of the whole volume, on the image's device.

    See `sliding_slabs`, which needs less memory.
    """
    whole = image.new_empty(0, dtype=torch.float32)
    for slab in sliding_slabs(network, image, patch, overlap, window_batch, pad_value):
        part, axis = slab.fresh, 1 + slab.axis
        if not whole.numel():
            whole = part.new_empty((len(part), *image.shape[1:]))
        begin = slab.start + (slab.start > 0)
        whole.narrow(axis, begin, part.shape[axis]).copy_(part)
    return whole


@torch.inference_mode()
def sliding_slabs(
    network: Network,
    image: Tensor,
    patch: Sequence[int],
    overlap: float,
    window_batch: int = 4,
    pad_value: float = 0.0,
) -> Iterator[Slab]:
    """Yield the logits of a volume slab by slab, blended with Gaussian weights.

    Args:
        network: maps ``(B, C, *patch)`` to logits ``(B, K, *patch)``.
        image: ``(C, *S)``; where a side is smaller than the patch it is padded.
        patch: window size in voxels; with one side less than `image` has axes, the slices along
            the last axis are predicted one by one.
        overlap: share in [0, 1) by which neighbouring windows overlap.
        window_batch: windows a forward pass.
        pad_value: what the image is padded with, as in training crops.
    """
    image = image.float()
    if len(patch) == image.dim() - 1:
        yield from _volume(network, image, patch, overlap, window_batch, pad_value)
        return
    last: Tensor | None = None
    slices = image.movedim(-1, 0)
    for start in range(0, len(slices), window_batch):  # all at once would need much memory
        block = slices[start : start + window_batch]
        scores = _slices(network, block, patch, overlap, window_batch, pad_value)
        if last is not None:
            scores = torch.cat([last, scores], dim=-1)
        yield Slab(image.dim() - 2, start - (last is not None), scores)
        last = scores[..., -1:]


def sliding_labels(slabs: Iterable[Slab], size: Sequence[int], targets: Targets) -> np.ndarray:
    """Return the label map (*size) uint8 of a volume's slabs; no more than one is in memory."""
    labels = np.empty(tuple(size), np.uint8)
    for slab in slabs:
        found = _labels(slab.fresh, targets)
        begin = slab.start + (slab.start > 0)
        labels[(slice(None),) * slab.axis + (slice(begin, begin + found.shape[slab.axis]),)] = found
    return labels


def _labels(scores: Tensor, targets: Targets) -> np.ndarray:
    if scores.device.type == "cpu" and scores.dim() == 4:
        try:
            return labels_of(scores.numpy(), targets, torch.get_num_threads())
        except DataError:  # a network that diverges has labels too, bad ones
            pass
    return targets.decode_tensor(scores).cpu().numpy()


def _padded(images: Tensor, patch: Sequence[int], value: float) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad the last axes to the patch's size, half on each side; say where the image then lies."""
    sizes = images.shape[-len(patch) :]
    missing = [max(0, side - n) for side, n in zip(patch, sizes, strict=True)]
    inside = tuple(
        slice(gap // 2, gap // 2 + n) if gap else slice(None)
        for gap, n in zip(missing, sizes, strict=True)
    )
    if not any(missing):
        return images, inside
    sides = [side for gap in reversed(missing) for side in (gap // 2, gap - gap // 2)]
    return functional.pad(images, sides, value=value), inside


def _volume(
    network: Network,
    image: Tensor,
    patch: Sequence[int],
    overlap: float,
    window_batch: int,
    pad_value: float,
) -> Iterator[Slab]:
    """Yield the slabs of one image (C, *S) along its first axis."""
    image, inside = _padded(image, patch, pad_value)
    size = image.shape[1:]
    windows = [(0, start) for start in window_starts(size, patch, overlap)]
    sums = Sums(size, patch)
    for (_, start), scores in _outputs(network, image[None], windows, patch, window_batch):
        if start[0] > sums.begin:
            begin, done = sums.finish(start[0])
            yield Slab(0, begin, done[:, *inside])
            sums.move(start[0])
        sums.add(start, scores)
        del scores  # or those of a batch would be in memory beside the next one's
    begin, done = sums.finish(size[0])
    yield Slab(0, begin, done[:, *inside])


def _slices(
    network: Network,
    images: Tensor,
    patch: Sequence[int],
    overlap: float,
    window_batch: int,
    pad_value: float,
) -> Tensor:
    """Return the scores (K, *S, B) of images (B, C, *S)."""
    images, inside = _padded(images, patch, pad_value)
    size = images.shape[2:]
    starts = window_starts(size, patch, overlap)
    windows = [(number, start) for number in range(len(images)) for start in starts]
    sums = [Sums(size, patch, whole=True) for _ in images]
    for (number, start), scores in _outputs(network, images, windows, patch, window_batch):
        sums[number].add(start, scores)
    return torch.stack([one.finish(size[0])[1][:, *inside] for one in sums], dim=-1)


def _outputs(
    network: Network,
    images: Tensor,
    windows: Sequence[Window],
    patch: Sequence[int],
    window_batch: int,
) -> Iterator[tuple[Window, Tensor]]:
    """Yield the network's scores (K, *patch) of each window, in order.

    A window that has one value alone, the same as the last such window, is not computed again.
    """
    constant: float | None = None
    known, queue, crops = torch.empty(0), [], []
    reuses = not getattr(network, "training", False)
    for index, (number, start) in enumerate(windows):
        box = tuple(slice(at, at + side) for at, side in zip(start, patch, strict=True))
        crop = images[number : number + 1, :, *box]
        value = _only_value(crop) if reuses else None
        repeats = value is not None and value == constant
        queue.append((windows[index], value, repeats))
        if not repeats:
            crops.append(crop)
            constant = constant if value is None else value
        if len(crops) < window_batch and index + 1 < len(windows):
            continue
        found = iter(network(torch.cat(crops)) if crops else ())
        for window, only, again in queue:
            scores = known if again else next(found)
            if only is not None and not again:
                known = scores.clone()
            yield window, scores
        queue, crops, scores, found = [], [], known, iter(())


def _only_value(crop: Tensor) -> float | None:
    """Return the value of all voxels and channels of a window, None where they differ."""
    first = crop[(0,) * crop.dim()]
    sparse = crop[..., ::7, ::7]  # most windows are told by a few voxels
    same = bool((sparse == first).all()) and bool((crop == first).all())
    return float(first) if same else None
