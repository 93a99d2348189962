"""Losses with a gradient in closed form equal the same losses as torch differentiates them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe import discover
from kdpipe.methods import uskd
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms import divergences, features, pieces
from kdpipe.terms.correlations import decorrelation, softmax_decorrelations
from kdpipe.terms.divergences import probabilities, soft_kl, target_margin
from kdpipe.terms.features import normalised
from kdpipe.terms.relations import gram_distance, pearson_gram
from kdpipe.terms.segmentation import dice, dice_ce

KINDS = [torch.float64, torch.float32]
Loss = Callable[[Tensor], Tensor]
HALFWAY = Progress(epoch=5, epochs=10, step=50, steps=100)


def kl_by_autograd(student: Tensor, teacher: Tensor, tau: float, dim: int) -> Tensor:
    log_p, log_q = (F.log_softmax(logits / tau, dim=dim) for logits in (student, teacher))
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim)


def dice_by_autograd(logits: Tensor, target: Tensor) -> Tensor:
    inside = torch.zeros_like(logits).scatter_(1, target.unsqueeze(1), 1.0)
    dims = tuple(range(2, logits.ndim))
    p = logits.softmax(1)
    overlap, total = (p * inside).sum(dims), p.sum(dims) + inside.sum(dims)
    return (1.0 - (2.0 * overlap + 1e-5) / (total + 1e-5)).mean()


def check_equal(ours: Loss, theirs: Loss, logits: Tensor, within: float = 1e-6) -> None:
    """Values and gradients to 1e-6, of the largest where they are differences of larger ones."""
    logits.requires_grad_()
    found, expected = ours(logits), theirs(logits)
    largest = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=within, atol=within * largest)
    weights = torch.linspace(0.5, 2.0, found.numel(), dtype=found.dtype).view_as(found)
    (slope,), (wanted,) = (
        torch.autograd.grad((value * weights).sum(), logits) for value in (found, expected)
    )
    torch.testing.assert_close(slope, wanted, rtol=0.0, atol=within * wanted.abs().max().item())


def watched(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[object, ...]]:
    """Return the list that each call of a function of `features` puts what it is given in."""
    function, calls = getattr(features, name), list[tuple[object, ...]]()
    monkeypatch.setattr(features, name, lambda *given: calls.append(given) or function(*given))
    return calls


@pytest.mark.parametrize("kind", KINDS)
def test_exponential(kind: torch.dtype) -> None:
    logarithms = torch.cat([torch.linspace(-80.0, 5.0, 500), torch.tensor([-200.0, -1e30, 0.0])])
    logarithms = logarithms.to(kind)
    found = pieces.exponential(logarithms)
    torch.testing.assert_close(found, logarithms.exp(), rtol=1e-5, atol=1e-7)
    likely = logarithms > -10.0
    torch.testing.assert_close(found[likely], logarithms[likely].exp(), rtol=2e-6, atol=0.0)
    assert found[-2:].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [7, 2**18])
@pytest.mark.parametrize(
    ("shape", "dim"),
    [((2, 5, 6, 7, 4), 1), ((1, 3, 8, 9), 1), ((2, 5, 30), 2), ((5, 31), 0), ((2, 4, 6), -1)],
)
def test_divergence(
    shape: tuple[int, ...], dim: int, piece: int, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_PIECE", piece)
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(2, *shape, dtype=kind)
    for tau in (1.0, 4.0):
        check_equal(
            lambda logits, tau=tau: soft_kl(logits, teacher, tau, dim),  # type: ignore[misc]
            lambda logits, tau=tau: kl_by_autograd(logits, teacher, tau, dim),  # type: ignore[misc]
            student.clone(),
        )


def test_divergence_of_other_layouts_and_of_nothing() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 5, 6, 7, 4)
    layout = torch.channels_last_3d
    found = soft_kl(student.contiguous(memory_format=layout), teacher, 2.0, 1)
    assert torch.equal(found, soft_kl(student, teacher, 2.0, 1))
    assert soft_kl(student[:, :, :0], teacher[:, :, :0], 2.0, 1).shape == (2, 0, 7, 4)
    assert soft_kl(student[:1, :, 0, 0, :0], teacher[:1, :, 0, 0, :0], 2.0, 1).sum() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1,), (1, 5, 1, 1)])
def test_a_learned_temperature_gets_its_gradient(
    shape: tuple[int, ...], kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_PIECE", 50)
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(2, 2, 5, 6, 7, dtype=kind)
    slopes = []
    for divergence in (soft_kl, kl_by_autograd):
        logits = student.clone().requires_grad_()
        tau = torch.full(shape, 2.5, dtype=kind, requires_grad=True)
        divergence(logits, teacher, tau, 1).square().mean().backward()  # type: ignore[arg-type]
        assert logits.grad is not None and tau.grad is not None
        slopes.append((logits.grad, tau.grad))
    for found, wanted in zip(*slopes, strict=True):
        atol = 1e-6 * wanted.abs().max().item()
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 5, 6, 7, 4), (1, 2, 8, 9)])
def test_margin_of_the_target(
    shape: tuple[int, ...], kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_PIECE", 50)
    torch.manual_seed(0)
    logits = 3 * torch.randn(shape, dtype=kind)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]))

    def by_autograd(scores: Tensor) -> Tensor:
        chosen = scores.gather(1, target.unsqueeze(1)).squeeze(1)
        return chosen - divergences.without_target(scores, target).logsumexp(dim=1)

    check_equal(lambda scores: target_margin(scores, target, False), by_autograd, logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [50, 2**18])
@pytest.mark.parametrize("shape", [(2, 5, 6, 7, 4), (1, 2, 8, 9), (3, 14, 12)])
def test_dice_with_and_without_cross_entropy(
    shape: tuple[int, ...], kind: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_PIECE", piece)
    torch.manual_seed(0)
    logits = 3 * torch.randn(shape, dtype=kind)
    target = torch.randint(0, shape[1] - 1, (shape[0], *shape[2:]))  # the last class is absent
    check_equal(lambda z: dice(z, target), lambda z: dice_by_autograd(z, target), logits.clone())
    check_equal(
        lambda z: dice_ce(z, target),
        lambda z: dice_by_autograd(z, target) + F.cross_entropy(z, target),
        logits.clone(),
    )


def test_the_gradient_may_be_taken_twice() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    target = torch.randint(0, 3, (1, 4, 4))
    for loss in (dice_ce(logits, target), soft_kl(logits, torch.randn(1, 3, 4, 4), 2.0, 1).sum()):
        first, second = (torch.autograd.grad(loss, logits, retain_graph=True) for _ in range(2))
        assert torch.equal(first[0], second[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [3, 6, 50, 343])
def test_distance_of_gram_matrices(columns: int, kind: torch.dtype) -> None:
    torch.manual_seed(0)
    ours, theirs = (
        F.normalize(torch.randn(2, rows, columns, dtype=kind), dim=1) for rows in (4, 6)
    )

    def by_matrices(units: Tensor) -> Tensor:
        return F.mse_loss(units.transpose(1, 2) @ units, theirs.transpose(1, 2) @ theirs)

    check_equal(lambda units: gram_distance(units, theirs), by_matrices, ours)
    near = theirs + 1e-4 * torch.randn_like(theirs)
    assert gram_distance(theirs, theirs) == pytest.approx(0.0, abs=1e-12)
    if kind is torch.float64:
        check_equal(lambda units: gram_distance(units, theirs), by_matrices, near)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_correlations_of_rows(
    offset: float, relative: bool, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_PIECE", 70)
    torch.manual_seed(0)
    rows = torch.randn(2, 5, 60, dtype=kind) + offset

    def by_units(values: Tensor) -> Tensor:
        if relative:
            values = values - values.mean(1, keepdim=True)
        units = normalised(values - values.mean(2, keepdim=True), dim=2)
        return units @ units.transpose(1, 2)

    check_equal(lambda values: pearson_gram(values, relative=relative), by_units, rows, 2e-6)


def test_correlations_of_a_constant_row_are_zero_without_a_gradient() -> None:
    rows = torch.randn(1, 3, 8)
    rows[:, 1] = 2.0
    rows.requires_grad_()
    found = pearson_gram(rows)
    found.sum().backward()
    assert not found[0, 1].any() and rows.grad is not None
    assert torch.isfinite(rows.grad).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["dkd", "nkd"])
def test_terms_that_share_their_softmaxes(
    name: str, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_PIECE", 50)
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(2, 2, 5, 6, 7, 4, dtype=kind)
    target = torch.randint(0, 5, (2, 6, 7, 4))
    method = discover.load("methods", name).Method(
        discover.load("methods", name).Params(), Context(5, 3)
    )
    weights = [name for name in vars(method.params) if name.startswith("weight")]
    for index, term in enumerate(method(Outputs(student), Outputs(teacher), target, HALFWAY)):
        alone = discover.load("methods", name)
        others = {weight: 0.0 for weight in weights if weight != weights[index]}
        single = alone.Method(alone.Params(**others), Context(5, 3))

        def value(scores: Tensor, built: Distiller, term: str = term) -> Tensor:
            found: Tensor = built(Outputs(scores), Outputs(teacher), target, HALFWAY)[term]
            return found

        check_equal(
            lambda scores: value(scores, method),
            lambda scores, single=single: value(scores, single),  # type: ignore[misc]
            student.clone(),
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("given", "size"),
    [((4, 5, 6), (8, 10, 12)), ((3, 4, 1), (7, 4, 5)), ((6, 5, 4), (5, 9, 11))],
)
def test_resizing_by_axes(
    given: tuple[int, ...],
    size: tuple[int, ...],
    kind: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    feature = torch.randn(2, 3, *given, dtype=kind)
    feature = feature.contiguous(memory_format=torch.channels_last_3d)
    taken = watched(monkeypatch, "_resize_by_axes")
    check_equal(
        lambda x: features.resize(x, size),
        lambda x: F.interpolate(x, size=size, mode="trilinear", align_corners=False),
        feature,
    )
    assert taken


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("given", "size"), [((4, 6, 5), (2, 2, 5)), ((6, 4), (1, 4)), ((6, 5, 4), (3, 2, 4))]
)
def test_pooling_by_axes_where_cells_are_even(
    given: tuple[int, ...],
    size: tuple[int, ...],
    kind: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    feature = torch.randn(2, 3, *given, dtype=kind)
    taken = watched(monkeypatch, "_pool_by_axes")
    pool = F.adaptive_avg_pool3d if len(size) == 3 else F.adaptive_avg_pool2d
    check_equal(lambda x: features.pool_to(x, size), lambda x: pool(x, list(size)), feature)
    assert bool(taken) == (5 not in given or 5 in size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [50, 2**18])
@pytest.mark.parametrize("shape", [(2, 5, 6, 7, 4), (1, 3, 8, 9), (3, 14, 12)])
def test_decorrelations(
    shape: tuple[int, ...], piece: int, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_PIECE", piece)
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(2, *shape, dtype=kind)
    teacher[:, :, 1:3] = 0.0  # constant across the classes: no correlation, no gradient
    for tau in (1.0, 4.0):
        for term, dims in enumerate(((1,), (0, *range(2, len(shape))))):
            check_equal(
                lambda z, tau=tau, term=term: softmax_decorrelations(z, teacher, tau)[term],  # type: ignore[misc]
                lambda z, tau=tau, dims=dims: decorrelation(  # type: ignore[misc]
                    probabilities(z, False, tau), probabilities(teacher, False, tau), dims
                ),
                student.clone(),
            )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", [1, 2, 3, 4, 6])
def test_maps_of_attention(power: int, kind: torch.dtype) -> None:
    torch.manual_seed(0)
    feature = torch.randn(2, 3, 5, 4, dtype=kind)
    feature[:, :, 0] = 0.0
    peak = feature.abs().amax((1, 2, 3), keepdim=True)
    check_equal(
        lambda x: features.attention(x, power),
        lambda x: (x / peak).abs().pow(power).mean(1, keepdim=True),
        feature,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, -1])
def test_lengths(dim: int, kind: torch.dtype) -> None:
    torch.manual_seed(0)
    vectors = torch.randn(2, 3, 5, 4, dtype=kind)
    vectors[0] = 0.0  # no direction, no gradient
    check_equal(
        lambda x: features.lengths(x, dim),
        lambda x: torch.linalg.vector_norm(x, dim=dim, keepdim=True),
        vectors,
    )


@pytest.mark.parametrize("helped", [False, True])
def test_ranks_in_pieces(helped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(pieces, "_PIECE", 50)
    logits, weak = torch.randn(2, 2, 5, 6, 7, 4)
    logits = logits.contiguous(memory_format=torch.channels_last_3d)
    target = torch.randint(0, 5, (2, 6, 7, 4))
    found = uskd.zipf_labels(logits, weak if helped else None, target)
    score = torch.zeros_like(logits)
    for each in [logits, weak] if helped else [logits]:
        score += each.scatter(1, target.unsqueeze(1), -torch.inf).softmax(1)
    score.scatter_(1, target.unsqueeze(1), -1.0)
    shares = 1.0 / (score.argsort(1, descending=True).argsort(1) + 1.0)
    shares.scatter_(1, target.unsqueeze(1), 0.0)
    torch.testing.assert_close(found, shares / shares.sum(1, keepdim=True))


def test_decorrelation_of_a_constant_student_has_no_gradient() -> None:
    logits = torch.zeros(1, 3, 4, 4, requires_grad=True)
    losses = softmax_decorrelations(logits, torch.randn(1, 3, 4, 4), 1.0)
    sum(losses).backward()  # type: ignore[attr-defined]
    assert [loss.item() for loss in losses] == [1.0, 1.0]
    assert logits.grad is not None and not logits.grad.any()
