"""EMKD: region affinities against loops, what an absent class does, and which stages are taken."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fakes import build, context
from torch import Tensor

from kdpipe.errors import ConfigError
from kdpipe.methods.emkd import imd_loss, rad_loss

CLASSES = 4


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))


def mean(feature: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return feature[:, mask].mean(1)


def loops(student: Tensor, teacher: Tensor, labels: Tensor) -> dict[tuple[int, int, int], float]:
    """(sample, i, j) -> squared difference of the cosines, for the pairs that are there."""
    found = {}
    for b in range(len(labels)):
        masks = [labels[b].numpy() == k for k in range(CLASSES)]
        ours, theirs = student[b].numpy(), teacher[b].numpy()
        for i in range(CLASSES):
            for j in range(i + 1, CLASSES):
                if masks[i].any() and masks[j].any():
                    sides = [cosine(mean(x, masks[i]), mean(x, masks[j])) for x in (ours, theirs)]
                    found[b, i, j] = (sides[0] - sides[1]) ** 2
    return found


def drawn(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(2, 5, *shape, generator=generator, dtype=torch.float64)
    teacher = torch.randn(2, 7, *shape, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(0, CLASSES, (2, *shape), generator=generator)


@pytest.mark.parametrize("shape", [(6, 5), (4, 5, 3)])
def test_affinities_against_loops_where_classes_are_absent(shape: tuple[int, ...]) -> None:
    student, teacher, labels = drawn(shape)
    labels[0][labels[0] == 2] = 0
    found = loops(student, teacher, labels)
    assert len(found) == 3 + 6
    loss = rad_loss(student, teacher, labels, CLASSES)
    assert loss.item() == pytest.approx(np.mean(list(found.values())), rel=1e-9)
    published = rad_loss(student, teacher, labels, CLASSES, "published")
    assert published.item() == pytest.approx(sum(found.values()) / 2, rel=1e-9)


def test_the_published_sum_is_the_mean_times_the_pairs() -> None:
    student, teacher, labels = drawn((6, 5))
    ratio = rad_loss(student, teacher, labels, CLASSES, "published") / rad_loss(
        student, teacher, labels, CLASSES
    )
    assert ratio.item() == pytest.approx(6.0)


def test_a_region_is_compared_with_its_complement_and_an_absent_one_left_out() -> None:
    student, teacher, labels = drawn((6, 5))
    target = torch.stack((labels > 1, labels > 0, labels > 9), dim=1).long()
    expected = []
    for b in range(2):
        for k in range(2):
            inside = target[b, k].numpy() > 0
            sides = [
                cosine(mean(x[b].numpy(), inside), mean(x[b].numpy(), ~inside))
                for x in (student, teacher)
            ]
            expected.append((sides[0] - sides[1]) ** 2)
    loss = rad_loss(student, teacher, target, 3)
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-9)
    published = rad_loss(student, teacher, target, 3, "published")
    assert published.item() == pytest.approx(sum(expected) / 6, rel=1e-9)


def test_affinities_ignore_scale_and_the_order_of_channels() -> None:
    student, teacher, labels = drawn((6, 5))
    loss = rad_loss(student, teacher, labels, CLASSES)
    changed = rad_loss(9.0 * student.flip(1), 0.1 * teacher, labels, CLASSES)
    torch.testing.assert_close(changed, loss)


def test_labels_go_to_the_grid_of_each_feature() -> None:
    student, teacher, labels = drawn((6, 5))
    fine = labels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    wide = teacher.repeat_interleave(2, 2).repeat_interleave(2, 3)
    loss = rad_loss(student, teacher, labels, CLASSES)
    torch.testing.assert_close(rad_loss(student, wide, fine, CLASSES), loss)


@pytest.mark.parametrize("pairs", ["mean", "published"])
def test_one_class_alone_and_features_of_zero_give_zero_and_a_finite_gradient(pairs: str) -> None:
    student, teacher, labels = drawn((6, 5))
    alone = rad_loss(student, teacher, torch.zeros_like(labels), CLASSES, pairs)
    assert alone.item() == 0.0
    dead = torch.zeros_like(student).requires_grad_()
    loss = rad_loss(dead, teacher, labels, CLASSES, pairs)
    loss.backward()
    assert loss.item() == 0.0
    assert dead.grad is not None
    assert dead.grad.abs().max() == 0.0


def test_importance_map_is_resized_to_the_teacher_by_the_nearest_voxel() -> None:
    student, teacher, _ = drawn((6, 5))
    wide = student.repeat_interleave(2, 2).repeat_interleave(3, 3)
    target = torch.randn(2, 7, 12, 15, dtype=torch.float64)
    torch.testing.assert_close(imd_loss(student, target), imd_loss(wide, target))
    assert math.isclose(imd_loss(student, student).item(), 0.0, abs_tol=1e-12)
    assert imd_loss(student, teacher, 1) < imd_loss(student, teacher, 4)  # flatter maps


def test_the_deepest_encoder_stage_is_taken_or_the_bottleneck() -> None:
    method = build("emkd", context(3))
    assert method.student_taps() == ("enc1", "enc2")
    assert method.teacher_taps() == ("enc1", "enc3")
    shallow = {"enc1": (6, 1), "bottleneck": (8, 2)}
    assert build("emkd", context(3, student=shallow)).student_taps() == ("enc1", "bottleneck")
    named = build("emkd", context(3), student_low="dec1", teacher_high="penult")
    assert named.student_taps() == ("dec1", "enc2")
    assert named.teacher_taps() == ("enc1", "penult")


def test_a_missing_stage_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="the student has no tap 'enc1'"):
        build("emkd", context(3, student={"dec1": (6, 1)}))
    with pytest.raises(ConfigError, match="the teacher has no tap 'enc7'"):
        build("emkd", context(3), teacher_high="enc7")
