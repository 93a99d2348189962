"""CIRKD: what its queues hold, what is drawn from them, and the relations within a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fakes import PROGRESS, build, context, pair, target, total
from torch import Tensor

from kdpipe.methods import cirkd
from kdpipe.terms.divergences import bernoulli_kl
from kdpipe.terms.features import normalised
from kdpipe.terms.masks import class_masks


def step(method: Any, labels: Tensor) -> dict[str, Tensor]:
    student, teacher = pair(method)
    return method(student, teacher, labels, PROGRESS)


def coded(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Unit vectors that are the class itself, one-hot, and the masks."""
    masks = class_masks(labels, classes, regions=False)
    return masks.float(), masks


@pytest.mark.parametrize("pure", [True, False])
def test_the_voxel_queue_of_a_class_holds_only_that_class_unless_published(pure: bool) -> None:
    torch.manual_seed(0)
    labels = torch.arange(4).repeat_interleave(25).reshape(1, 10, 10)
    units, masks = coded(labels, 4)
    params = cirkd.Params(pixel_queue=12, region_queue=2, pixels=8, class_pure=pure)
    memory = cirkd.Memory(2, 3, 4, 4, params)
    memory.enqueue_pixels(units, masks)
    found = memory.pixel_queue.keys[:, :8].argmax(2)
    assert memory.pixel_queue.pointer.tolist() == [8] * 4
    assert (found == torch.arange(4).unsqueeze(1)).all() == pure
    if not pure:  # the public code takes the first voxels of the image, here all of class 0
        assert (found == 0).all()


def test_pure_draws_differ_between_steps_and_repeat_with_the_seed() -> None:
    units = normalised(torch.randn(1, 4, 10, 10), dim=1)
    masks = torch.ones(1, 1, 10, 10, dtype=torch.bool)
    memory = cirkd.Memory(2, 3, 4, 1, cirkd.Params(pixel_queue=16, region_queue=2, pixels=16))
    held = []
    for seed in (3, 4, 3):
        torch.manual_seed(seed)
        memory.enqueue_pixels(units, masks)
        held.append(memory.pixel_queue.keys.clone())
    assert torch.equal(held[0], held[2])
    assert not torch.equal(held[0], held[1])


def test_the_oldest_vectors_are_replaced_around_the_end_of_the_ring() -> None:
    queue = cirkd.ClassQueue(2, 5, 3)
    untouched = queue.keys[0].clone()
    vectors = torch.nn.functional.normalize(torch.randn(7, 3), dim=1)
    queue.push(1, 4.0 * vectors[:3])
    queue.push(1, 4.0 * vectors[3:])
    torch.testing.assert_close(queue.keys[1], vectors[[5, 6, 2, 3, 4]])
    assert queue.pointer.tolist() == [0, 2]
    queue.push(1, torch.cat([vectors, vectors.flip(0)]))  # more than it holds: the newest stay
    held = {tuple(row) for row in queue.keys[1].mul(1e4).round().int().tolist()}
    assert held == {tuple(row) for row in vectors[:5].mul(1e4).round().int().tolist()}
    assert torch.equal(queue.keys[0], untouched)


def test_region_queue_gets_the_unit_mean_of_each_sample_and_region() -> None:
    torch.manual_seed(1)
    units = normalised(torch.randn(2, 3, 4, 4, dtype=torch.float64), dim=1)
    masks = torch.rand(2, 2, 4, 4) > 0.4  # overlapping
    masks[1, 0] = False
    memory = cirkd.Memory(2, 3, 3, 2, cirkd.Params(pixel_queue=4, region_queue=6)).double()
    before = memory.region_queue.keys.clone()
    memory.enqueue_regions(units, masks)
    assert memory.region_queue.pointer.tolist() == [1, 2]
    for row, slot, sample in [(0, 0, 0), (1, 0, 0), (1, 1, 1)]:
        mean = units[sample].numpy()[:, masks[sample, row].numpy()].mean(1)
        expected = mean / np.linalg.norm(mean)
        np.testing.assert_allclose(memory.region_queue.keys[row, slot], expected, rtol=1e-6)
    assert torch.equal(memory.region_queue.keys[0, 1:], before[0, 1:])


