"""Facts of the methods that compare features: FT, SKD, IFVD, MGD, DSD, RKD, SP."""

from __future__ import annotations

import itertools
import logging
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fakes import PROGRESS, TEACHER, build, context, pair, target, total
from torch import Tensor

from kdpipe.errors import ConfigError
from kdpipe.methods.base import Distiller, Outputs
from kdpipe.methods.dsd import csd_loss, psd_loss
from kdpipe.methods.ft import factor_loss, factor_network, fit_autoencoder
from kdpipe.methods.ifvd import ifvd_loss, variation_maps
from kdpipe.methods.mgd import erase, generation_loss
from kdpipe.methods.rkd import angle_loss, distance_loss, embeddings
from kdpipe.methods.skd import pair_loss, pixel_loss
from kdpipe.methods.sp import sp_loss
from kdpipe.terms.adversarial import Critic, wasserstein_loss
from kdpipe.terms.features import pool_to


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(batches: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Smooth teacher features of 8 channels that 2 numbers a voxel describe."""
    mixture = drawn(8, 2, seed=7)
    codes = [drawn(2, 2, 4, 4, seed=10 + step) for step in range(batches)]
    smooth = [F.interpolate(code, scale_factor=4, mode="bilinear") for code in codes]
    return [torch.einsum("ck,bk...->bc...", mixture, code).to(dtype) for code in smooth]


def fed(tap: str, features: list[Tensor]) -> list[Outputs]:
    return [Outputs(feature[:, :4], {tap: feature}) for feature in features]


# FT


def test_the_paraphraser_learns_to_reconstruct_and_is_frozen() -> None:
    torch.manual_seed(0)
    encoder, decoder = factor_network(2, 8, 4, norm=False), factor_network(2, 4, 8, norm=False)
    before = [parameter.clone() for parameter in encoder.parameters()]
    errors = fit_autoencoder(encoder, decoder, low_rank(100), 3e-3)
    assert np.mean(errors[-10:]) < 0.5 * errors[0]
    after = list(encoder.parameters())
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert not any(parameter.requires_grad for parameter in after)
    assert all(parameter.grad is None for parameter in after)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_prefitting_takes_half_precision_and_a_loop_without_gradients(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    method = build("ft", context(2), prefit_steps=4)
    assert method.prefit_steps() == 4
    kept = method.paraphraser[0].weight.clone()
    with torch.no_grad(), torch.autocast("cpu"), caplog.at_level(logging.INFO):
        method.prefit(fed("penult", low_rank(4, dtype)))
    assert not torch.equal(kept, method.paraphraser[0].weight)
    assert method.paraphraser[0].weight.dtype == torch.float32
    assert "after 4 steps" in caplog.text


def test_a_paraphraser_that_does_not_learn_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    method = build("ft", context(2), prefit_rate=3.0)
    method.prefit(fed("penult", low_rank(5)))
    assert "it has not learnt" in caplog.text


def test_only_the_translator_is_trained_with_the_student_prefitted_or_not() -> None:
    method = build("ft", context(3))
    names = {key for key, value in method.named_parameters() if value.requires_grad}
    assert names
    assert all(key.startswith("translator.") for key in names)
    _, teacher = pair(method)
    assert teacher is not None
    keys = method.state_dict().keys()
    method.prefit([teacher])
    assert {key for key, value in method.named_parameters() if value.requires_grad} == names
    assert method.state_dict().keys() == keys


def test_no_prefitting_without_weight_or_steps() -> None:
    assert build("ft", context(2), weight=0.0).prefit_steps() == 0
    assert build("ft", context(2), prefit_steps=0).prefit_steps() == 0
    assert build("ft", context(2)).prefit_steps() == 200


def test_factor_loss_does_not_depend_on_patch_or_scale_and_the_published_mean_does() -> None:
    small, large = [(drawn(2, 4, *[s] * 3), drawn(2, 4, *[s] * 3, seed=1)) for s in (6, 24)]
    assert factor_loss(*small).item() == pytest.approx(factor_loss(*large).item(), rel=0.05)
    torch.testing.assert_close(factor_loss(100.0 * small[0], small[1]), factor_loss(*small))
    published = factor_loss(*small, "mean") / factor_loss(*large, "mean")
    assert published.item() == pytest.approx(8.0, rel=0.05)  # root of 64 times the voxels


# SKD


def test_pixel_loss_of_regions_is_binary_cross_entropy_with_its_minimum_at_the_teacher() -> None:
    teacher = drawn(2, 3, 4, 5, 6)
    p, q = drawn(2, 3, 4, 5, 6, seed=1).sigmoid(), teacher.sigmoid()
    expected = -(q * p.log() + (1 - q) * (1 - p).log()).sum(1).mean()
    torch.testing.assert_close(pixel_loss(p.logit(), teacher, regions=True), expected)
    at_teacher = teacher.clone().requires_grad_()
    pixel_loss(at_teacher, teacher, regions=True).backward()
    assert at_teacher.grad is not None
    assert at_teacher.grad.abs().max() < 1e-7


def test_published_pixel_loss_grows_with_the_batch() -> None:
    student, teacher = drawn(3, 4, 6, 6), drawn(3, 4, 6, 6, seed=1)
    published = pixel_loss(student, teacher, reduction="batch_sum")
    torch.testing.assert_close(published, 3.0 * pixel_loss(student, teacher))


def test_pair_loss_compares_the_same_nodes_on_any_grids_and_widths() -> None:
    student = drawn(2, 6, 8, 12, 8)
    fine = F.interpolate(student, scale_factor=2, mode="nearest")
    rotation = torch.linalg.qr(drawn(6, 6, seed=3))[0]
    turned = torch.einsum("dc,bc...->bd...", rotation, student)
    assert pair_loss(student, fine, 2).item() < 1e-12
    assert pair_loss(student, turned, 12).item() < 1e-12  # a node a voxel: maxima do not matter
    assert pair_loss(student, fine.flip(2), 2).item() > 1e-4


def holistic(dims: int, targets: str = "classes") -> Distiller:
    return build("skd", context(dims, targets), weight_holistic=0.1)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("targets", ["classes", "regions"])
def test_critic_and_student_pull_in_opposite_directions_and_leave_each_other_alone(
    dims: int, targets: str
) -> None:
    method = holistic(dims, targets)
    student, teacher = pair(method)
    critics = list(method.critic_parameters())
    assert critics
    terms = method(student, teacher, target(dims, targets), PROGRESS)
    assert terms.keys() == {"pixel", "pair", "holistic"}
    terms["holistic"].backward()
    assert all(parameter.grad is None for parameter in critics)
    assert student.logits.grad is not None
    assert student.logits.grad.abs().sum() > 0

    student.logits.grad = None
    loss = method.critic_loss(student, teacher)
    assert loss is not None
    loss.backward()
    assert student.logits.grad is None
    assert all(
        parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in critics
    )


def test_the_critic_learns_to_score_the_teacher_above_the_student() -> None:
    torch.manual_seed(0)
    method = holistic(2)
    confident = Outputs(8.0 * F.one_hot(target(2), 4).movedim(-1, 1).float())
    unsure = Outputs(drawn(2, 4, 16, 12))
    optimizer = torch.optim.Adam(method.critic_parameters(), lr=2e-3)
    for _ in range(40):
        loss = method.critic_loss(unsure, confident)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    score = {
        name: method.critic(outputs.logits.softmax(1)).mean().item()
        for name, outputs in {"student": unsure, "teacher": confident}.items()
    }
    assert score["teacher"] > score["student"] + 0.1
    # hence a student like the teacher has the lower term
    method.eval()
    terms = [
        method(
            Outputs(outputs.logits, pair(method)[0].features), pair(method)[1], target(2), PROGRESS
        )["holistic"].item()
        for outputs in (unsure, confident)
    ]
    assert terms[1] < terms[0]


def test_critic_takes_half_precision_with_graph_and_extreme_logits() -> None:
    method = holistic(3)
    student, teacher = (
        outputs.map(lambda tensor: (3000.0 * tensor).half()) for outputs in pair(method)
    )
    assert student.logits.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method.critic_loss(student, teacher)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in method.critic_parameters())


def test_a_flat_critic_has_a_finite_penalty_and_tiny_maps_a_score() -> None:
    critic = Critic(3, 4)
    torch.nn.init.zeros_(critic.score.weight)
    fake, real = torch.zeros(2, 4, 1, 2, 1), torch.ones(2, 4, 1, 2, 1)
    loss = wasserstein_loss(critic, fake, real, penalty=10.0)
    assert loss.item() == pytest.approx(10.0)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in critic.parameters() if p.grad is not None)


def test_without_its_weight_there_is_no_critic() -> None:
    method = build("skd", context(2))
    assert list(method.critic_parameters()) == []
    assert method.critic_loss(*pair(method)) is None
    assert method.state_dict() == {}


# IFVD


def test_variation_map_equals_a_loop_over_voxels() -> None:
    feature, labels = drawn(2, 5, 4, 3).double(), target(2)[:, :4, :3]
    found = variation_maps(feature, labels, 4, regions=False)[:, 0].reshape(2, 4, 3).numpy()
    values, classes = feature.numpy(), labels.numpy()
    for b, i, j in itertools.product(range(2), range(4), range(3)):
        same = classes[b] == classes[b, i, j]
        centre, here = values[b][:, same].mean(1), values[b, :, i, j]
        expected = here @ centre / np.linalg.norm(here) / np.linalg.norm(centre)
        assert found[b, i, j] == pytest.approx(expected)


def test_a_region_is_a_labelling_of_two_classes_and_sees_the_whole_feature() -> None:
    student, teacher = drawn(2, 5, 8, 6, 4), drawn(2, 9, 8, 6, 4, seed=1)
    inside = (drawn(2, 3, 8, 6, 4, seed=2) > 0).long()
    each = [ifvd_loss(student, teacher, inside[:, k], 2) for k in range(3)]
    together = ifvd_loss(student, teacher, inside, 3, regions=True)
    torch.testing.assert_close(together, torch.stack(each).mean())
    student.requires_grad_()
    ifvd_loss(student, teacher, inside, 3, regions=True).backward()
    assert (student.grad.abs().sum(dim=(0, 2, 3, 4)) > 0).all()  # not only channels 0 to 2


def test_ifvd_ignores_the_scale_of_features_and_compares_on_the_coarser_grid() -> None:
    student, teacher, labels = drawn(2, 5, 6, 6), drawn(2, 9, 12, 12), target(2)
    value = ifvd_loss(student, teacher, labels, 4)
    torch.testing.assert_close(ifvd_loss(7.0 * student, 0.2 * teacher, labels, 4), value)
    coarse = F.interpolate(teacher, size=(6, 6), mode="nearest")
    torch.testing.assert_close(ifvd_loss(student, coarse, labels, 4), value)


# MGD


def test_the_mask_erases_positions_in_all_channels_at_the_given_rate() -> None:
    torch.manual_seed(0)
    erased = erase(torch.ones(2, 5, 20, 20, 20), 0.75)
    assert torch.equal(erased.amin(1), erased.amax(1))
    assert erased.mean().item() == pytest.approx(0.25, abs=0.01)
    assert not torch.equal(erased[0], erased[1])
    assert torch.equal(erase(torch.ones(1, 2, 4, 4), 0.0), torch.ones(1, 2, 4, 4))


def test_published_sum_of_mgd_is_the_squared_error_over_the_batch() -> None:
    student, teacher = drawn(2, 3, 4, 4), drawn(2, 3, 4, 4, seed=1)
    expected = (student - teacher).square().sum() / 2
    torch.testing.assert_close(generation_loss(student, teacher, "sum"), expected)


@pytest.mark.parametrize("scale", ["unit", "raw"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_mgd_generates_the_teachers_feature_from_what_is_not_erased(
    reduction: str, scale: str
) -> None:
    specs = TEACHER | {"bottleneck": (16, 2)}
    method = build(
        "mgd", context(2, teacher=specs), weight=3.0, erased=0.5, reduction=reduction, scale=scale
    )
    student, teacher = pair(method)
    assert teacher is not None
    theirs = pool_to(50.0 * teacher.features["bottleneck"], [4, 3])
    if scale == "unit":
        theirs = torch.stack([sample / sample.square().mean().sqrt() for sample in theirs])
    torch.manual_seed(4)
    kept = torch.rand(2, 1, 4, 3) >= 0.5
    generated = method.generate(kept * method.align(student.features["bottleneck"]))
    squared = (generated - theirs).square()
    expected = 3.0 * (squared.mean() if reduction == "mean" else squared.sum() / 2)
    torch.manual_seed(4)
    larger = Outputs(teacher.logits, {"bottleneck": 50.0 * teacher.features["bottleneck"]})
    found = method(student, larger, target(2), PROGRESS)
    torch.testing.assert_close(found, {"generation": expected}, rtol=1e-4, atol=1e-5)


def test_mgd_aligns_only_where_channels_differ() -> None:
    assert list(build("mgd", context(2)).align.parameters())
    assert not list(build("mgd", context(2, student=TEACHER)).align.parameters())


# DSD


def test_psd_sees_what_changes_between_stages_not_what_they_share() -> None:
    base = drawn(2, 4, 6, 6)
    assert psd_loss([base, base], [base, base]).item() == 0.0
    stages = [drawn(2, 4, 6, 6, seed=seed) for seed in range(3)]
    ours = [3.0 * stage for stage in stages]
    assert psd_loss(ours, stages).item() == pytest.approx(0.0, abs=1e-6)
    backwards = psd_loss([stages[1], stages[0]], stages[:2])
    assert backwards.item() == pytest.approx(4.0, rel=1e-4)  # opposite unit vectors
    mean = psd_loss([stages[1], stages[0]], stages[:2], "mean")
    assert mean.item() == pytest.approx(4.0 / 36, rel=1e-4)


def test_equal_stages_of_the_student_give_a_finite_gradient() -> None:
    stage = drawn(2, 4, 6, 6).requires_grad_()
    psd_loss([stage, stage], [drawn(2, 4, 6, 6), drawn(2, 4, 6, 6, seed=1)]).backward()
    assert torch.isfinite(stage.grad).all()


def test_category_term_keeps_its_size_with_the_patch_and_the_published_product_does_not() -> None:
    def value(side: int, similarity: str) -> float:
        student, teacher = (20.0 * drawn(1, 4, *[side] * 3, seed=seed) for seed in (0, 1))
        return csd_loss(student, teacher.abs(), 4.0, similarity).item()

    assert 0.3 < value(24, "cosine") / value(12, "cosine") < 3.0
    assert value(24, "product") < 0.1 * value(12, "product")


def test_dsd_wants_two_stages() -> None:
    with pytest.raises(ConfigError, match="dsd: a difference needs two stages"):
        build("dsd", context(2), student_taps=("enc1",), teacher_taps=("enc1",))


# RKD


def test_rkd_equals_loops_over_pairs_and_triples() -> None:
    student, teacher = drawn(5, 3).double(), drawn(5, 7, seed=1).double()

    def huber(difference: float) -> float:
        size = abs(difference)
        return 0.5 * size**2 if size < 1 else size - 0.5

    def distance(points: np.ndarray, i: int, j: int) -> float:
        pairs = itertools.permutations(range(5), 2)
        mean = np.mean([np.linalg.norm(points[a] - points[b]) for a, b in pairs])
        return float(np.linalg.norm(points[i] - points[j]) / mean)

    def angle(points: np.ndarray, i: int, j: int, k: int) -> float:
        if i in (j, k):
            return 0.0
        a, b = points[j] - points[i], points[k] - points[i]
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    ours, theirs = student.numpy(), teacher.numpy()
    pairs = [
        huber(distance(ours, *ij) - distance(theirs, *ij))
        for ij in itertools.product(range(5), repeat=2)
    ]
    triples = [
        huber(angle(ours, *ijk) - angle(theirs, *ijk))
        for ijk in itertools.product(range(5), repeat=3)
    ]
    assert distance_loss(student, teacher).item() == pytest.approx(np.mean(pairs))
    assert angle_loss(student, teacher).item() == pytest.approx(np.mean(triples))


def test_rkd_is_blind_to_rotation_shift_and_scale() -> None:
    teacher = drawn(6, 4).double()
    rotation = torch.linalg.qr(drawn(4, 4, seed=2).double())[0]
    student = 3.0 * teacher @ rotation + 5.0
    assert distance_loss(student, teacher).item() == pytest.approx(0.0, abs=1e-12)
    assert angle_loss(student, teacher).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("rows", [1, 2])
def test_too_few_embeddings_give_zero_with_a_path_for_the_gradient(rows: int) -> None:
    student = drawn(rows, 4).requires_grad_()
    terms = distance_loss(student, drawn(rows, 6)), angle_loss(student, drawn(rows, 6, seed=1))
    for term in terms:
        (gradient,) = torch.autograd.grad(term, student, retain_graph=True)
        assert term.item() == pytest.approx(0.0, abs=1e-6)
        assert gradient.abs().max() < 1e-5


def test_cells_make_a_batch_of_one_a_relation_and_equal_cells_do_no_harm() -> None:
    student, teacher = drawn(1, 5, 4, 4, 4), drawn(1, 9, 8, 8, 8)
    ours, theirs = embeddings(student, teacher, 2)
    assert (ours.shape, theirs.shape) == ((8, 5), (8, 9))
    ours[1] = ours[0]
    ours[2] = ours[0] + 1e-7
    ours.requires_grad_()
    (distance_loss(ours, theirs) + angle_loss(ours, theirs)).backward()
    assert ours.grad.abs().max() < 100.0


# SP


def test_sp_equals_its_definition_and_both_reductions_differ_by_the_batch() -> None:
    student, teacher = drawn(3, 4, 5, 5).double(), drawn(3, 7, 2, 2, 2).double()

    def gram(feature: Tensor) -> np.ndarray:
        rows = feature.flatten(1).numpy()
        inner = rows @ rows.T
        return inner / np.linalg.norm(inner, axis=1, keepdims=True)

    expected = np.sum((gram(student) - gram(teacher)) ** 2) / 3**2
    assert sp_loss(student, teacher, "entries").item() == pytest.approx(expected)
    assert sp_loss(student, teacher).item() == pytest.approx(3 * expected)


def test_one_sample_has_no_similarity_and_no_harm() -> None:
    method = build("sp", context(3))
    student, teacher = pair(method, batch=1)
    value = total(method(student, teacher, target(3, batch=1), PROGRESS))
    value.backward()
    gradient = student.features["bottleneck"].grad
    assert math.isclose(value.item(), 0.0, abs_tol=1e-9)
    assert gradient is not None and gradient.abs().max() < 1e-6


@pytest.mark.parametrize("name", ["ft", "skd", "ifvd", "mgd", "rkd", "sp"])
def test_an_unknown_tap_is_named_with_those_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match="the teacher has no tap 'penalt'.*Valid: bottleneck"):
        build(name, context(2), teacher_tap="penalt")
