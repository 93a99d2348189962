"""What is particular to the methods that learn from the student itself."""

from __future__ import annotations

import logging
import math

import pytest
import torch
import torch.nn.functional as F
from fakes import LATE, PROGRESS, build, context, outputs, pair, target, total
from torch import Tensor

from kdpipe.errors import ConfigError
from kdpipe.methods import acw_skd, byot, dual_sd, frskd, ps_kd, uskd
from kdpipe.methods._acw_modules import class_wise_feature
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.divergences import logit_kl
from kdpipe.terms.features import resize, unit_scale
from kdpipe.terms.masks import class_centres, class_masks
from kdpipe.terms.pyramids import Pyramid
from kdpipe.terms.segmentation import dice_ce, focal_dice

SHALLOW = {"enc1": (6, 2), "bottleneck": (10, 4), "penult": (13, 2)}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def terms_of(method: Distiller, progress: Progress = LATE) -> tuple[Outputs, dict[str, Tensor]]:
    where = method.context
    student, past = pair(method)
    labels = target(where.spatial_dims, where.targets, where.num_classes)
    return student, method(student, past, labels, progress)


# ACW-SKD


def test_acw_the_temperature_ascends_while_the_student_descends() -> None:
    method = build("acw_skd", context(2), lr_factor=1.0, span=4.0)
    z, teacher = drawn(2, 4, 8, 8).requires_grad_(), drawn(2, 4, 8, 8, seed=1)

    def loss(strength: float) -> Tensor:
        return acw_skd.tempered_kl(z, teacher, method.adversary(strength))

    before = loss(1.0)
    before.backward()
    theta = method.adversary.theta
    with torch.no_grad():
        theta -= 0.01 * theta.grad.sign()
        assert loss(1.0) > before
        theta += 0.01 * theta.grad.sign()
        z -= 0.1 * z.grad
        assert loss(1.0) < before


def test_acw_plainly_learnable_temperature_descends() -> None:
    gradients = {}
    for kind in ("adversarial", "learnable"):
        method = build("acw_skd", context(2), temperature=kind)
        total(terms_of(method)[1]).backward()
        gradients[kind] = method.adversary.theta.grad
    assert gradients["learnable"].abs() > 0
    torch.testing.assert_close(gradients["learnable"], -gradients["adversarial"])


def test_acw_adversary_starts_without_strength() -> None:
    method = build("acw_skd", context(2))
    total(terms_of(method, Progress(0, 10, 0, 100))[1]).backward()
    assert method.adversary.theta.grad.item() == 0.0


@pytest.mark.parametrize("targets", ["classes", "regions"])
def test_acw_nothing_of_the_ramped_terms_reaches_self_teacher_or_masks(targets: str) -> None:
    method = build("acw_skd", context(3, targets))
    student, terms = terms_of(method)
    ramped = terms["adversarial"] + terms["class"] + terms["separation"]
    ramped.backward()
    reached = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
    assert reached == {"adversary.theta"}
    assert student.logits.grad.abs().sum() > 0
    assert student.features["penult"].grad.abs().sum() > 0
    assert student.features["bottleneck"].grad is None


def test_acw_absent_classes_count_nothing() -> None:
    centres, refined = drawn(2, 5, 7).requires_grad_(), drawn(2, 5, 7, seed=1)
    present = torch.tensor([[True, True, False, True, False], [True, False, False, False, False]])
    loss = acw_skd.class_pull(centres, refined, present) + acw_skd.class_separation(
        centres, present
    )
    loss.backward()
    touched = centres.grad.abs().sum(2) > 0
    assert torch.equal(touched, present)
    alone = acw_skd.class_separation(centres[1:], present[1:])
    assert alone.item() == 0.0


