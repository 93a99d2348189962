"""ACF-BCKD and its parts, and the distance transform that they measure boundaries with."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import PROGRESS, build, context, outputs, pair, target
from scipy import ndimage
from torch import Tensor

from kdpipe import discover
from kdpipe.errors import ConfigError
from kdpipe.methods.acf_bckd import hard_share
from kdpipe.methods.acfd import Correction, PixelAttention, map_loss
from kdpipe.methods.base import Progress
from kdpipe.methods.hbd import hbd_loss
from kdpipe.methods.sbd import sbd_loss
from kdpipe.terms import distance
from kdpipe.terms.features import attention, attention_distance
from kdpipe.terms.masks import boundary

# the distance transform


def blobs(shape: tuple[int, ...], count: int = 3) -> Tensor:
    """Smooth masks, one after the other smaller; the last is noise."""
    rng = np.random.default_rng(len(shape) + shape[0])
    smooth = ndimage.gaussian_filter(rng.normal(size=(count, *shape)), (0, *[2] * len(shape)))
    smooth /= smooth.std()
    masks = [field > level for field, level in zip(smooth, np.linspace(-1, 2, count), strict=True)]
    return torch.from_numpy(np.stack([*masks, rng.random(shape) > 0.7]))


def scipy_transform(masks: Tensor) -> Tensor:
    fields = [ndimage.distance_transform_edt(mask) for mask in masks.numpy()]
    return torch.from_numpy(np.stack(fields)).float()


SHAPES = [
    (17, 23),
    (5, 90),
    (1, 40),
    (160, 140),  # squares above 2^15: the 16 bits are used in full
    (300, 200),  # squares above 2^16: float32
    (12, 12, 12),
    (31, 4, 50),
    (3, 128, 126),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_distances_equal_scipy(shape: tuple[int, ...]) -> None:
    masks = blobs(shape)
    corner = torch.zeros_like(masks[:1])
    corner.flatten()[0] = True
    masks = torch.cat([masks, corner, ~corner])  # the farthest there are: one corner to the other
    inside = distance.distance_transform(masks)
    both = distance.contour_distance(masks)
    assert inside.dtype == both.dtype == torch.float32
    torch.testing.assert_close(inside, scipy_transform(masks), rtol=2e-7, atol=0.0)
    expected = scipy_transform(masks) + scipy_transform(~masks)
    torch.testing.assert_close(both, expected, rtol=2e-7, atol=0.0)
    squared = distance.squared_contour_distance(masks)
    assert torch.equal(squared, expected.double().square().round().float())  # whole numbers


@pytest.mark.parametrize("shape", [(6, 7), (5, 6, 7)])
def test_empty_and_full_masks_have_no_contour(shape: tuple[int, ...]) -> None:
    masks = torch.stack([torch.zeros(shape), torch.ones(shape)]).bool()
    assert not distance.contour_distance(masks).any()
    assert not distance.distance_transform(masks).any()


@pytest.mark.parametrize("shape", [(9, 14), (7, 10, 12)])
def test_masks_taken_together_give_the_same_as_one_by_one(shape: tuple[int, ...]) -> None:
    masks = torch.cat([blobs(shape), torch.ones(1, *shape).bool(), torch.zeros(1, *shape).bool()])
    together = torch.zeros(masks.shape)
    distance._add_squared(masks, together)  # as on an accelerator
    assert torch.equal(together.sqrt(), distance.distance_transform(masks))


def test_threads_are_as_before_and_the_masks_too() -> None:
    masks = blobs((8, 9, 10))
    before, threads = masks.clone(), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        distance.contour_distance(masks)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(masks, before)


# hard boundaries


def neighbours(place: tuple[int, ...], shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    steps = [step for step in itertools.product((-1, 0, 1), repeat=len(shape)) if any(step)]
    moved = [tuple(p + s for p, s in zip(place, step, strict=True)) for step in steps]
    return [m for m in moved if all(0 <= p < n for p, n in zip(m, shape, strict=True))]


def on_boundary(mask: np.ndarray) -> list[tuple[int, ...]]:
    """Places of which some neighbours are inside and some not; beyond the border is not inside."""
    found = []
    for place in np.ndindex(mask.shape):
        inside = sum(mask[other] for other in neighbours(place, mask.shape))
        if 0 < inside < 3**mask.ndim - 1:
            found.append(place)
    return found


@pytest.mark.parametrize("shape", [(9, 7), (6, 5, 7), (1, 8), (2, 1, 6)])
def test_boundary_voxels_by_counting_neighbours(shape: tuple[int, ...]) -> None:
    masks = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(1))
    masks = masks > torch.tensor([0.1, 0.5, 1.1]).view(1, 3, *[1] * len(shape))
    found = boundary(masks)
    for index in range(3):
        expected = np.zeros(shape, bool)
        for place in on_boundary(masks[0, index].numpy()):
            expected[place] = True
        assert np.array_equal(found[0, index].numpy(), expected)


def brute_hbd(z_s: Tensor, z_t: Tensor, labels: Tensor, tau: float, reduction: str) -> float:
    terms = []
    p, q = (z_s / tau).softmax(1).double(), (z_t / tau).softmax(1).double()
    for b, k in itertools.product(range(len(z_s)), range(z_s.shape[1])):
        kls = [
            (q[(b, slice(None), *v)] * (q[(b, slice(None), *v)] / p[(b, slice(None), *v)]).log())
            for v in on_boundary((labels[b] == k).numpy())
        ]
        if kls:
            terms.append(torch.stack(kls).sum(1).mean().item())
    if reduction == "sum":
        return sum(terms) / z_s.shape[1]
    return np.mean(terms) / (z_s.shape[1] if reduction == "mean" else 1)


@pytest.mark.parametrize("reduction", ["bands", "mean", "sum"])
@pytest.mark.parametrize("dims", [2, 3])
def test_hbd_is_the_divergence_at_boundaries(dims: int, reduction: str) -> None:
    shape = (6, 7, 5)[:dims]
    torch.manual_seed(0)
    z_s, z_t = torch.randn(2, 2, 4, *shape).unbind(0)
    labels = torch.zeros(2, *shape, dtype=torch.long)
    labels[0, 1:4, 2:5] = 1
    labels[1, 4:, :3] = 3  # class 2 is nowhere
    value = hbd_loss(z_s, z_t, labels, tau=2.0, reduction=reduction)
    assert value.item() == pytest.approx(brute_hbd(z_s, z_t, labels, 2.0, reduction), rel=1e-5)


def test_hbd_moves_boundary_voxels_only_and_is_0_without_a_boundary() -> None:
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[:, 6:10, 6:10] = 1
    z_s = torch.randn(1, 3, 16, 16, requires_grad=True)
    hbd_loss(z_s, torch.randn(1, 3, 16, 16), labels, include_background=False).backward()
    assert z_s.grad is not None
    moved = z_s.grad.abs().sum(1)[0] > 0
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[5:11, 5:11] = True
    expected[7:9, 7:9] = False  # all neighbours inside
    assert torch.equal(moved, expected)

    z_s = torch.randn(1, 3, 16, 16, requires_grad=True)
    none = hbd_loss(z_s, torch.randn(1, 3, 16, 16), labels * 0, include_background=False)
    none.backward()
    assert none.item() == 0.0
    assert z_s.grad is not None and not z_s.grad.any()


def test_default_hbd_has_the_published_size_for_a_batch_of_four() -> None:
    labels = torch.arange(8).div(2, rounding_mode="floor").view(1, 8, 1, 1).expand(4, 8, 8, 8)
    z_s, z_t = torch.randn(2, 4, 4, 8, 8, 8).unbind(0)
    params = discover.check_params("methods", "hbd", {})
    portable = params["weight"] * hbd_loss(z_s, z_t, labels)
    torch.testing.assert_close(portable, hbd_loss(z_s, z_t, labels, reduction="sum"))
    twice = [torch.cat([tensor, tensor]) for tensor in (z_s, z_t, labels)]
    torch.testing.assert_close(hbd_loss(*twice), hbd_loss(z_s, z_t, labels))


def test_hbd_of_regions_compares_sigmoids_and_has_no_background() -> None:
    regions = target(2, "regions")
    z_s, z_t = torch.randn(2, *regions.shape).unbind(0)
    value = hbd_loss(z_s, z_t, regions, regions=True)
    apart = (z_s.sigmoid() - z_t.sigmoid()).pow(2).sum(1)
    bands = boundary(regions > 0)
    terms = [apart[b][bands[b, k]].mean() for b in range(2) for k in range(4) if bands[b, k].any()]
    torch.testing.assert_close(value, torch.stack(terms).mean())
    without = hbd_loss(z_s, z_t, regions, regions=True, include_background=False)
    assert without == value


# soft boundaries


@pytest.mark.parametrize("shape", [(2, 4, 14, 17), (2, 3, 8, 9, 11)])
@pytest.mark.parametrize("regions", [False, True])
def test_sbd_equals_monai(shape: tuple[int, ...], regions: bool) -> None:
    from monai.losses.hausdorff_loss import LogHausdorffDTLoss

    torch.manual_seed(2)
    z_s = (2 * torch.randn(shape)).requires_grad_()
    z_t = 2 * torch.randn(shape)
    ours = sbd_loss(z_s, z_t, regions=regions)
    (gradient,) = torch.autograd.grad(ours, z_s)
    settings = {"alpha": 2.0, "batch": True, "include_background": regions}
    if regions:
        reference = LogHausdorffDTLoss(sigmoid=True, **settings)(z_s, (z_t >= 0).float())
    else:
        oracle = LogHausdorffDTLoss(softmax=True, to_onehot_y=True, **settings)
        reference = oracle(z_s, z_t.argmax(1, keepdim=True))
    (expected,) = torch.autograd.grad(reference, z_s)
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


def test_sbd_with_another_exponent_and_the_background() -> None:
    z_s, z_t = (2 * torch.randn(2, 1, 2, 9, 12)).unbind(0)
    p, chosen = z_s.softmax(1), z_t.argmax(1)
    expected = []
    for k in range(2):
        student, teacher = p[:, k] > 0.5, chosen == k
        weight = sum(
            (scipy_transform(mask) + scipy_transform(~mask)).sqrt() for mask in (student, teacher)
        )
        expected.append(((p[:, k] - teacher.float()) ** 2 * weight).mean())
    value = sbd_loss(z_s, z_t, alpha=0.5, include_background=True, log=False)
    torch.testing.assert_close(value, torch.stack(expected).mean())


def test_sbd_looks_at_the_teacher_and_not_at_the_label() -> None:
    method = build("sbd", context(3))
    student, teacher = pair(method)
    value = method(student, teacher, target(3), PROGRESS)["sbd"]
    assert method(student, teacher, torch.zeros_like(target(3)), PROGRESS)["sbd"] == value
    assert teacher is not None
    flipped = teacher.map(lambda tensor: -tensor)
    assert method(student, flipped, target(3), PROGRESS)["sbd"] != value


# corrected features


@pytest.mark.parametrize(("channels", "hidden"), [(4, 8), (32, 8), (143, 8), (144, 16), (256, 16)])
def test_attention_has_the_published_layers(channels: int, hidden: int) -> None:
    module = Correction(3, channels)
    counted = sum(parameter.numel() for parameter in module.parameters())
    squeeze = 2 * channels * hidden + hidden + channels
    assert counted == squeeze + 344 + channels * channels + channels
    if channels == 32:
        assert counted == 1952


@pytest.mark.parametrize("shape", [(2, 5, 9, 8), (2, 5, 4, 9, 8)])
def test_attention_lies_in_0_1_and_is_a_product_of_channels_and_voxels(
    shape: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    weights = PixelAttention(len(shape) - 2, 5)(10 * torch.randn(shape)).flatten(2)
    assert weights.min() >= 0
    assert weights.max() <= 1
    assert weights.std() > 0
    assert torch.linalg.matrix_rank(weights.double(), rtol=1e-5).max() == 1


def test_channels_may_be_averaged_before_the_resizing() -> None:
    ours, theirs = torch.randn(2, 5, 4, 6, 5), torch.randn(2, 3, 9, 8, 10)
    resized = torch.nn.functional.interpolate(ours, size=(9, 8, 10), mode="nearest")
    expected = attention_distance(attention(resized), attention(theirs))
    torch.testing.assert_close(map_loss(ours, theirs), expected)
    torch.testing.assert_close(map_loss(ours, theirs, "mean"), expected / 720)


def test_default_weight_of_the_features_is_the_published_one() -> None:
    for name in ("acfd", "acf_bckd"):
        params = discover.check_params("methods", name, {})
        assert params["weight_afd"] == params["weight_cfd"] == pytest.approx(25000 / 48**3, 1e-3)


@pytest.mark.parametrize("name", ["acfd", "acf_bckd"])
def test_a_feature_loss_without_weight_needs_no_tap(name: str) -> None:
    where = context(3)
    only_afd = build(name, where, weight_cfd=0.0)
    assert only_afd.teacher_taps() == ("corrected",)
    assert not any("convert" in key for key in only_afd.state_dict())
    assert build(name, where, weight_afd=0.0).teacher_taps() == ("correction",)
    neither = build(name, where, weight_afd=0.0, weight_cfd=0.0)
    assert neither.student_taps() == neither.teacher_taps() == ()
    assert not list(neither.parameters())


@pytest.mark.parametrize("name", ["acfd", "acf_bckd"])
def test_a_teacher_without_residual_block_is_refused_unless_taps_are_named(name: str) -> None:
    plain = context(2, teacher={"dec1": (8, 2), "penult": (8, 1)})
    with pytest.raises(ConfigError, match="corrected"):
        build(name, plain)
    named = build(name, plain, corrected_tap="dec1", correction_tap="penult")
    assert named.teacher_taps() == ("dec1", "penult")


# all of it


def at_epoch(epoch: int, epochs: int) -> Progress:
    return Progress(epoch, epochs, step=epoch * 7, steps=epochs * 7)


def test_schedule_is_the_published_one(golden: Path) -> None:
    checks = json.loads((golden / "losses.json").read_text())["schedule_checks"]
    for run in checks["hbd_weight"]:
        end = max(0.0, 1.0 - run["gamma"] * run["epochs"])
        for epoch, expected in run["at"].items():
            progress = at_epoch(int(epoch), run["epochs"])
            published = hard_share(progress, run["eta_min"], 0.5, run["gamma"])
            assert published == pytest.approx(expected, abs=1e-9)
            portable = hard_share(progress, run["eta_min"], eta_end=end)
            assert portable == pytest.approx(expected, abs=1e-9)


def test_schedule_falls_by_the_share_of_training_and_stops_at_the_lowest() -> None:
    assert [hard_share(at_epoch(e, 4), 0.5, 0.5) for e in range(4)] == [1.0, 0.875, 0.75, 0.625]
    assert [hard_share(at_epoch(e, 4), 0.4, 0.0) for e in range(4)] == [1.0, 0.75, 0.5, 0.4]
    assert hard_share(at_epoch(3, 4), 0.1, 1.0) == 1.0


@pytest.mark.parametrize("targets", ["classes", "regions"])
def test_terms_are_those_of_the_parts_times_the_schedule(targets: str) -> None:
    where = context(3, targets)
    whole = build("acf_bckd", where, weight_sbd=2.0, weight_afd=0.5)
    features = build("acfd", where, weight_afd=0.5)
    features.load_state_dict({k.removeprefix("acfd."): v for k, v in whole.state_dict().items()})
    student, teacher = pair(whole)
    labels, progress = target(3, targets), at_epoch(2, 10)

    terms = whole(student, teacher, labels, progress)
    expected = features(student, teacher, labels, progress)
    expected["hbd"] = 0.9 * build("hbd", where)(student, teacher, labels, progress)["hbd"]
    expected["sbd"] = 0.2 * build("sbd", where)(student, teacher, labels, progress)["sbd"]
    assert terms.keys() == expected.keys() == {"afd", "cfd", "hbd", "sbd"}
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)


def test_the_soft_boundary_is_not_computed_while_it_has_no_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = build("acf_bckd", context(2))
    student, teacher = pair(method)

    def refuse(masks: Tensor) -> Tensor:
        raise AssertionError("computed")

    monkeypatch.setattr("kdpipe.methods.sbd.squared_contour_distance", refuse)
    assert method(student, teacher, target(2), at_epoch(0, 10)).keys() == {"afd", "cfd", "hbd"}
    with pytest.raises(AssertionError, match="computed"):
        method(student, teacher, target(2), at_epoch(1, 10))


def test_published_form_is_reached_by_parameters() -> None:
    where = context(3)
    names = {"reduction": "mean", "weight_afd": 25000.0, "weight_cfd": 25000.0}
    published = build(
        "acf_bckd", where, **names, hbd_reduction="sum", weight_hbd=1.0, gamma=0.01, eta_min=0.5
    )
    student, teacher = pair(published)
    assert teacher is not None
    terms = published(student, teacher, target(3), at_epoch(30, 50))
    ours = student.features["pre_act"]
    corrected, factor = published.acfd.correct(ours)  # type: ignore[union-attr, operator]
    afd = 25000 * map_loss(corrected, teacher.features["corrected"], "mean")
    torch.testing.assert_close(terms["afd"], afd)
    cfd = 25000 * map_loss(factor, teacher.features["correction"], "mean")
    torch.testing.assert_close(terms["cfd"], cfd)
    hbd = hbd_loss(student.logits, teacher.logits, target(3), reduction="sum")
    torch.testing.assert_close(terms["hbd"], 0.7 * hbd)
    torch.testing.assert_close(terms["sbd"], 0.3 * sbd_loss(student.logits, teacher.logits))


def test_a_batch_is_as_heavy_as_each_of_its_samples() -> None:
    where = context(2)
    method = build("acfd", where)
    student, teacher = pair(method)
    assert teacher is not None
    whole = method(student, teacher, target(2), PROGRESS)
    single = [
        method(
            student.map(lambda tensor, b=b: tensor[b : b + 1]),
            teacher.map(lambda tensor, b=b: tensor[b : b + 1]),
            target(2)[b : b + 1],
            PROGRESS,
        )
        for b in range(2)
    ]
    for name in whole:
        torch.testing.assert_close(whole[name], (single[0][name] + single[1][name]) / 2)
    larger = outputs(teacher.features.keys(), dict(where.teacher), 2, seed=9)  # type: ignore[arg-type]
    scaled = larger.map(lambda tensor: 50.0 * tensor)
    first = method(student, larger, target(2), PROGRESS)
    torch.testing.assert_close(first, method(student, scaled, target(2), PROGRESS))


@pytest.mark.parametrize(
    ("name", "switch"), [("hbd", "include_background"), ("acf_bckd", "hbd_background")]
)
def test_the_background_band_is_left_out_on_demand(name: str, switch: str) -> None:
    method = build(name, context(2), **{switch: False})
    student, teacher = pair(method)
    labels = target(2)
    terms = method(student, teacher, labels, Progress(0, 10, 0, 100))
    expected = hbd_loss(student.logits, teacher.logits, labels, include_background=False)
    torch.testing.assert_close(terms["hbd"], 4 * expected)
    assert not torch.isclose(expected, hbd_loss(student.logits, teacher.logits, labels))
