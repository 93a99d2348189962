"""Facts of the methods on logits: kd_mse_sigmoid, ctkd, dist, dkd, nkd, cakd."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from allocations import LargestTensor
from fakes import build, context, pair, target, total
from torch import Tensor

from kdpipe.errors import ConfigError
from kdpipe.methods.base import Progress
from kdpipe.methods.cakd import cakd_loss, fnkd_loss
from kdpipe.methods.ctkd import ctkd_loss
from kdpipe.methods.dist import inter_loss, intra_loss
from kdpipe.methods.dkd import nckd_loss, tckd_loss
from kdpipe.methods.kd import kd_loss
from kdpipe.methods.kd_mse_sigmoid import sigmoid_mse_loss
from kdpipe.methods.nkd import nontarget_loss, target_loss
from kdpipe.terms.weights import half_cosine

FINAL = Progress(epoch=9, epochs=10, step=99, steps=100)


def logits(seed: int, channels: int = 5, size: tuple[int, ...] = (4, 6, 4)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)
    return (2.0 * drawn).requires_grad_()


def labels(channels: int = 5, size: tuple[int, ...] = (4, 6, 4)) -> Tensor:
    return torch.randint(0, channels, (2, *size), generator=torch.Generator().manual_seed(9))


def rows(tensor: Tensor) -> np.ndarray:
    """Voxels x channels."""
    return tensor.detach().movedim(1, -1).flatten(0, -2).numpy()


def softmax(values: np.ndarray) -> np.ndarray:
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def divergence(q: np.ndarray, p: np.ndarray) -> np.ndarray:
    return (q * (np.log(q) - np.log(p))).sum(axis=-1)


def decoupled(tau: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """By hand at every voxel: KD, TCKD, NCKD and the teacher's probability of the label."""
    p, q = softmax(rows(logits(1)) / tau), softmax(rows(logits(2)) / tau)
    others = np.arange(5)[None] != labels().flatten().numpy()[:, None]
    p_y, q_y = p[~others], q[~others]
    p_rest, q_rest = p[others].reshape(-1, 4), q[others].reshape(-1, 4)
    tckd = divergence(np.stack([q_y, 1 - q_y], -1), np.stack([p_y, 1 - p_y], -1))
    nckd = divergence(q_rest / q_rest.sum(1, keepdims=True), p_rest / p_rest.sum(1, keepdims=True))
    return divergence(q, p), tckd, nckd, q_y


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_dkd_is_kd_taken_apart(tau: float) -> None:
    kd, tckd, nckd, label = decoupled(tau)
    np.testing.assert_allclose(kd, tckd + (1 - label) * nckd, rtol=1e-10)
    student, teacher = logits(1), logits(2)
    mine = tckd_loss(student, teacher, labels(), tau).item()
    rest = nckd_loss(student, teacher, labels(), tau).item()
    assert mine == pytest.approx(tau**2 * tckd.mean())
    assert rest == pytest.approx(tau**2 * nckd.mean())
    assert kd_loss(student, teacher, tau).item() == pytest.approx(tau**2 * kd.mean())


def test_dkd_leaves_the_labels_logit_alone_in_the_part_on_other_classes() -> None:
    student = logits(1)
    nckd_loss(student, logits(2), labels(), 4.0).backward()
    inside = torch.nn.functional.one_hot(labels(), 5).movedim(-1, 1).bool()
    assert student.grad is not None
    assert (student.grad[inside] == 0).all()
    assert (student.grad[~inside] != 0).all()


def test_dkd_of_regions_weights_the_outside() -> None:
    student, teacher = logits(1, 3), logits(2, 3)
    inside = torch.stack([labels() > 0, labels() > 1, labels() > 2], dim=1).long()
    square = (1 / (1 + np.exp(-rows(student))) - 1 / (1 + np.exp(-rows(teacher)))) ** 2
    outside = rows(inside) == 0
    tckd = tckd_loss(student, teacher, inside, 4.0, regions=True)
    nckd = nckd_loss(student, teacher, inside, 4.0, regions=True)
    assert (tckd + 8 * nckd).item() == pytest.approx((square * (1 + 8 * outside)).mean())


def test_nkd_by_hand() -> None:
    p, q = softmax(rows(logits(1))), softmax(rows(logits(2)))
    others = np.arange(5)[None] != labels().flatten().numpy()[:, None]
    expected = -(q[~others] * np.log(p[~others])).mean()
    assert target_loss(logits(1), logits(2), labels()).item() == pytest.approx(expected)
    tau = 2.0
    p_rest = softmax(rows(logits(1))[others].reshape(-1, 4) / tau)
    q_rest = softmax(rows(logits(2))[others].reshape(-1, 4) / tau)
    expected = -(tau**2) * (q_rest * np.log(p_rest)).sum(1).mean()
    mine = nontarget_loss(logits(1), logits(2), labels(), tau)
    assert mine.item() == pytest.approx(expected)