def test_acw_class_terms_equal_a_plain_loop() -> None:
    centres, refined = drawn(2, 4, 6), drawn(2, 4, 6, seed=1)
    present = torch.tensor([[True, False, True, True], [True, True, False, False]])
    pull, apart = [], []
    for b in range(2):
        kept = [k for k in range(4) if present[b, k]]
        unit = {k: F.normalize(centres[b, k], dim=0) for k in kept}
        near = {k: F.normalize(refined[b, k], dim=0) for k in kept}
        pull.append(sum((unit[k] - near[k]).square().sum() for k in kept) / len(kept))
        pairs = [(i, j) for i in kept for j in kept if i != j]
        costs = [max(0.0, (unit[i] @ unit[j]).item() - 0.1) ** 2 for i, j in pairs]
        apart.append(sum(costs) / len(pairs))
    torch.testing.assert_close(
        acw_skd.class_pull(centres, refined, present), sum(pull) / 2, rtol=1e-4, atol=1e-6
    )
    found = acw_skd.class_separation(centres, present, 0.1).item()
    assert found == pytest.approx(sum(apart) / 2, rel=1e-4)


@pytest.mark.parametrize("regions", [False, True])
def test_acw_a_temperature_a_class_that_is_the_same_for_all_is_the_global_one(
    regions: bool,
) -> None:
    z, teacher = drawn(2, 4, 5, 6), drawn(2, 4, 5, 6, seed=1)
    one = acw_skd.tempered_kl(z, teacher, torch.tensor([3.0]), regions)
    each = acw_skd.tempered_kl(z, teacher, torch.full((4,), 3.0), regions)
    torch.testing.assert_close(one, each)
    other = acw_skd.tempered_kl(z, teacher, torch.tensor([3.0, 3.0, 3.0, 9.0]), regions)
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("targets", ["classes", "regions"])
def test_acw_terms_are_put_together_from_their_parts(targets: str) -> None:
    regions = targets == "regions"
    method = build("acw_skd", context(2, targets), temperature="fixed", tau=3.0, ramp=0.6)
    student, _ = pair(method)
    labels = target(2, targets)
    terms = method(student, None, labels, PROGRESS)

    feature = unit_scale(student.features["penult"])
    coarse = method.auxiliary(student.features[method.coarse_tap])
    small = resize(coarse, feature.shape[2:])
    masks = small.sigmoid() if regions else small.softmax(1)
    centres, _ = class_centres(feature, masks)
    logits, refined = method.self_teacher(feature, class_wise_feature(centres, masks))
    logits = resize(logits, student.logits.shape[2:])
    targets_of, _ = class_centres(refined, masks)
    present = class_masks(labels, 4, regions).flatten(2).any(2)
    ramp = 31 / 60
    expected = {
        "auxiliary": 0.4 * dice_ce(resize(coarse, student.logits.shape[2:]), labels),
        "self_teacher": 0.5 * dice_ce(logits, labels),
        "adversarial": ramp * 9 * logit_kl(student.logits, logits, 3.0, regions).mean(),
        "class": ramp * acw_skd.class_pull(centres, targets_of, present),
        "separation": ramp * 0.1 * acw_skd.class_separation(centres, present),
    }
    assert terms.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(terms[key], value)


@pytest.mark.parametrize("targets", ["classes", "regions"])
def test_acw_hard_masks_are_the_prediction(targets: str) -> None:
    logits = drawn(2, 4, 6, 5)
    masks = build("acw_skd", context(2, targets), mask="argmax")._masks(logits)
    if targets == "regions":
        assert torch.equal(masks, (logits.sigmoid() > 0.5).float())
    else:
        assert torch.equal(masks, F.one_hot(logits.argmax(1), 4).movedim(-1, 1).float())


def test_acw_class_wise_feature_is_the_masked_mean() -> None:
    centres = drawn(1, 3, 5)
    masks = F.one_hot(torch.tensor([[0, 2, 1, 1]]), 3).movedim(-1, 1).float()
    found = class_wise_feature(centres, masks)
    torch.testing.assert_close(found, centres[:, [0, 2, 1, 1]].transpose(1, 2))


