"""Compiled loops over label volumes: joint histogram, surface voxels, nearest surface voxel.

Only `labelled`, `nearest`, `overlap` and `bands` call them, and each has a way without. Volumes are
C-contiguous with three axes; two-dimensional ones get a first axis of length 1. Machine code is
cached on disk; no loop holds the interpreter's lock or starts threads.
"""

from __future__ import annotations

import numba
import numpy as np

from kdpipe.metrics import ties

_compiled = numba.njit(cache=True, nogil=True)
chosen = numba.njit(nogil=True)(ties.chosen)

# Voxels whose neighbours are compared at once: few enough for the fastest cache.
BLOCK = 4096


@_compiled
def count_pairs(
    reference: np.ndarray,
    prediction: np.ndarray,
    reference_words: np.ndarray,
    prediction_words: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Add to `counts[r, p]` every pair of labels of two flat volumes, (0, 0) left out.

    The words are the same memory, eight bytes an item. Most of an image is background in both
    volumes, much of the rest lies deep in a structure: both are dealt with a word at a time.
    """
    per_word = 8 // reference.itemsize
    # A word of one label is that label times this.
    ones = np.uint64(0)
    for _ in range(per_word):
        ones = (ones << np.uint64(64 // per_word % 64)) | np.uint64(1)
    for word in range(reference_words.size):
        r, p = reference_words[word], prediction_words[word]
        if not r | p:
            continue
        first = word * per_word
        if r == reference[first] * ones and p == prediction[first] * ones:
            counts[reference[first], prediction[first]] += per_word
            continue
        for i in range(first, first + per_word):
            counts[reference[i], prediction[i]] += 1
    for i in range(reference_words.size * per_word, reference.size):
        counts[reference[i], prediction[i]] += 1


@_compiled
def _edges_of_rows(
    flat: np.ndarray, begin: int, columns: int, plane: int, flat_axis: bool, flags: np.ndarray
) -> None:
    """Mark in `flags` what may be surface in rows: not 0 where a neighbour's label differs.

    The rows touch no face of the image but those at their ends.
    """
    size = flags.size
    here = flat[begin : begin + size]
    # Plain loops over contiguous memory, which the compiler turns into vector instructions.
    above = flat[begin - columns : begin - columns + size]
    below = flat[begin + columns : begin + columns + size]
    left, right = flat[begin - 1 : begin - 1 + size], flat[begin + 1 : begin + 1 + size]
    for i in range(size):
        rows = (here[i] ^ above[i]) | (here[i] ^ below[i])
        flags[i] = rows | (here[i] ^ left[i]) | (here[i] ^ right[i])
    if not flat_axis:
        above = flat[begin - plane : begin - plane + size]
        below = flat[begin + plane : begin + plane + size]
        for i in range(size):
            flags[i] |= (here[i] ^ above[i]) | (here[i] ^ below[i])
    for i in range(size):
        flags[i] = flags[i] if here[i] else 0
    for i in range(0, size, columns):
        last = i + columns - 1
        flags[i], flags[last] = here[i], here[last]


@_compiled
def _is_surface(
    flat: np.ndarray, i: int, strides: tuple[int, int, int], number: np.ndarray
) -> bool:
    """Whether a neighbour of a voxel inside the image belongs to another structure or to none."""
    mine, limit = number[flat[i]], number.size
    for stride in strides:
        left, right = flat[i - stride], flat[i + stride]
        if left >= limit or right >= limit or number[left] != mine or number[right] != mine:
            return True
    return False


@_compiled
def surface_voxels(
    volume: np.ndarray, number: np.ndarray, flat_axis: bool, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Surface voxels of all structures in the planes from `start` to `stop`.

    Args:
        volume: labels, shape `(Z, Y, X)`.
        number: label -> number of its structure, 0 for none; shape `(L,)`, higher labels are 0.
        flat_axis: whether the first axis is only there to make three.
        start: first plane.
        stop: the plane after the last one.

    Returns:
        Flat index and number of every voxel with a face neighbour of another number or outside
        the image, in C order.
    """
    planes, rows, columns = volume.shape
    flat = volume.reshape(-1)
    plane, per_word = rows * columns, 8 // volume.itemsize
    strides = (columns if flat_axis else plane, columns, 1)
    block = max(BLOCK // columns, 1)  # rows that are looked at together
    flags = np.zeros((block * columns + per_word - 1) // per_word * per_word, volume.dtype)
    words = flags.view(np.uint64)
    index, value = np.empty(4096, np.int64), np.empty(4096, np.uint16)
    found = 0
    for z in range(start, stop):
        outer_z = not flat_axis and (z == 0 or z == planes - 1)
        y = 0
        while y < rows:
            edge = outer_z or y == 0 or y == rows - 1
            many = 1 if edge else min(block, rows - 1 - y)
            begin, size = z * plane + y * columns, many * columns
            y += many
            if edge:
                flags[:size] = flat[begin : begin + size]
            else:
                _edges_of_rows(flat, begin, columns, plane, flat_axis, flags[:size])
            for word in range((size + per_word - 1) // per_word):
                if not words[word]:
                    continue
                for place in range(word * per_word, min((word + 1) * per_word, size)):
                    i = begin + place
                    label = flat[i]
                    mine = number[label] if flags[place] and label < number.size else 0
                    if not mine:
                        continue
                    x = place % columns
                    at_side = edge or x == 0 or x == columns - 1
                    if not (at_side or _is_surface(flat, i, strides, number)):
                        continue
                    if found == index.size:
                        index = np.concatenate((index, np.empty_like(index)))
                        value = np.concatenate((value, np.empty_like(value)))
                    index[found], value[found] = i, mine
                    found += 1
    return index[:found].copy(), value[:found].copy()


@_compiled
def bounds(
    one: np.ndarray, other: np.ndarray, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest z, y and x of two arrays of flat indices into a volume."""
    low, high = np.array(shape), np.zeros(3, np.int64)
    for index in (one, other):
        for i in range(index.size):
            rest, x = divmod(index[i], shape[2])
            z, y = divmod(rest, shape[1])
            low[0], low[1], low[2] = min(low[0], z), min(low[1], y), min(low[2], x)
            high[0], high[1], high[2] = max(high[0], z), max(high[1], y), max(high[2], x)
    return low, high


@_compiled
def moved(
    index: np.ndarray, shape: tuple[int, int, int], strides: tuple[int, int, int], first: int
) -> np.ndarray:
    """The same voxels as flat indices with other strides, of which `first` is subtracted."""
    answer = np.empty_like(index)
    for i in range(index.size):
        rest, x = divmod(index[i], shape[2])
        z, y = divmod(rest, shape[1])
        answer[i] = z * strides[0] + y * strides[1] + x * strides[2] - first
    return answer


@_compiled
def mark(volume: np.ndarray, points: np.ndarray, numbers: np.ndarray) -> None:
    """Write `numbers` into a flat volume at `points`."""
    for i in range(points.size):
        volume[points[i]] = numbers[i]


@_compiled
def walk(
    volume: np.ndarray,
    points: np.ndarray,
    numbers: np.ndarray,
    moves: np.ndarray,
    ends: np.ndarray,
    mixed: np.ndarray,
    steps: np.ndarray,
    distance: np.ndarray,
    spacing: np.ndarray,
    found: np.ndarray,
) -> None:
    """Distance of every point to the nearest voxel that `volume` marks with its number.

    Args:
        volume: flat, padded so that no move from a point leaves it.
        points: flat indices, shape `(n,)`.
        numbers: what is looked for, shape `(n,)`.
        moves: change of the flat index, by growing distance, shape `(m,)`.
        ends: end of the run of equally long moves that each move belongs to, shape `(m,)`.
        mixed: whether distances in the move's run differ in the last places, shape `(m,)`.
        steps: the moves in voxels, shape `(m, 3)`; sorted within a run as `ties.chosen` wants.
        distance: the moves' lengths, shape `(m,)`.
        spacing: shape `(3,)`.
        found: the answer, shape `(n,)`; negative where no move arrives.
    """
    for i in range(points.size):
        point, number = points[i], numbers[i]
        found[i] = -1.0
        for m in range(moves.size):
            if volume[point + moves[m]] == number:
                found[i] = distance[m]
                if mixed[m]:
                    tied = np.empty((ends[m] - m, 3), np.int64)
                    count = 0
                    for n in range(m, ends[m]):
                        if volume[point + moves[n]] == number:
                            tied[count] = steps[n]
                            count += 1
                    if count > 1:
                        found[i] = np.sqrt(chosen(tied[:count], spacing))
                break


@_compiled
def count_bands(
    reference: np.ndarray,
    prediction: np.ndarray,
    surface: np.ndarray,
    spacing: np.ndarray,
    reach: np.ndarray,
    edges: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Count voxels by distance from the surface voxels, as `bands.error_bands` says.

    Distances are exact up to the last edge: along the first axis they are counted in voxels, then
    plane by plane the least sum of squares is taken along the second and the third.

    Args:
        reference: mask, 0 or 1, shape `(Z, Y, X)`.
        prediction: likewise.
        surface: likewise, surface voxels of the reference.
        spacing: shape `(3,)`.
        reach: voxels to look at on either side along each axis, shape `(3,)`.
        edges: squared distances, ascending, shape `(E,)`.
        counts: adds to `[inside, edge, 0]` the voxels and to `[.., 1]` the wrong ones, shape
            `(2, E + 1, 2)`.
    """
    planes, rows, columns = surface.shape
    beyond = np.inf
    first, second = np.empty((rows, columns)), np.empty((rows, columns))
    third = np.empty(columns)
    for z in range(planes):
        first[:] = beyond
        for other in range(max(z - reach[0], 0), min(z + reach[0] + 1, planes)):
            square = ((other - z) * spacing[0]) ** 2
            for y in range(rows):
                for x in range(columns):
                    if surface[other, y, x] and square < first[y, x]:
                        first[y, x] = square
        for y in range(rows):
            second[y] = beyond
            for other in range(max(y - reach[1], 0), min(y + reach[1] + 1, rows)):
                square = ((other - y) * spacing[1]) ** 2
                for x in range(columns):
                    second[y, x] = min(second[y, x], first[other, x] + square)
            third[:] = second[y]
            for shift in range(1, min(reach[2], columns - 1) + 1):
                square = (shift * spacing[2]) ** 2
                for x in range(columns - shift):
                    third[x] = min(third[x], second[y, x + shift] + square)
                    third[x + shift] = min(third[x + shift], second[y, x] + square)
            for x in range(columns):
                edge = 0
                while edge < edges.size and third[x] > edges[edge]:
                    edge += 1
                inside = reference[z, y, x]
                counts[inside, edge, 0] += 1
                counts[inside, edge, 1] += inside != prediction[z, y, x]