def test_nkd_of_a_region_is_that_of_two_classes() -> None:
    student, teacher, inside = logits(1, 1), logits(2, 1), labels() % 2

    def two(tensor: Tensor) -> Tensor:  # background has logit 0
        return torch.cat([torch.zeros_like(tensor), tensor], dim=1)

    region = target_loss(student, teacher, inside.unsqueeze(1), regions=True)
    classes = target_loss(two(student), two(teacher), inside)
    torch.testing.assert_close(region, classes)


@pytest.mark.parametrize("loss", [tckd_loss, nckd_loss, nontarget_loss])
def test_logits_far_below_zero_are_still_masked(loss: Callable[..., Tensor]) -> None:
    # a mask of -1000 instead of "never" would give all probability to the label here
    student, teacher = logits(1), logits(2)
    shifted = (student.detach().float() - 1e4).requires_grad_()
    value = loss(shifted, teacher.float() - 1e4, labels(), 4.0)
    value.backward()
    assert value.item() == pytest.approx(loss(student, teacher, labels(), 4.0).item(), rel=1e-2)
    assert shifted.grad is not None
    assert torch.isfinite(shifted.grad).all()


@pytest.mark.parametrize(
    ("method", "targets", "dead"),
    [
        ("dkd", "classes", "nckd"),
        ("dist", "classes", "inter"),
        ("dist", "regions", "inter"),
        ("nkd", "classes", "nontarget"),
        ("nkd", "regions", "nontarget"),
    ],
)
def test_a_term_that_two_channels_kill_is_left_out_with_a_warning(
    method: str, targets: str, dead: str, caplog: pytest.LogCaptureFixture
) -> None:
    built = build(method, context(3, targets, classes=2))
    assert f"{method}: with" in caplog.text
    student, teacher = pair(built)
    terms = built(student, teacher, target(3, targets, classes=2), FINAL)
    assert len(terms) == 1
    assert dead not in terms
    caplog.clear()
    build(method, context(3))
    assert not caplog.records


def test_the_terms_that_are_left_out_are_dead_indeed() -> None:
    student, teacher, two = logits(1, 2), logits(2, 2), labels(2)
    assert nckd_loss(student, teacher, two, 4.0).item() == 0.0
    assert nontarget_loss(student, teacher, two, 1.0).item() == 0.0
    (gradient,) = torch.autograd.grad(inter_loss(student, teacher, 4.0), student)
    (alive,) = torch.autograd.grad(intra_loss(student, teacher, 4.0), student)
    assert gradient.norm() < 1e-6 * alive.norm()
    whole = tckd_loss(student, teacher, two, 4.0)
    torch.testing.assert_close(whole, kd_loss(student, teacher, 4.0))


@pytest.mark.parametrize("size", [(4, 6, 4), (8, 6)])
def test_dist_by_hand(size: tuple[int, ...]) -> None:
    student, teacher = logits(1, size=size), logits(2, size=size)
    p, q = softmax(rows(student) / 4), softmax(rows(teacher) / 4)
    across = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    along = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    assert inter_loss(student, teacher, 4.0).item() == pytest.approx(16 * (1 - across), rel=1e-5)
    assert intra_loss(student, teacher, 4.0).item() == pytest.approx(16 * (1 - along), rel=1e-5)


def test_dist_has_the_authors_temperature_and_tau_squared_is_a_plain_factor() -> None:
    method = build("dist", context(3), weight_inter=2.0, weight_intra=3.0)
    student, teacher = pair(method)
    assert teacher is not None
    expected = {
        "inter": 2.0 * inter_loss(student.logits, teacher.logits, 1.0),
        "intra": 3.0 * intra_loss(student.logits, teacher.logits, 1.0),
    }
    torch.testing.assert_close(method(student, teacher, target(3), FINAL), expected)
    mild = 0.1 * logits(1), 0.1 * logits(2)  # where a softmax is nearly linear
    for loss in (inter_loss, intra_loss):
        assert (loss(*mild, 4.0) / loss(*mild, 1.0)).item() == pytest.approx(16.0, rel=0.1)


