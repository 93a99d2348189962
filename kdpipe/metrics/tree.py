"""The nearest voxel of one structure, by a k-d tree: at any distance, and without numba."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from kdpipe.metrics.ball import ball_of
from kdpipe.metrics.points import Spacing, exact_sums, squared_lengths, unravel
from kdpipe.metrics.ties import TIE, chosen

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

TREE_NEIGHBOURS = 8
"""Neighbours asked of the tree to settle a tie: enough for most."""


def in_tree(
    source: np.ndarray, target: np.ndarray, shape: tuple[int, int, int], spacing: Spacing
) -> np.ndarray:
    """Distances from flat indices to the nearest of other flat indices, by a k-d tree."""
    answer = np.zeros(source.size)
    away = np.flatnonzero(~np.isin(source, target, assume_unique=True))
    if not away.size:
        return answer
    from scipy.spatial import cKDTree  # heavy, and a training does not need it

    steps = np.array(spacing)
    start, goal = unravel(source[away], shape).T, unravel(target, shape).T
    tree = cKDTree(goal * steps, balanced_tree=False, compact_nodes=False)
    exact = exact_sums(spacing, shape) or len(goal) == 1
    asked = np.arange(1, 2 if exact else 3)
    _, found = tree.query(start * steps, k=asked)
    both = squared_lengths(goal[found] - start[:, None], spacing)
    squares = both.min(axis=1)
    if not exact:
        tied = (both <= squares[:, None] * (1 + TIE)).all(axis=1)
        unsure = np.flatnonzero(tied & ~ball_of(spacing, shape).sure(squares))
        squares[unsure] = _settle_ties(tree, start[unsure], goal, squares[unsure], spacing)
    answer[away] = np.sqrt(squares)
    return answer


def _settle_ties(
    tree: cKDTree, start: np.ndarray, goal: np.ndarray, lowest: np.ndarray, spacing: Spacing
) -> np.ndarray:
    """Squared distances to the voxels that scipy would take among the nearest ones."""
    if not len(start):
        return lowest
    steps, asked = np.array(spacing), min(TREE_NEIGHBOURS, len(goal))
    _, found = tree.query(start * steps, k=np.arange(1, asked + 1))
    squares = squared_lengths(goal[found] - start[:, None], spacing)
    lowest = squares.min(axis=1)
    tied = squares <= lowest[:, None] * (1 + TIE)
    differ = np.where(tied, squares, lowest[:, None]).max(axis=1) != lowest
    for i in np.flatnonzero(differ | (tied.all(axis=1) & (asked < len(goal)))):
        near = tree.query_ball_point(start[i] * steps, math.sqrt(lowest[i]) * (1 + 1e-9))
        lowest[i] = _choose(goal[near] - start[i], spacing)
    return lowest


def _choose(steps: np.ndarray, spacing: Spacing) -> float:
    squares = squared_lengths(steps, spacing)
    tied = steps[squares <= squares.min() * (1 + TIE)]
    return chosen(tied[np.lexsort((tied[:, 1], tied[:, 2]))], np.array(spacing))
