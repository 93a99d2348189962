"""The readings of MSKD and CPKD: invariances, the filter, fallbacks and options."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from fakes import PROGRESS, build, context, pair, target
from torch import Tensor

from kdpipe.errors import ConfigError
from kdpipe.methods import cpkd, mskd
from kdpipe.methods.base import Outputs, Progress
from kdpipe.terms.divergences import probabilities
from kdpipe.terms.features import channel_standardised, pool_to
from kdpipe.terms.relations import shared_nodes

DOUBLE = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


# MSKD


def test_filtering_sees_the_pattern_of_a_map_not_its_scale_or_offset() -> None:
    student, teacher = randn(2, 1, 9, 7).abs(), randn(2, 12, 9, 7, seed=1)
    value = mskd.filtering_loss(student, teacher, 0.6, 0.6)
    moved = mskd.filtering_loss(3.0 * student + 5.0, teacher, 0.6, 0.6)
    turned = mskd.filtering_loss(10.0 - student, teacher, 0.6, 0.6)
    torch.testing.assert_close(value, moved, rtol=1e-5, atol=0)
    assert abs(turned - value) > 0.01


def test_saliency_does_not_shrink_with_the_width() -> None:
    feature = randn(1, 3, 8, 8)
    torch.testing.assert_close(mskd.saliency(feature.repeat(1, 4, 1, 1)), mskd.saliency(feature))


def test_filtering_with_even_weights_is_twice_one_minus_pearson() -> None:
    student, teacher = randn(1, 1, 20, 20).abs(), randn(1, 1, 20, 20, seed=1).abs()
    value = mskd.filtering_loss(student, teacher, kappa=0.5, gamma=1e-9)
    pearson = np.corrcoef(student.flatten(), teacher.flatten())[0, 1]
    assert value.item() == pytest.approx(2.0 * (1.0 - pearson), rel=1e-5)


@pytest.mark.parametrize(("kappa", "dropped"), [(0.5, 0.0), (0.6, 0.315), (0.7, 0.603)])
def test_the_filter_drops_the_places_that_the_teacher_is_undecided_about(
    kappa: float, dropped: float
) -> None:
    weights = mskd.decided(mskd.standardised(randn(2, 40000)), kappa, 0.6)
    assert (weights == 0).double().mean().item() == pytest.approx(dropped, abs=0.01)
    torch.testing.assert_close(weights.mean(1), torch.ones(2, dtype=DOUBLE))


def test_a_teacher_undecided_everywhere_weighs_all_places_evenly() -> None:
    assert torch.equal(mskd.decided(torch.zeros(2, 9), 0.6, 0.6), torch.ones(2, 9))


def test_graphs_equal_a_computation_by_hand_and_ignore_the_scale() -> None:
    student, teacher = randn(1, 5, 6), randn(1, 8, 6, seed=1)

    def graph(nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        unit = nodes / np.linalg.norm(nodes, axis=0)
        edges = unit.T @ unit
        powers = np.exp(10.0 * edges)
        return edges, powers / powers.sum(1, keepdims=True) @ edges

    (ours, ours_on), (theirs, theirs_on) = graph(student[0].numpy()), graph(teacher[0].numpy())
    edge, hop = ((ours - theirs) ** 2).mean(), ((ours_on - theirs_on) ** 2).mean()
    assert mskd.graph_loss(student, teacher, False).item() == pytest.approx(edge, rel=1e-4)
    assert mskd.graph_loss(student, teacher, True).item() == pytest.approx(edge + hop, rel=1e-4)
    scaled = mskd.graph_loss(7.0 * student, teacher, True).item()
    assert scaled == pytest.approx(edge + hop, rel=1e-4)


@pytest.mark.parametrize("region", ["patch", "class"])
def test_a_dead_student_has_a_finite_loss_and_gradient(region: str) -> None:
    method = build("mskd", context(3), region=region)
    student, teacher = pair(method)
    with torch.no_grad():
        for feature in student.features.values():
            feature.zero_()
    terms = method(student, teacher, target(3), PROGRESS)
    assert 0.1 < sum(term.item() for term in terms.values()) < 10.0
    sum(terms.values()).backward()
    assert all(torch.isfinite(feature.grad).all() for feature in student.features.values())


def test_other_widths_need_no_parameters_unless_nodes_are_to_be_compared() -> None:
    plain = build("mskd", context(3))
    assert not list(plain.parameters())
    adapted = build("mskd", context(3), node_adapter=True)
    assert len(list(adapted.parameters())) == 3  # one a layer, all widths differ
    student, teacher = pair(adapted)
    terms = adapted(student, teacher, target(3), PROGRESS)
    terms["rgd"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in adapted.parameters())
    assert terms["rgd"] > plain(student, teacher, target(3), PROGRESS)["rgd"]


def test_nodes_of_equal_width_are_compared_on_demand_only() -> None:
    wide = {"bottleneck": (8, 4), "dec1": (4, 1), "penult": (8, 2)}
    where = context(2, student=wide, teacher=wide)
    without = build("mskd", where, weight_ffd=0, hop=False)
    assert not list(without.parameters())
    student, teacher = pair(without)
    with torch.no_grad():
        for tap, feature in student.features.items():  # the same edges, channels in another order
            feature.copy_(teacher.features[tap].flip(1))
    value = without(student, teacher, target(2), PROGRESS)["rgd"].item()
    assert value == pytest.approx(0.0, abs=1e-5)
    asked = build("mskd", where, weight_ffd=0, hop=False, node_adapter=True)
    assert len(list(asked.parameters())) == 3
    assert asked(student, teacher, target(2), PROGRESS)["rgd"].item() > 0.5


def test_default_layers_are_bottleneck_the_stage_before_the_finest_and_penult() -> None:
    method = build("mskd", context(3))
    expected = [("bottleneck", "bottleneck"), ("dec1", "dec2"), ("penult", "penult")]
    assert method.pairs == expected


def test_nodes_by_label_are_means_and_a_sample_of_one_class_falls_back_to_patches() -> None:
    where = context(2)
    taps = {"student_taps": ("penult",), "teacher_taps": ("penult",), "weight_ffd": 0, "ramp": 0}
    method = build("mskd", where, region="class", **taps)
    student, teacher = pair(method)
    labels = torch.zeros(2, 16, 12, dtype=torch.long)
    patches = build("mskd", where, **taps)(student, teacher, labels, PROGRESS)["rgd"]
    torch.testing.assert_close(method(student, teacher, labels, PROGRESS)["rgd"], patches)

    labels[:, 8:] = 2  # both samples: two classes, on all grids
    halves = [
        torch.stack([part.mean((2, 3)) for part in feature.chunk(2, dim=2)], dim=2)
        for feature in (student.features["penult"], teacher.features["penult"])
    ]
    expected = mskd.graph_loss(*halves, hop=True)
    torch.testing.assert_close(method(student, teacher, labels, PROGRESS)["rgd"], expected)

    labels[0] = 0  # each sample by itself
    mixed = method(student, teacher, labels, PROGRESS)["rgd"]
    second = mskd.graph_loss(halves[0][1:], halves[1][1:], hop=True)
    first = (
        2 * patches
        - build("mskd", where, **taps)(
            student.map(lambda x: x[1:]), teacher.map(lambda x: x[1:]), labels[1:], PROGRESS
        )["rgd"]
    )
    torch.testing.assert_close(mixed, (first + second) / 2)


def test_saliency_weighs_positive_parts_by_the_softmax_of_their_means() -> None:
    feature = randn(2, 5, 4, 6)
    positive = feature.numpy().clip(min=0)
    means = positive.mean((2, 3))
    weights = np.exp(means) / np.exp(means).sum(1, keepdims=True)
    expected = (weights[:, :, None, None] * positive).sum(1)
    np.testing.assert_allclose(mskd.saliency(feature)[:, 0].numpy(), expected, rtol=1e-9)


def test_terms_are_means_over_the_layers_with_the_default_numbers() -> None:
    method = build("mskd", context(2), ramp=0)
    student, teacher = pair(method)
    pairs = [(student.features[ours], teacher.features[theirs]) for ours, theirs in method.pairs]
    terms = method(student, teacher, target(2), PROGRESS)
    filtering = [mskd.filtering_loss(*both, kappa=0.6, gamma=0.6) for both in pairs]
    torch.testing.assert_close(terms["ffd"], 0.5 * sum(filtering) / 3)
    graphs = []
    for ours, theirs in pairs:
        ours, theirs = channel_standardised(ours), channel_standardised(theirs)
        graphs.append(mskd.graph_loss(*shared_nodes(ours, theirs, 16), hop=True))
    torch.testing.assert_close(terms["rgd"], sum(graphs) / 3)


def test_the_graph_has_the_cells_that_the_parameter_says() -> None:
    taps = {"student_taps": ("penult",), "teacher_taps": ("penult",), "ramp": 0}
    where = context(3)
    student, teacher = pair(build("mskd", where, **taps))
    ours = channel_standardised(student.features["penult"])
    theirs = channel_standardised(teacher.features["penult"])
    for grid, cells in ((2, 2), (None, 8)):
        found = build("mskd", where, grid=grid, **taps)(student, teacher, target(3), PROGRESS)
        expected = mskd.graph_loss(*shared_nodes(ours, theirs, cells), hop=True)
        torch.testing.assert_close(found["rgd"], expected)


def test_unequal_lists_of_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="mskd: 1 student_taps and 0 teacher_taps"):
        build("mskd", context(3), student_taps=("penult",))


@pytest.mark.parametrize("name", ["mskd", "cpkd"])
def test_terms_rise_over_the_first_fifth_and_logits_kd_does_not(name: str) -> None:
    method = build(name, context(3), weight_kd=1.0)
    student, teacher = pair(method)

    def terms(step: int) -> dict[str, Tensor]:
        return method(student, teacher, target(3), Progress(step // 10, 10, step, 100))

    early, late = terms(4), terms(60)
    assert len(late) == 3
    for key, value in late.items():
        torch.testing.assert_close(early[key], value if key == "kd" else 0.25 * value)


# CPKD


@pytest.mark.parametrize("targets", ["classes", "regions"])
def test_probabilities_are_softened_and_features_averaged_to_the_coarser_grid(
    targets: str,
) -> None:
    method = build("cpkd", context(2, targets), space="prob", ramp=0)
    student, teacher = pair(method)
    soft = [
        probabilities(outputs.logits, targets == "regions", 4.0) for outputs in (student, teacher)
    ]
    terms = method(student, teacher, target(2, targets), PROGRESS)
    torch.testing.assert_close(terms["channel"], 3 * cpkd.channel_loss(*soft))
    torch.testing.assert_close(terms["pixel"], cpkd.pixel_loss(*shared_nodes(*soft, 16)))

    method = build("cpkd", context(2), space="feature", ramp=0, weight_pixel=0)
    student, teacher = pair(method)
    ours = channel_standardised(student.features["penult"])
    theirs = channel_standardised(teacher.features["penult"])
    size = [min(sides) for sides in zip(ours.shape[2:], theirs.shape[2:], strict=True)]
    expected = cpkd.channel_loss(method.adapter(pool_to(ours, size)), pool_to(theirs, size))
    found = method(student, teacher, target(2), PROGRESS)["channel"]
    torch.testing.assert_close(found, 3 * expected)


def test_channels_are_correlated_as_numpy_does() -> None:
    student, teacher = randn(2, 4, 5, 6), randn(2, 4, 5, 6, seed=1)
    differences = [
        np.corrcoef(ours.flatten(1)) - np.corrcoef(theirs.flatten(1))
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    expected = np.mean(np.square(differences))
    assert cpkd.channel_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_scale_is_not_seen_nor_a_joint_relabelling_and_pixels_see_no_relabelling_at_all() -> None:
    student, teacher = randn(2, 5, 30), randn(2, 5, 30, seed=1)
    order = [3, 0, 4, 1, 2]
    for loss in (cpkd.channel_loss, cpkd.pixel_loss):
        value = loss(student, teacher)
        torch.testing.assert_close(loss(9.0 * student, teacher), value, rtol=1e-5, atol=0)
        torch.testing.assert_close(loss(student[:, order], teacher[:, order]), value)
        assert value > 0.01
    assert cpkd.pixel_loss(teacher[:, order], teacher).item() == pytest.approx(0.0, abs=1e-12)
    assert cpkd.channel_loss(teacher[:, order], teacher) > 0.01


@pytest.mark.parametrize(
    ("classes", "targets", "falls"),
    [(2, "classes", True), (2, "regions", True), (3, "regions", False), (3, "classes", False)],
)
def test_few_classes_fall_back_to_the_feature_for_pixels_and_say_so(
    caplog: pytest.LogCaptureFixture, classes: int, targets: str, falls: bool
) -> None:
    with caplog.at_level(logging.WARNING):
        method = build("cpkd", context(3, targets, classes=classes), ramp=0, grid=2)
    mirrored = targets == "classes" and classes == 2
    assert ("no channel term" in caplog.text) == mirrored
    assert ("feature 'penult'" in caplog.text) == falls
    assert method.student_taps() == method.teacher_taps() == (("penult",) if falls else ())
    assert not list(method.parameters())
    student, teacher = pair(method)
    terms = method(student, teacher, target(3, targets, classes), PROGRESS)
    logits = [each.logits for each in (student, teacher)]
    if targets == "classes":
        logits = [each - each.mean(1, keepdim=True) for each in logits]
    features = [
        channel_standardised(each.features["penult"]) for each in (student, teacher) if falls
    ]
    nodes = [
        torch.nn.functional.adaptive_avg_pool3d(each, 2).flatten(2) for each in features or logits
    ]
    torch.testing.assert_close(terms["pixel"], cpkd.pixel_loss(*nodes))
    assert ("channel" in terms) != mirrored
    if not mirrored:
        torch.testing.assert_close(terms["channel"], 3.0 * cpkd.channel_loss(*logits))


@pytest.mark.parametrize("boundary", [False, True])
def test_what_a_softmax_does_not_see_is_not_correlated_either(boundary: bool) -> None:
    method = build("cpkd", context(3), ramp=0, boundary=boundary)
    student, teacher = pair(method)
    offset = torch.randn(
        2, 1, *student.logits.shape[2:], generator=torch.Generator().manual_seed(9)
    )
    moved = Outputs(student.logits + 5 * offset, student.features)
    torch.manual_seed(0)
    expected = method(student, teacher, target(3), PROGRESS)
    torch.manual_seed(0)
    found = method(moved, teacher, target(3), PROGRESS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_feature_space_projects_the_student_for_the_channel_term_only() -> None:
    method = build("cpkd", context(2), space="feature")
    student, teacher = pair(method)
    terms = method(student, teacher, target(2), PROGRESS)
    terms["pixel"].backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in method.parameters())
    terms["channel"].backward()
    assert [parameter.grad.abs().sum() > 0 for parameter in method.parameters()] == [True]
    assert not list(build("cpkd", context(2), space="feature", weight_channel=0).parameters())


def test_logits_move_a_saturated_student_where_plain_probabilities_do_not() -> None:
    norms = []
    for params in ({"space": "logit"}, {"space": "prob", "tau_prob": 1.0}):
        method = build("cpkd", context(2), **params)
        student, teacher = pair(method)
        with torch.no_grad():
            student.logits.mul_(0.1)
            student.logits[:, 0] += 30.0
        sum(method(student, teacher, target(2), PROGRESS).values()).backward()
        norms.append(student.logits.grad.norm().item())
    assert norms[0] > 1e4 * norms[1]


@pytest.mark.parametrize("regions", [False, True])
def test_the_band_lies_around_changes_of_the_prediction_not_at_the_border(regions: bool) -> None:
    logits = torch.full((1, 2, 20, 14), -1.0)
    logits[:, 0, :9] = 1.0  # rows 8 | 9
    if not regions:
        logits[:, 1] = -logits[:, 0]
    band = cpkd.boundary_band(logits, regions)
    rows = torch.zeros(20, dtype=torch.bool)
    rows[6:12] = True  # the two at the change, dilated by 2
    assert torch.equal(band, rows.view(1, 1, 20, 1).expand_as(band))
    assert not cpkd.boundary_band(torch.ones(1, 2, 6, 6, 6), regions).any()


def test_places_are_drawn_from_the_band_once_each_and_outside_only_for_want_of_more() -> None:
    band = torch.zeros(2, 1, 10, 10, dtype=torch.bool)
    band[0, 0, :2] = True  # 20 voxels
    band[1, 0, 0, :3] = True
    index = cpkd.drawn_places(band, 12)
    assert index.shape == (2, 12)
    assert all(len(set(row.tolist())) == 12 for row in index)
    assert (index[0] < 20).all()
    assert {0, 1, 2} <= set(index[1].tolist())
    assert cpkd.drawn_places(band, 500).shape == (2, 100)


@pytest.mark.parametrize("space", ["logit", "feature"])
def test_boundary_places_are_the_same_for_both_and_at_the_teachers_boundary(space: str) -> None:
    method = build("cpkd", context(2), boundary=True, space=space, weight_channel=0, grid=3)
    student, teacher = pair(method)
    with torch.no_grad():
        teacher.logits.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0]).view(1, 4, 1, 1))
        teacher.logits[:, 1, 14:] = 20.0  # a change at rows 13 | 14: the band begins at row 11
        teacher.logits.add_(0.1 * torch.randn_like(teacher.logits))
    ours, theirs = method._maps(student, teacher, space)
    height, width = ours.shape[2:]
    rows = torch.arange(height, dtype=torch.float32).view(1, 1, -1, 1).expand(2, 1, -1, width)
    places = method._places(rows, torch.cat([rows, rows], 1), teacher.logits)
    assert places[0].shape == (2, 1, 9)
    torch.testing.assert_close(places[0], places[1][:, :1])
    assert (places[0] >= 11 * height // 16).all()
    value = method(student, teacher, target(2), PROGRESS)["pixel"]
    value.backward()
    assert torch.isfinite(value)