def test_acw_builds_only_what_is_used() -> None:
    alone = build(
        "acw_skd",
        context(3),
        weight_self_teacher=0,
        weight_adversarial=0,
        weight_class=0,
        weight_separation=0,
    )
    assert {name.split(".")[0] for name, _ in alone.named_parameters()} == {"auxiliary"}
    assert set(terms_of(alone)[1]) == {"auxiliary"}
    fixed = build("acw_skd", context(3), temperature="fixed", frm="penult")
    total(terms_of(fixed)[1]).backward()
    assert all(parameter.grad is not None for parameter in fixed.parameters())
    assert not fixed.diagnostics() and not list(fixed.paced_parameters())


def test_acw_logs_and_paces_its_temperature() -> None:
    method = build("acw_skd", context(2))
    assert method.diagnostics()["temperature"] == pytest.approx(1 + 20 / (1 + math.exp(-1)))
    assert [(p is method.adversary.theta, pace) for p, pace in method.paced_parameters()] == [
        (True, 10.0)
    ]
    assert len(build("acw_skd", context(2), scope="class").diagnostics()) == 4


def test_acw_without_reconstruction_has_no_class_term(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        method = build("acw_skd", context(2), frm="class")
    assert "no class term" in caplog.text
    assert "class" not in terms_of(method)[1]


def test_acw_refuses_terms_on_untrained_parts() -> None:
    with pytest.raises(ConfigError, match="acw_skd: weight_self_teacher is 0.*weight_class"):
        build("acw_skd", context(2), weight_self_teacher=0)
    with pytest.raises(ConfigError, match="acw_skd: weight_auxiliary is 0"):
        build("acw_skd", context(2), weight_auxiliary=0)


def test_acw_reads_one_stage_coarser_than_the_refined_feature() -> None:
    deep = {"bottleneck": (9, 8), "dec1": (8, 4), "dec2": (7, 2), "dec3": (5, 1), "penult": (5, 1)}
    assert build("acw_skd", context(2, student=deep)).coarse_tap == "dec2"
    tiny = deep | {"dec3": (4, 1), "penult": (14, 2)}  # dec3 is the logits
    assert build("acw_skd", context(2, student=tiny)).coarse_tap == "dec1"
    assert build("acw_skd", context(2, student=SHALLOW)).coarse_tap == "bottleneck"


# PS-KD


def test_ps_kd_share_grows_to_alpha_and_is_zero_in_the_first_epoch() -> None:
    shares = [ps_kd.past_share(0.8, Progress(epoch, 4, 0, 8)) for epoch in range(4)]
    assert shares == pytest.approx([0.0, 0.4, 0.6, 0.8])
    method = build("ps_kd", context(2))
    assert terms_of(method, Progress(0, 4, 0, 8))[1] == {}
    assert set(terms_of(method)[1]) == {"past"}


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_ps_kd_with_the_segmentation_loss_has_the_published_soft_labels(share: float) -> None:
    z, past, y = drawn(2, 4, 5, 6), drawn(2, 4, 5, 6, seed=1), torch.randint(0, 4, (2, 5, 6))
    soft = (1 - share) * F.one_hot(y, 4).movedim(-1, 1) + share * past.softmax(1)
    found = F.cross_entropy(z, y) + ps_kd.soft_label_shift(z, past, y, share)
    torch.testing.assert_close(found, F.cross_entropy(z, soft))


def test_ps_kd_of_regions_has_soft_binary_labels() -> None:
    z, past = drawn(2, 3, 5, 6), drawn(2, 3, 5, 6, seed=1)
    y = (drawn(2, 3, 5, 6, seed=2) > 0).long()
    soft = 0.6 * y + 0.4 * past.sigmoid()
    hard = F.binary_cross_entropy_with_logits(z, y.float())
    found = hard + ps_kd.soft_label_shift(z, past, y, 0.4, regions=True)
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(z, soft))