def test_a_resumed_training_draws_what_an_uninterrupted_one_draws() -> None:
    labels = target(3)
    method = build("cirkd", context(3), anchors=5, pixel_queue=100)
    step(method, labels)
    state = {key: value.clone() for key, value in method.state_dict().items()}
    generator = torch.get_rng_state()
    expected = [total(step(method, labels)).item() for _ in range(2)]
    fresh = build("cirkd", context(3), anchors=5, pixel_queue=100)
    fresh.load_state_dict(state)
    torch.set_rng_state(generator)
    assert [total(step(fresh, labels)).item() for _ in range(2)] == expected
    assert fresh.memory.pixel_queue.pointer.sum() > 0
    again = [total(step(fresh, labels)).item() for _ in range(2)]
    assert again != expected  # the draws matter at all


@pytest.mark.parametrize(
    ("targets", "background", "rows"),
    [("classes", False, 3), ("classes", True, 4), ("regions", False, 4)],
)
def test_which_classes_have_queues_and_anchors(
    monkeypatch: pytest.MonkeyPatch, targets: str, background: bool, rows: int
) -> None:
    anchors = []
    original = cirkd.memory_loss
    monkeypatch.setattr(cirkd, "memory_loss", lambda *a: anchors.append(len(a[0])) or original(*a))
    method = build("cirkd", context(2, targets), background=background, pool=1, weight_region=0)
    labels = target(2, targets)
    step(method, labels)
    assert method.memory.pixel_queue.keys.shape == (rows, 2048, 8)
    assert method.memory.region_queue.keys.shape == (rows, 256, 8)
    inside = labels.amax(1) > 0 if targets == "regions" else (labels > 0) | background
    assert anchors == [inside[:, ::2, ::2].sum().item()]  # on the coarser grid
    assert 0 < anchors[0] < inside[:, ::2, ::2].numel() or background


def test_anchors_and_places_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    anchors, places = [], []
    memory, relation = cirkd.memory_loss, cirkd.relation_kl
    monkeypatch.setattr(
        cirkd, "memory_loss", lambda *a: anchors.append(a[0].shape[0]) or memory(*a)
    )
    monkeypatch.setattr(cirkd, "relation_kl", lambda *a: places.append(a[0].shape) or relation(*a))
    method = build("cirkd", context(3), anchors=7, background=True, grid=2)
    step(method, target(3))
    assert anchors == [7, 7]
    assert places == [(2, 8, 8)] * 2  # of each sample to both


def test_a_batch_without_anchors_gives_zero_and_a_gradient_of_zero() -> None:
    method = build("cirkd", context(3))
    terms = step(method, torch.zeros_like(target(3)))
    assert terms["pixel"].item() == terms["region"].item() == 0.0
    (terms["pixel"] + terms["region"]).backward()
    assert all(parameter.grad.abs().sum() == 0 for parameter in method.parameters())


def test_relations_within_the_batch_equal_a_computation_pair_by_pair() -> None:
    torch.manual_seed(2)
    student = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 7, 6, dtype=torch.float64)

    def rows(feature: np.ndarray, i: int, j: int) -> np.ndarray:
        unit = feature / np.linalg.norm(feature, axis=1, keepdims=True)
        powers = np.exp(unit[i].T @ unit[j] / 0.3)
        return powers / powers.sum(1, keepdims=True)

    def divergence(i: int, j: int) -> float:
        p, q = (rows(x.detach().numpy(), i, j) for x in (student, teacher))
        return float((q * np.log(q / p)).sum(1).mean())

    value = cirkd.batch_relation_loss(student, teacher, 0.3)
    expected = np.mean([divergence(i, j) for i in range(3) for j in range(3)])
    assert value.item() == pytest.approx(expected, rel=1e-5)
    single = cirkd.batch_relation_loss(student, teacher, 0.3, single_batch=True)
    assert single.item() == pytest.approx(divergence(0, 0), rel=1e-5)
    single.backward()
    assert student.grad[0].abs().sum() > 0
    assert student.grad[1:].abs().sum() == 0


def test_kd_of_overlapping_regions_is_bernoulli() -> None:
    method = build("cirkd", context(2, "regions"), tau=2.0)
    student, teacher = pair(method)
    terms = method(student, teacher, target(2, "regions"), PROGRESS)
    expected = 4.0 * bernoulli_kl(student.logits, teacher.logits, 2.0).sum(1).mean()
    torch.testing.assert_close(terms["kd"], expected)


def test_without_memory_terms_there_is_no_queue_to_save() -> None:
    method = build("cirkd", context(3), weight_pixel=0, weight_region=0)
    assert method.state_dict() == {}
    assert set(step(method, target(3))) == {"kd", "batch"}