def test_dist_does_not_see_scale_and_offset_of_probabilities() -> None:
    teacher = logits(2)
    probability = teacher.detach().sigmoid()
    weaker = (0.5 * probability + 0.1).logit()
    assert inter_loss(weaker, teacher, 1.0, regions=True).item() == pytest.approx(0, abs=1e-6)
    assert intra_loss(weaker, teacher, 1.0, regions=True).item() == pytest.approx(0, abs=1e-6)
    assert inter_loss(-teacher.detach(), teacher, 1.0, regions=True).item() == pytest.approx(2)
    assert kd_loss(weaker, teacher, 1.0, regions=True).item() > 0.1


def test_dist_of_a_student_without_opinion_has_no_gradient() -> None:
    student = torch.zeros(2, 5, 4, 6, 4, requires_grad=True)
    for loss in (inter_loss, intra_loss):
        value = loss(student, logits(2).float(), 4.0)
        assert value.item() == 16.0
        (gradient,) = torch.autograd.grad(value, student)
        assert (gradient == 0).all()


def test_ctkd_learns_its_temperature_against_the_student() -> None:
    method = build("ctkd", context(3))
    student, teacher = pair(method)
    assert teacher is not None
    temperature = method.temperature
    term = total(method(student, teacher, target(3), FINAL))
    term.backward()
    theta = temperature.theta
    (forward,) = torch.autograd.grad(
        ctkd_loss(
            student.logits,
            teacher.logits,
            temperature.start + temperature.span * theta.sigmoid(),
            False,
        ),
        theta,
    )
    torch.testing.assert_close(theta.grad, -forward)  # reversed, at full strength
    before = theta.detach().clone()
    with torch.no_grad():
        theta -= 5.0 * theta.grad / theta.grad.norm() * 0.1
    assert total(method(student, teacher, target(3), FINAL)) > term
    with torch.no_grad():
        theta.copy_(before)
        student.logits -= 10.0 * student.logits.grad
    assert total(method(student, teacher, target(3), FINAL)) < term


def test_ctkd_strength_is_half_a_cosine() -> None:
    def strength(step: int, growth: float = 0.1) -> float:
        return half_cosine(step / 1000, 0.0, growth)

    assert strength(0) == 0.0
    assert strength(25) == pytest.approx(0.5 * (1 - math.cos(math.pi / 4)))
    assert strength(50) == pytest.approx(0.5)
    assert strength(100) == strength(999) == 1.0
    assert strength(0, growth=0.0) == 1.0


def test_ctkd_temperature_is_fixed_at_first_paced_and_logged() -> None:
    method = build("ctkd", context(2), lr_factor=3.0)
    student, teacher = pair(method)
    total(method(student, teacher, target(2), Progress(0, 10, 0, 100))).backward()
    ((theta, factor),) = method.paced_parameters()
    assert theta.grad is not None
    assert theta.grad.item() == 0.0
    assert factor == 3.0
    assert method.diagnostics() == {"temperature": pytest.approx(15.62, abs=0.01)}
    low = build("ctkd", context(2), start=2.0, span=4.0)
    assert 2.0 < low.diagnostics()["temperature"] < 6.0


def test_ctkd_at_a_temperature_is_kd_at_that_temperature() -> None:
    for regions in (False, True):
        mine = ctkd_loss(logits(1), logits(2), torch.tensor([3.0]).double(), regions)
        torch.testing.assert_close(mine, kd_loss(logits(1), logits(2), 3.0, regions))


def test_kd_switches_are_plain_factors() -> None:
    plain = kd_loss(logits(1), logits(2), 4.0)
    bare = kd_loss(logits(1), logits(2), 4.0, reduction="elements", tau_squared=False)
    torch.testing.assert_close(plain, bare * 5 * 16)
    method = build("kd", context(3), tau_squared=False, reduction="elements")
    student, teacher = pair(method)
    value = total(method(student, teacher, target(3), FINAL))
    whole = build("kd", context(3))(student, teacher, target(3), FINAL)
    torch.testing.assert_close(value * 4 * 16, total(whole))


def test_kd_mse_sigmoid_by_hand() -> None:
    p, q = 1 / (1 + np.exp(-rows(logits(1)))), 1 / (1 + np.exp(-rows(logits(2))))
    assert sigmoid_mse_loss(logits(1), logits(2)).item() == pytest.approx(((p - q) ** 2).mean())