def test_ps_kd_replaces_labels_of_a_cross_entropy_only() -> None:
    where = context(2)
    other = Context(4, 2, where.student, where.teacher, "classes", focal_dice)
    with pytest.raises(ConfigError, match="ps_kd: labels 'replaced'.*kept"):
        build("ps_kd", other)
    assert terms_of(build("ps_kd", other, labels="kept"))[1]["past"] > 0
    with pytest.raises(ConfigError, match="ps_kd: weight 2 times alpha"):
        build("ps_kd", where, weight=2.0)


@pytest.mark.parametrize("epoch", [1, 3])
@pytest.mark.parametrize("targets", ["classes", "regions"])
def test_ps_kd_terms_are_weight_and_share_times_their_loss(targets: str, epoch: int) -> None:
    progress, share, regions = Progress(epoch, 4, 0, 8), 0.2 * (epoch + 1), targets == "regions"
    method = build("ps_kd", context(2, targets), labels="kept", weight=3.0)
    student, past = pair(method)
    assert past is not None
    labels = target(2, targets)
    kept = logit_kl(student.logits, past.logits, 1.0, regions).mean()
    found = method(student, past, labels, progress)
    torch.testing.assert_close(found, {"past": 3.0 * share * kept})
    method = build("ps_kd", context(2, targets), weight=0.5)
    replaced = ps_kd.soft_label_shift(student.logits, past.logits, labels, share, regions)
    found = method(student, past, labels, progress)
    torch.testing.assert_close(found, {"past": 0.5 * replaced})


# BYOT


@pytest.mark.parametrize("targets", ["classes", "regions"])
def test_byot_exits_do_not_pull_what_teaches_them(targets: str) -> None:
    method = build("byot", context(3, targets))
    student, terms = terms_of(method)
    total(terms).backward()
    assert student.logits.grad is None
    assert student.features["penult"].grad is None
    assert student.features["dec1"].grad.abs().sum() > 0


def test_byot_hint_counts_what_is_positive_on_either_side() -> None:
    ours = torch.tensor([1.0, 1.0, -1.0, -1.0]).view(1, 1, 4, 1)
    last = torch.tensor([3.0, -3.0, 3.0, -3.0]).view(1, 1, 4, 1)
    assert byot.hint_loss(ours, last, "sum").item() == pytest.approx(4 + 16 + 16)
    assert byot.hint_loss(ours, last).item() == pytest.approx(36 / 4)


def test_byot_exits_are_the_decoder_stages_below_the_logits() -> None:
    assert build("byot", context(3)).taps == ("dec1",)
    assert build("byot", context(3, student=SHALLOW)).taps == ("bottleneck",)
    with pytest.raises(ConfigError, match="byot: hint_tap"):
        build("byot", context(3), taps=("penult",))
    only = build("byot", context(3), weight_exits=0, weight_logits=0)
    assert set(terms_of(only)[1]) == {"hint"}
    assert not len(only.heads)


# dual self-distillation


def test_dual_sd_the_last_stage_of_each_half_teaches() -> None:
    method = build("dual_sd", context(2))
    assert method.decoders == ("bottleneck", "dec1")
    assert method.encoders == ("enc1", "enc2")
    student, terms = terms_of(method)
    (terms["decoders"] + terms["encoders"]).backward()
    reached = {tap for tap, tensor in student.features.items() if tensor.grad is not None}
    assert reached == {"bottleneck", "enc1"}
    assert method.exits["dec1"].weight.grad is None
    assert method.exits["enc2"].weight.grad is None


def test_dual_sd_half_equals_a_plain_sum() -> None:
    exits = [drawn(2, 3, 4, 4, seed=seed) for seed in range(3)]
    q = (exits[2] / 3).softmax(1)
    expected = sum(9 * (q * (q.log() - (z / 3).log_softmax(1))).sum(1).mean() for z in exits[:2])
    torch.testing.assert_close(dual_sd.half_loss(exits, 3.0), expected)


