"""ReCo-KD, DPRD and DCD: their own facts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fakes import TEACHER, build, context, pair, target, total
from torch import Tensor

from kdpipe.errors import ConfigError
from kdpipe.methods._stages import deepest_weights
from kdpipe.methods.base import Progress
from kdpipe.methods.dcd import dcd_loss
from kdpipe.methods.dprd import displacements, foreground_cells, pair_loss
from kdpipe.methods.reco_kd import ContextBlock, attended_error, attention, region_loss
from kdpipe.terms.features import pool_to, resize, unit_scale
from kdpipe.terms.masks import area_weights, resize_target
from kdpipe.terms.wavelets import filter_bank, fitting_levels, sub_bands
from kdpipe.terms.weights import half_cosine

SIZES = [(12, 9), (1, 5), (7, 6, 3), (16, 2, 1)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def at(step: int, steps: int = 100) -> Progress:
    return Progress(epoch=0, epochs=1, step=step, steps=steps)


@pytest.mark.parametrize("name", ["dcd", "dprd", "reco_kd"])
def test_as_many_student_taps_as_teacher_taps_and_at_least_one_stage(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}: 1 student_taps and 2 teacher_taps"):
        build(name, context(2), student_taps=("enc1",), teacher_taps=("enc1", "enc2"))
    with pytest.raises(ConfigError, match=rf"^{name}: .* no stage of the same name"):
        build(name, context(2, student={"penult": (4, 1)}))
    with pytest.raises(ConfigError, match="the teacher has no tap 'enc9'"):
        build(name, context(2), student_taps=("enc1",), teacher_taps=("enc9",))


# the wavelet transform


@pytest.mark.parametrize(("wavelet", "moments"), [("haar", 1), ("db4", 4)])
def test_filters_are_orthonormal_and_blind_to_polynomials(wavelet: str, moments: int) -> None:
    low, high = (row.numpy() for row in filter_bank(wavelet))
    taps = len(low)
    assert low.sum() == pytest.approx(math.sqrt(2.0), abs=1e-14)
    for shift in range(0, taps, 2):
        one = float(shift == 0)
        for left, right, value in ((low, low, one), (high, high, one), (low, high, 0.0)):
            assert left[shift:] @ right[: taps - shift] == pytest.approx(value, abs=1e-14)
    powers = [abs(high @ np.arange(taps) ** k) for k in range(moments + 1)]
    assert max(powers[:moments]) < 1e-12 < 0.1 < powers[moments]


def test_db4_is_the_filter_of_extremal_phase() -> None:
    roots = np.abs(np.roots(filter_bank("db4")[0].numpy()))
    assert np.sum(np.isclose(roots, 1.0, atol=1e-2)) == 4  # the moments
    assert np.sum(roots > 1.1) == 3  # none inside the unit circle, or it were a symlet


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wavelet", ["haar", "db4"])
def test_transform_keeps_energy_and_is_inverted_by_its_transpose(
    wavelet: str, size: tuple[int, ...]
) -> None:
    signal = draw(2, 3, *size).requires_grad_()
    bands = sub_bands(signal, filter_bank(wavelet))
    assert len(bands) == 2 ** len(size)
    energy = sum(band.pow(2).sum() for band in bands)
    torch.testing.assert_close(energy, signal.pow(2).sum())
    (back,) = torch.autograd.grad(bands, signal, [band.detach() for band in bands])
    torch.testing.assert_close(back, signal.detach())


def analysis(sides: int, kernel: np.ndarray) -> np.ndarray:
    """The matrix of one half-band along one axis, written out."""
    taps = len(kernel)
    rows = (sides + taps - 2) // 2 + 1
    matrix = np.zeros((rows, sides))
    for row in range(rows):
        for tap in range(taps):
            voxel = 2 * row + tap - (taps - 1)
            if 0 <= voxel < sides:
                matrix[row, voxel] = kernel[tap]
    return matrix


def test_bands_are_ordered_by_axis_and_equal_the_written_out_transform() -> None:
    signal = draw(1, 1, 6, 9, 5)
    filters = filter_bank("db4")
    bands = sub_bands(signal, filters)
    for place in range(8):
        bits = [place >> 2 & 1, place >> 1 & 1, place & 1]
        matrices = [analysis(n, filters[b].numpy()) for n, b in zip((6, 9, 5), bits, strict=True)]
        expected = np.einsum("ai,bj,ck,ijk->abc", *matrices, signal[0, 0].numpy())
        np.testing.assert_allclose(bands[place][0, 0].numpy(), expected, atol=1e-12)


def test_small_grids_hold_fewer_levels() -> None:
    found = [fitting_levels((side, 96, 96), 8, 3) for side in (96, 56, 55, 28, 27, 3)]
    assert found == [3, 3, 2, 2, 1, 1]


# DCD


@pytest.mark.parametrize("size", [(16, 12), (6, 9, 5)])
def test_dcd_counts_the_energy_of_the_details_alone(size: tuple[int, ...]) -> None:
    student, teacher = draw(2, 3, *size), draw(2, 3, *size, seed=1)
    filters = filter_bank("db4")
    difference = student - teacher
    bands = [band.pow(2).sum().item() for band in sub_bands(difference, filters)]
    full = difference.pow(2).sum().item()
    loss = dcd_loss(student, teacher, filters, 1, "detail", centred=False)
    assert loss.item() == pytest.approx((full - bands[0]) / difference.numel())
    loss = dcd_loss(student, teacher, filters, 1, "directional", centred=False)
    assert loss.item() == pytest.approx((full - bands[0] - bands[-1]) / difference.numel())


def test_dcd_goes_on_with_the_approximation() -> None:
    student, teacher = draw(1, 2, 16, 16), draw(1, 2, 16, 16, seed=1)
    filters = filter_bank("haar")
    coarse = [sub_bands(side, filters)[0] for side in (student, teacher)]
    first = dcd_loss(student, teacher, filters, 1, centred=False)
    second = dcd_loss(*coarse, filters, 1, centred=False)
    both = dcd_loss(student, teacher, filters, 2, centred=False)
    torch.testing.assert_close(both, (first + second) / 2)


def test_dcd_leaves_coarse_differences_free() -> None:
    teacher, filters = draw(1, 1, 32, 32), filter_bank("db4")
    offset = dcd_loss(teacher + 5.0, teacher, filters, 3)
    assert offset.item() == pytest.approx(0.0, abs=1e-20)
    assert dcd_loss(teacher + 5.0, teacher, filters, 3, centred=False) > 1.0  # at the border
    stripes = torch.arange(32, dtype=torch.float64).remainder(2).mul(2).sub(1).expand(1, 1, 32, 32)
    wave = torch.sin(torch.arange(32) * math.pi / 16).expand(1, 1, 32, 32)
    fine = dcd_loss(teacher + stripes, teacher, filters, 1)
    assert fine > 20 * dcd_loss(teacher + wave, teacher, filters, 1)


def test_dcd_begins_late_and_rises_along_half_a_cosine() -> None:
    method = build("dcd", context(2))
    student, teacher = pair(method)
    assert method(student, teacher, target(2), at(9)) == {}
    late = total(method(student, teacher, target(2), at(40)))
    half = total(method(student, teacher, target(2), at(25)))
    torch.testing.assert_close(half, late / 2)
    torch.testing.assert_close(total(method(student, teacher, target(2), at(99))), late)
    assert half_cosine(0.5, 0.5, 0.0) == 1.0  # no rise: a step
    assert half_cosine(0.2, 0.1, 0.3) == pytest.approx(0.25)


@pytest.mark.parametrize("dims", [2, 3])
def test_dcd_is_its_weight_times_the_mean_over_all_stages(dims: int) -> None:
    method = build("dcd", context(dims), weight=3.0, wavelet="haar", levels=2)
    student, teacher = pair(method)
    assert teacher is not None
    losses = []
    for stage, tap in enumerate(("enc1", "enc2", "bottleneck")):
        ours = method.project[stage](student.features[tap])
        theirs = pool_to(50.0 * teacher.features[tap], ours.shape[2:])  # the coarser grid
        theirs = torch.stack([sample / sample.square().mean().sqrt() for sample in theirs])
        levels = fitting_levels(list(ours.shape[2:]), 2, 2)
        losses.append(dcd_loss(ours, theirs, filter_bank("haar").float(), levels))
    teacher = teacher.map(lambda feature: 50.0 * feature)
    found = method(student, teacher, target(dims), at(99))
    expected = 3.0 * sum(losses) / 3
    torch.testing.assert_close(found, {"dcd": expected}, rtol=1e-4, atol=1e-6)


def test_dcd_projects_only_where_channels_differ() -> None:
    where = context(3, student=TEACHER | {"enc2": (5, 2)})
    method = build("dcd", where)
    assert method.student_taps() == ("enc1", "enc2", "enc3", "bottleneck")
    assert [name for name, _ in method.named_parameters()] == ["project.1.weight"]


# DPRD


def test_dprd_equals_its_written_out_form() -> None:
    ours, theirs = draw(3, 5).numpy(), draw(3, 5, seed=1).numpy()
    pairs = [(0, 1), (0, 2), (1, 2)]

    def relative(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        apart = np.array([vectors[i] - vectors[j] for i, j in pairs])
        lengths = np.sqrt((apart**2).sum(1))
        return apart / (lengths.mean() + 1e-6), lengths / (lengths.mean() + 1e-6)

    def smooth(x: np.ndarray, beta: float) -> np.ndarray:
        return np.where(np.abs(x) < beta, x**2 / (2 * beta), np.abs(x) - beta / 2)

    for kind in (0, 1):
        difference = relative(ours)[kind] - relative(theirs)[kind]
        expected = smooth(difference, 0.3).reshape(3, -1).sum(1).mean()
        mine = displacements(torch.from_numpy(ours))[kind]
        taught = displacements(torch.from_numpy(theirs))[kind]
        assert pair_loss(mine, taught, 0.3).item() == pytest.approx(expected)


def test_dprd_asks_neither_for_the_origin_nor_for_the_scale() -> None:
    vectors = draw(4, 6)
    moved = displacements(3.0 * vectors + draw(1, 6, seed=2), eps=0.0)
    for mine, taught in zip(moved, displacements(vectors, eps=0.0), strict=True):
        torch.testing.assert_close(mine, taught)
    turned = displacements(vectors.flip(1))[0]
    assert pair_loss(turned, displacements(vectors)[0], 1.0) > 0.1


def test_dprd_of_one_case_is_zero_and_of_two_is_direction_alone() -> None:
    method = build("dprd", context(3))
    student, teacher = pair(method, batch=1)
    terms = method(student, teacher, target(3, batch=1), at(99))
    assert {name: term.item() for name, term in terms.items()} == {
        "displacement": 0.0,
        "distance": 0.0,
    }
    total(terms).backward()
    assert all(layer.weight.grad is not None for layer in method.ours)
    student, teacher = pair(method)
    terms = method(student, teacher, target(3), at(99))
    assert terms["distance"].item() == pytest.approx(0.0, abs=1e-9)
    assert terms["displacement"] > 0.0


def test_dprd_survives_cases_that_are_the_same() -> None:
    vectors = draw(1, 6).repeat(3, 1).requires_grad_()
    mine, taught = displacements(vectors), displacements(draw(3, 6, seed=1))
    (pair_loss(mine[0], taught[0], 1.0) + pair_loss(mine[1], taught[1], 1.0)).backward()
    assert torch.isfinite(vectors.grad).all()


def test_dprd_averages_the_foreground_of_each_cell() -> None:
    feature = draw(2, 3, 4, 6)
    inside = torch.zeros(2, 1, 4, 6, dtype=torch.bool)
    inside[0, 0, 0, 0] = inside[0, 0, 1, 2] = inside[1, 0, :, 3:] = True
    cells, present = foreground_cells(feature, inside, [2, 2])
    expected = torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    expected[0, :, 0, 0] = (feature[0, :, 0, 0] + feature[0, :, 1, 2]) / 2
    expected[1, :, 0, 1] = feature[1, :, :2, 3:].mean((1, 2))
    expected[1, :, 1, 1] = feature[1, :, 2:, 3:].mean((1, 2))
    torch.testing.assert_close(cells, expected)
    assert present[:, 0].tolist() == [[[True, False], [False, False]], [[False, True]] * 2]


def test_dprd_sees_the_foreground_alone() -> None:
    method = build("dprd", context(2, student=TEACHER))
    student, teacher = pair(method)
    labels = target(2)
    before = total(method(student, teacher, labels, at(50)))
    student.features["enc1"].data.add_(7.0 * (labels == 0).unsqueeze(1))  # enc1 has the grid
    torch.testing.assert_close(total(method(student, teacher, labels, at(50))), before)
    student.features["enc1"].data.add_(7.0 * (labels == 2).unsqueeze(1))
    assert not torch.isclose(total(method(student, teacher, labels, at(50))), before)


def test_dprd_maps_the_published_weights_to_the_stages_there_are() -> None:
    assert build("dprd", context(2)).stage_weights == pytest.approx([0.2, 1 / 3, 7 / 15])
    published = (0.05, 0.1, 0.1, 0.15, 0.25, 0.35)
    assert deepest_weights(published, 6) == pytest.approx(published)
    assert deepest_weights(published, 8) == pytest.approx(
        [w / 1.1 for w in (0.05, 0.05, *published)]
    )
    with pytest.raises(ConfigError, match="^dprd: stage_weights"):
        build("dprd", context(2), stage_weights=(0.5, 0.0))


@pytest.mark.parametrize("targets", ["classes", "regions"])
def test_dprd_is_its_weights_times_the_sum_over_stages_by_their_weights(targets: str) -> None:
    where = context(2, targets, student=TEACHER)
    shares = (0.5, 0.1, 0.3, 0.1)
    method = build(
        "dprd",
        where,
        channels=None,
        stage_weights=shares,
        weight_displacement=2.0,
        weight_distance=3.0,
    )
    student, teacher = pair(method, batch=3)
    assert teacher is not None
    labels = target(2, targets, batch=3)
    expected = [torch.zeros(()), torch.zeros(())]
    for share, tap in zip(shares, ("enc1", "enc2", "enc3", "bottleneck"), strict=True):
        sides = student.features[tap], teacher.features[tap]
        grid = sides[0].shape[2:]
        inside = resize_target(labels, grid, targets == "regions") > 0
        inside = inside.any(1, keepdim=True) if targets == "regions" else inside.unsqueeze(1)
        size = [max(2, side // 4) for side in grid]
        cells = [foreground_cells(side, inside, size)[0].flatten(1) for side in sides]
        apart = [displacements(vectors) for vectors in cells]
        for kind in (0, 1):
            expected[kind] = expected[kind] + share * pair_loss(apart[0][kind], apart[1][kind], 1.0)
    found = method(student, teacher, labels, at(99))
    wanted = {"displacement": 2.0 * expected[0], "distance": 3.0 * expected[1]}
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_dprd_keeps_the_teachers_projection_and_can_do_without() -> None:
    method = build("dprd", context(2))
    assert all(not parameter.requires_grad for parameter in method.theirs.parameters())
    assert {"ours.0.weight", "theirs.0.weight"} <= set(method.state_dict())
    bare = build("dprd", context(2, student=TEACHER), channels=None)
    assert list(bare.parameters()) == []
    student, teacher = pair(bare)
    terms = bare(teacher, teacher, target(2), at(99))
    assert [term.item() for term in terms.values()] == [0.0, 0.0]
    assert total(bare(student, teacher, target(2), at(99))) > 0.1


def test_dprd_warms_up_over_its_share_of_the_training() -> None:
    method = build("dprd", context(2))
    student, teacher = pair(method)
    values = [total(method(student, teacher, target(2), at(s, 1000))) for s in (0, 74, 149, 999)]
    full = values[-1]
    torch.testing.assert_close(torch.stack(values), full * torch.tensor([1 / 150, 0.5, 1.0, 1.0]))


# ReCo-KD


@pytest.mark.parametrize("regions", [False, True])
def test_reco_weighs_each_class_by_its_own_area(regions: bool) -> None:
    labels = target(2, "regions" if regions else "classes")
    foreground, background = area_weights(labels, 4, regions)
    masks = (
        labels.flatten(2) > 0
        if regions
        else labels.flatten(1)[:, None] == torch.arange(4).view(1, -1, 1)
    )
    for sample in range(len(labels)):
        found = masks[sample] if regions else masks[sample, 1:]
        for voxel in range(found.shape[1]):
            areas = [mask.sum().item() for mask in found if mask[voxel]]
            outside = (~found.any(0)).sum().item()
            expected = (1 / min(areas), 0.0) if areas else (0.0, 1 / outside)
            assert foreground[sample, voxel].item() == pytest.approx(expected[0])
            assert background[sample, voxel].item() == pytest.approx(expected[1])


def test_reco_counts_a_small_class_as_much_as_a_large_one() -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[0, 0, 0] = 1
    labels[0, 4:] = 2
    weights, _ = area_weights(labels, 4, regions=False)
    errors = [region_loss((labels == which).flatten(1).double(), weights) for which in (1, 2)]
    torch.testing.assert_close(torch.stack(errors), torch.full((2,), 0.5, dtype=torch.float64))
    assert region_loss(torch.ones(1, 64), area_weights(0 * labels, 4, False)[0]).item() == 0.0


def test_reco_attends_where_the_teacher_does() -> None:
    ours, theirs = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1)
    s, t = ours.flatten(2).numpy(), theirs.flatten(2).numpy()
    where, what = np.exp(np.abs(t).mean(1) / 0.5), np.exp(np.abs(t).mean(2) / 0.5)
    where = 20 * where / where.sum(1, keepdims=True)
    what = 3 * what / what.sum(1, keepdims=True)
    expected = np.einsum("bv,bc,bcv->bv", where, what, (s - t) ** 2) / 3
    np.testing.assert_allclose(attended_error(ours, theirs, 0.5).numpy(), expected)
    for kind in attention(ours, 0.5):
        torch.testing.assert_close(kind.mean(1), torch.ones(2, dtype=torch.float64))


def test_reco_context_starts_as_a_plain_squared_error() -> None:
    method = build("reco_kd", context(3))
    stage = method.stages[0].double()
    ours, theirs = draw(2, 8, 4, 5, 6), draw(2, 8, 4, 5, 6, seed=1)
    plain = (ours - theirs).pow(2).mean()
    torch.testing.assert_close(stage.context_loss(ours, theirs), plain)
    torch.nn.init.ones_(stage.ours.offset[-1].bias)
    shifted = (ours + 1.0 - theirs).pow(2).mean()
    torch.testing.assert_close(stage.context_loss(ours, theirs), shifted)


def test_reco_context_pools_by_its_own_attention() -> None:
    block = ContextBlock(2, 3).double()
    feature = draw(2, 3, 4, 5)
    seen: list[Tensor] = []
    block.offset.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert block(feature).abs().max() == 0.0
    scores = np.einsum("c,bcv->bv", block.attend.weight.flatten().detach(), feature.flatten(2))
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    expected = np.einsum("bv,bcv->bc", shares, feature.flatten(2).numpy())
    np.testing.assert_allclose(seen[0].detach().numpy(), expected)


@pytest.mark.parametrize("dims", [2, 3])
def test_reco_compares_both_features_at_unit_scale(dims: int) -> None:
    method = build("reco_kd", context(dims), weight_foreground=3.0, weight_context=2.0)
    student, teacher = pair(method)
    assert teacher is not None
    labels = target(dims)
    region, context_ = [], []
    for stage, tap in enumerate(("enc1", "enc2")):
        theirs = unit_scale(teacher.features[tap])
        ours = resize(method.stages[stage].project(student.features[tap]), theirs.shape[2:])
        ours = torch.stack([sample / sample.square().mean().sqrt() for sample in ours])
        weights, _ = area_weights(resize_target(labels, theirs.shape[2:], False), 4, False)
        region.append(region_loss(attended_error(ours, theirs, 0.5), weights))
        context_.append((ours - theirs).square().mean())  # the blocks start at 0
    found = method(student, teacher.map(lambda feature: 50.0 * feature), labels, at(99))
    first, second = method.stage_weights
    for name, each in (("foreground", region), ("context", context_)):
        expected = {"foreground": 3.0, "context": 2.0}[name] * (first * each[0] + second * each[1])
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)


def test_reco_neither_sees_nor_drives_the_scale_of_the_student() -> None:
    method = build("reco_kd", context(2, student=TEACHER))  # nothing is projected
    student, teacher = pair(method)
    terms = method(student, teacher, target(2), at(99))
    larger = student.map(lambda feature: 100.0 * feature)
    again = method(larger, teacher, target(2), at(99))
    torch.testing.assert_close(again, terms, rtol=1e-3, atol=1e-6)
    total(terms).backward()
    for tap in method.student_taps():
        feature = student.features[tap]
        assert feature.grad is not None
        for step, sample in zip(feature.grad, feature, strict=True):
            along = (step * sample).sum() / step.norm() / sample.norm()
            assert abs(along.item()) < 1e-4


def test_reco_builds_context_blocks_only_for_their_term() -> None:
    bare = build("reco_kd", context(2), weight_context=0.0)
    assert {name.split(".")[2] for name, _ in bare.named_parameters()} == {"project"}
    student, teacher = pair(bare)
    total(bare(student, teacher, target(2), at(99))).backward()
    assert all(parameter.grad is not None for parameter in bare.parameters())


def test_reco_leaves_the_bottleneck_out_and_weighs_stages_by_their_voxels() -> None:
    for dims in (2, 3):
        method = build("reco_kd", context(dims))
        assert method.student_taps() == ("enc1", "enc2")
        first, second = method.stage_weights
        assert first + second == pytest.approx(1.0)
        assert second / first == pytest.approx(2.0 ** (-dims / 2))
    assert build("reco_kd", context(3), decay=0.0).stage_weights == pytest.approx([0.5, 0.5])


def test_reco_leaves_out_terms_and_has_no_foreground_without_labels() -> None:
    method = build("reco_kd", context(3), weight_context=0.0)
    student, teacher = pair(method)
    terms = method(student, teacher, torch.zeros_like(target(3)), at(99))
    assert set(terms) == {"foreground", "background", "attention"}
    assert terms["foreground"].item() == 0.0
    assert terms["background"] > 0.0