def test_fnkd_by_hand_with_norms_of_voxels() -> None:
    student, teacher = logits(1), logits(2)
    ours, theirs = logits(3, 6), logits(4, 8)

    def temperature(feature: Tensor) -> np.ndarray:
        norms = np.linalg.norm(rows(feature), axis=1).reshape(2, -1)  # samples x voxels
        return (norms / norms.mean(1, keepdims=True)).reshape(-1, 1)

    assert 0.1 < temperature(ours).min() < 0.6 and temperature(ours).max() > 1.4
    p = softmax(rows(student) / temperature(ours))
    q = softmax(rows(teacher) / temperature(theirs))
    value = fnkd_loss(student, teacher, ours, theirs)
    assert value.item() == pytest.approx(-(q * np.log(p)).sum(1).mean(), rel=1e-5)


@pytest.mark.parametrize("regions", [False, True])
def test_fnkd_has_a_temperature_of_about_one_whatever_the_features_scale(regions: bool) -> None:
    student, teacher, ours, theirs = logits(1), logits(2), logits(3, 6), logits(4, 8)
    once = fnkd_loss(student, teacher, ours, theirs, regions)
    large = fnkd_loss(student, teacher, 100.0 * ours, 300.0 * theirs, regions)
    torch.testing.assert_close(large, once, rtol=1e-5, atol=0.0)
    alike, uniform = (
        fnkd_loss(z, teacher, 100.0 * ours, 100.0 * theirs, regions).item()
        for z in (teacher, 0.0 * teacher)
    )
    assert alike < 0.8 * uniform


def test_fnkd_sees_each_samples_own_norms_and_varies_by_voxel() -> None:
    student, teacher, ours, theirs = logits(1), logits(2), logits(3, 6), logits(4, 8)
    together = fnkd_loss(student, teacher, ours, theirs)
    factors = torch.tensor([1.0, 100.0]).double().view(2, 1, 1, 1, 1)
    other = fnkd_loss(student, teacher, ours * factors, theirs)
    torch.testing.assert_close(other, together, rtol=1e-5, atol=0.0)
    flat = fnkd_loss(student, teacher, torch.ones_like(ours), theirs)
    assert abs(flat - together).item() > 0.01


def test_fnkd_of_the_whole_tensor_has_a_gradient_that_vanishes_with_the_patch() -> None:
    def gradient(norm: str, size: tuple[int, ...]) -> float:
        student = logits(1, size=size)
        features = logits(3, 6, size), logits(4, 8, size)
        fnkd_loss(student, logits(2, size=size), *features, norm=norm).backward()
        assert student.grad is not None
        voxels = student[:, 0].numel()
        return voxels * student.grad.abs().mean().item()

    small, large = (4, 4, 4), (12, 12, 12)
    assert gradient("voxel", large) == pytest.approx(gradient("voxel", small), rel=0.2)
    assert gradient("tensor", large) < 0.3 * gradient("tensor", small)
    assert gradient("tensor", small) < 0.3 * gradient("voxel", small)


def test_a_dead_feature_does_not_blow_up_fnkd() -> None:
    student = logits(1)
    dead = torch.zeros(2, 6, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    fnkd_loss(student, logits(2), dead, logits(4, 8)).backward()
    assert dead.grad is not None
    assert (dead.grad == 0).all()
    assert student.grad is not None
    assert student.grad.abs().max() <= 10.0 / student[:, 0].numel()


def test_cakd_of_equal_predictions_is_minus_one_and_ignores_the_patch() -> None:
    student, teacher = logits(1), logits(2)
    assert cakd_loss(teacher, teacher).item() == pytest.approx(-1.0)
    once = cakd_loss(student, teacher)
    assert -1.0 < once.item() < -0.5
    tiled = cakd_loss(student.repeat(1, 1, 2, 2, 2), teacher.repeat(1, 1, 2, 2, 2))
    torch.testing.assert_close(once, tiled)


def test_cakd_alone_wants_no_features_and_a_missing_tap_is_named() -> None:
    alone = build("cakd", context(3, student={"enc1": (6, 2)}), weight_fnkd=0.0)
    assert alone.student_taps() == alone.teacher_taps() == ()
    with pytest.raises(ConfigError, match="the student has no tap 'penult'"):
        build("cakd", context(3, student={"enc1": (6, 2)}))


@pytest.mark.parametrize("targets", ["classes", "regions"])
@pytest.mark.parametrize("name", ["kd", "kd_mse_sigmoid", "ctkd", "dist", "dkd", "nkd", "cakd"])
def test_no_tensor_is_larger_than_what_was_given(name: str, targets: str) -> None:
    method = build(name, context(3, targets))
    student, teacher = pair(method)
    assert teacher is not None
    given = [student.logits, *student.features.values(), *teacher.features.values()]
    peak = max(tensor.numel() for tensor in given)
    with LargestTensor() as seen:
        total(method(student, teacher, target(3, targets), FINAL)).backward()
    assert 0 < seen.elements <= peak