def test_dual_sd_of_a_shallow_network_drops_a_half(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        method = build("dual_sd", context(2, student=SHALLOW))
    assert "encoder has 1 exits" in caplog.text and "decoder has 1 exits" in caplog.text
    assert set(terms_of(method)[1]) == {"labels"}
    with pytest.raises(ConfigError, match="dual_sd: .*weight_labels 0"):
        build("dual_sd", context(2), weight_labels=0)


# FRSKD


def test_frskd_distils_late_only() -> None:
    method = build("frskd", context(2))
    assert set(terms_of(method, PROGRESS)[1]) == {"self_teacher"}
    last = Progress(epoch=8, epochs=10, step=80, steps=100)
    first = terms_of(method, last)[1]
    assert set(first) == {"self_teacher", "logits", "attention"}
    left = 0.1 / (1 - 0.667)
    full = terms_of(method)[1]
    ratio = (first["logits"] / full["logits"]).item()
    assert ratio == pytest.approx(math.exp(-5 * left**2), rel=1e-4)


@pytest.mark.parametrize("targets", ["classes", "regions"])
def test_frskd_gives_no_gradient_to_its_self_teacher(targets: str) -> None:
    method = build("frskd", context(3, targets))
    student, terms = terms_of(method)
    (terms["logits"] + terms["attention"]).backward()
    assert all(parameter.grad is None for parameter in method.parameters())
    assert student.logits.grad.abs().sum() > 0
    assert all(student.features[tap].grad.abs().sum() > 0 for tap in method.taps)


def test_frskd_is_finite_late_with_extreme_and_empty_features() -> None:
    method = build("frskd", context(3))
    student = outputs(method.student_taps(), dict(method.context.student), 3, 1)
    for scale in (0.0, 1e4):
        scaled = student.map(lambda tensor, scale=scale: (scale * tensor).detach())
        leaves = scaled.map(lambda tensor: tensor.requires_grad_())
        value = total(method(leaves, None, target(3), LATE))
        value.backward()
        assert torch.isfinite(value)
        assert all(torch.isfinite(tensor.grad).all() for tensor in leaves.features.values())


def test_frskd_attention_is_published_as_a_mean() -> None:
    ours, theirs = [drawn(2, 3, 4, 6)], [drawn(2, 5, 4, 6, seed=1)]
    unit = [F.normalize(f[0].pow(2).mean(1).flatten(1)) for f in (ours, theirs)]
    published = (unit[0] - unit[1]).pow(2).mean()
    torch.testing.assert_close(frskd.attention_loss(ours, theirs, "mean"), published)
    torch.testing.assert_close(frskd.attention_loss(ours, theirs), 24 * published)


def test_frskd_needs_a_trained_teacher_of_two_levels() -> None:
    with pytest.raises(ConfigError, match="frskd: the self-teacher"):
        build("frskd", context(2), weight_self_teacher=0)
    with pytest.raises(ConfigError, match="frskd: the pyramid needs two levels"):
        build("frskd", context(2, student=SHALLOW))


def test_every_level_of_the_pyramid_reaches_the_finest_and_all_is_trained() -> None:
    pyramid = Pyramid(3, [9, 8, 5], width=6)
    sizes = [(2, 3, 2), (5, 6, 4), (9, 12, 8)]  # no whole ratios
    levels = [
        drawn(1, count, *size).requires_grad_()
        for count, size in zip([9, 8, 5], sizes, strict=True)
    ]
    refined = pyramid(levels)
    assert [tuple(level.shape[1:]) for level in refined] == [
        (width, *size) for width, size in zip([6, 6, 5], sizes, strict=True)
    ]
    (refined[-1] * drawn(*refined[-1].shape, seed=3)).sum().backward()
    assert all(level.grad.abs().sum() > 0 for level in levels)
    assert all(parameter.grad is not None for parameter in pyramid.parameters())


# USKD


def test_uskd_equals_a_plain_loop_over_voxels() -> None:
    z, weak = drawn(2, 5, 3, 4), drawn(2, 5, 3, 4, seed=1)
    y = torch.randint(0, 5, (2, 3, 4), generator=torch.Generator().manual_seed(2))
    rows, weaker = (tensor.movedim(1, -1).reshape(-1, 5) for tensor in (z, weak))
    squares = [row.softmax(0)[k].item() ** 2 for row, k in zip(rows, y.flatten(), strict=True)]
    mean = sum(squares) / len(squares)
    true, others = 0.0, 0.0
    for row, low, k, square in zip(rows, weaker, y.flatten().tolist(), squares, strict=True):
        true -= (square + 1 - mean) * row.log_softmax(0)[k].item()
        rest = [i for i in range(5) if i != k]
        p, u = row[rest].softmax(0), low[rest].softmax(0)
        order = (p + u).argsort(descending=True)
        shares = torch.zeros(4)
        shares[order] = torch.tensor([1.0, 1 / 2, 1 / 3, 1 / 4])
        others -= (shares / shares.sum() * p.log()).sum().item()
    assert uskd.target_loss(z, y).item() == pytest.approx(true / 24, rel=1e-4)
    assert uskd.nontarget_loss(z, weak, y).item() == pytest.approx(others / 24, rel=1e-4)


def test_uskd_shares_rank_the_others_and_leave_out_the_true_class() -> None:
    z = torch.tensor([9.0, 1.0, 3.0, 2.0]).view(1, 4, 1)
    found = uskd.zipf_labels(z, None, torch.tensor([[0]])).flatten()
    total_share = 1 + 1 / 2 + 1 / 3
    expected = torch.tensor([0.0, 1 / 3, 1.0, 1 / 2]) / total_share
    torch.testing.assert_close(found, expected)
    weak = torch.tensor([-9.0, 8.0, 0.0, 0.0]).view(1, 4, 1)
    swayed = uskd.zipf_labels(z, weak, torch.tensor([[0]])).flatten()
    assert swayed.argmax() == 1


def test_uskd_trains_the_weak_head_by_its_own_term_alone() -> None:
    method = build("uskd", context(2))
    student, terms = terms_of(method)
    (terms["target"] + terms["nontarget"]).backward()
    assert method.head.weight.grad is None
    assert student.features["dec1"].grad is None
    terms["weak"].backward()
    assert method.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("targets", "classes"), [("regions", 3), ("classes", 2)])
def test_uskd_without_other_classes_warns(
    targets: str, classes: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        method = build("uskd", context(2, targets, classes))
    assert "uskd: with" in caplog.text
    assert set(terms_of(method)[1]) == {"target", "weak"}


# all of them


@pytest.mark.parametrize("name", ["acw_skd", "byot", "dual_sd", "frskd", "uskd"])
def test_auxiliary_heads_use_the_study_s_segmentation_loss(name: str) -> None:
    values = []
    for loss in (dice_ce, focal_dice):
        where = context(2)
        chosen = Context(4, 2, where.student, where.teacher, "classes", loss)
        values.append(total(terms_of(build(name, chosen))[1]).item())
    assert (values[0] != values[1]) == (name != "uskd")  # uskd's weak head has its own


@pytest.mark.parametrize("name", ["acw_skd", "byot", "dual_sd", "frskd", "uskd"])
def test_raw_features_of_any_size_give_the_same_terms(name: str) -> None:
    method = build(name, context(3))
    student = pair(method)[0]
    large = Outputs(student.logits, {tap: 50.0 * f for tap, f in student.features.items()})
    values = [method(seen, None, target(3), LATE) for seen in (student, large)]
    for term, value in values[0].items():
        torch.testing.assert_close(value, values[1][term], rtol=1e-3, atol=1e-4)
