"""HLFD: which stages are fed back to which, for networks of any depth, and through which layers."""

from __future__ import annotations

import copy

import pytest
import torch
from fakes import PROGRESS, TEACHER, build, context, outputs, pair, target, total

from kdpipe.errors import ConfigError
from kdpipe.methods import hlfd
from kdpipe.methods.base import Context, Outputs
from kdpipe.methods.hlfd import Flow, feature_loss, feedback, pixel_loss
from kdpipe.terms import features
from kdpipe.terms.features import attention, resize, resized_attention

VARIANTS = ["hlfd", "attn_kd", "wo_feedback", "deep_kd", "hifd", "ifd"]
SIDES = ("student", "teacher")
E = ("e1", "e2", "e3", "e4", "e5")
D = ("d5", "d4", "d3", "d2", "out")


def single(*pairs: tuple[str, str], share: float = 1.0) -> list[Flow]:
    return [Flow((ours,), (theirs,), share) for ours, theirs in pairs]


def test_five_levels_give_the_published_layout() -> None:
    middle = single(("e2", "e5"), ("e3", "e5"), ("e4", "e5"), share=0.5)
    assert feedback("hlfd", E, E, False) == [Flow(("e1",), ("e2", "e3", "e4"), 0.5), *middle]
    late = single(("d4", "out"), ("d3", "out"), ("d2", "out"), share=0.5)
    assert feedback("hlfd", D, D, True) == [Flow(("d5",), ("d5", "d4", "d3"), 0.5), *late]


@pytest.mark.parametrize(
    ("variant", "encoders", "decoders"),
    [
        ("wo_feedback", [], []),
        (
            "deep_kd",
            single(("e1", "e1"), ("e2", "e2"), ("e3", "e3"), ("e4", "e4")),
            single(("d2", "d2"), ("d3", "d3"), ("d4", "d4"), ("d5", "d5")),
        ),
        ("hifd", single(("e2", "e5"), ("e4", "e5")), single(("d4", "out"), ("d2", "out"))),
        ("ifd", [Flow(E[:-1], ("e5",))], [Flow(D[:-1], ("out",))]),
    ],
)
def test_ablations_of_five_levels(variant: str, encoders: list[Flow], decoders: list[Flow]) -> None:
    assert feedback(variant, E, E, False) == [*single(("e5", "e5")), *encoders]
    assert feedback(variant, D, D, True) == [*single(("out", "out")), *decoders]


def test_a_unet_of_five_levels_has_nine_taps_and_its_logits() -> None:
    taps = {f"enc{i}": (4 * i, 2**i) for i in range(1, 5)} | {"bottleneck": (20, 16)}
    taps |= {f"dec{i}": (9 - i, 2 ** (4 - i)) for i in range(1, 5)}
    method = build("hlfd", context(3, student=taps, teacher=taps))
    assert method.student_taps() == ("enc1", "enc2", "enc3", "enc4", "dec1", "dec2", "dec3", "dec4")
    assert set(method.teacher_taps()) == {*taps} - {"enc1", "dec4"}


def test_the_decoder_stage_that_is_the_logits_is_not_a_stage() -> None:
    method = build("hlfd", context(3))  # the student's dec2 has the logits' channels and grid
    assert "dec2" not in method.student_taps()
    assert "dec2" in method.teacher_taps()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("targets", ["classes", "regions"])
@pytest.mark.parametrize(
    "shallow",
    [
        {"bottleneck": (5, 2)},
        {"enc1": (5, 2), "bottleneck": (5, 4), "dec1": (4, 1)},
        {"enc1": (5, 2), "bottleneck": (5, 4), "dec1": (6, 2)},
    ],
)
def test_networks_of_one_or_two_levels_on_either_side(
    shallow: dict[str, tuple[int, int]], targets: str, variant: str
) -> None:
    for sides in ({"student": shallow}, {"teacher": shallow}, dict.fromkeys(SIDES, shallow)):
        method = build("hlfd", context(2, targets, **sides), variant=variant)
        student, teacher = pair(method)
        terms = method(student, teacher, target(2, targets), PROGRESS)
        assert set(terms) == ({"feature"} if variant == "attn_kd" else {"feature", "pixel"})
        total(terms).backward()
        for tensor in student.features.values():
            assert tensor.grad is not None
            assert tensor.grad.abs().sum() > 0
        assert all(parameter.grad is not None for parameter in method.parameters())


def test_without_any_encoder_stage_there_is_a_clear_message_or_the_pixel_level_alone() -> None:
    bare = context(2, student={"dec1": (6, 2)})
    with pytest.raises(ConfigError, match=r"hlfd: the student has no stage.*student_encoders"):
        build("hlfd", bare)
    assert build("hlfd", bare, weight_feature=0.0).student_taps() == ("dec1",)


def test_named_taps_are_used_and_checked() -> None:
    method = build("hlfd", context(2), student_encoders=["enc2", "pre_act"])
    assert method.feature_flows[0].ours == ("enc2",)
    assert method.feature_flows[1].ours == ("pre_act",)
    with pytest.raises(ConfigError, match="the teacher has no tap 'enc9'"):
        build("hlfd", context(2), teacher_encoders=["enc9"])


def test_the_combination_projects_the_student_or_the_frozen_teacher() -> None:
    trained = build("hlfd", context(3, student=TEACHER)).adapters[0]
    assert (trained.in_channels, trained.out_channels) == (16, 16 + 12)
    frozen = build("hlfd", context(3, student=TEACHER), adapters="frozen")
    assert (frozen.adapters[0].in_channels, frozen.adapters[0].out_channels) == (16 + 12, 16)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_training_cannot_make_the_joined_target_constant() -> None:
    """Adapters of zero would be perfect, were it the teacher that they project."""
    method = build("hlfd", context(2, student=TEACHER), weight_feature=0.0)
    student, teacher = pair(method)
    assert teacher is not None
    with torch.no_grad():
        teacher.logits.zero_()  # leaves the combination alone
        for parameter in method.parameters():
            parameter.zero_()
    assert total(method(student, teacher, target(2), PROGRESS)) > 1e-3


@pytest.mark.parametrize("adapters", ["trained", "frozen"])
def test_adapters_are_drawn_once(adapters: str) -> None:
    method = build("hlfd", context(3), adapters=adapters)
    student, teacher = pair(method)
    values = [total(method(student, teacher, target(3), PROGRESS)) for _ in range(2)]
    assert torch.equal(*values)
    other = copy.deepcopy(method)
    with torch.no_grad():
        other.adapters[0].weight.mul_(2.0)
    assert not torch.equal(values[0], total(other(student, teacher, target(3), PROGRESS)))


def test_logits_meet_logits_without_an_adapter() -> None:
    method = build("hlfd", context(2), variant="wo_feedback", weight_feature=0.0)
    assert not list(method.parameters())
    student, teacher = pair(method)
    assert teacher is not None
    same = method(Outputs(teacher.logits), teacher, target(2), PROGRESS)
    assert same["pixel"].item() == pytest.approx(0.0, abs=1e-6)


def test_deep_kd_moves_the_coarsest_decoder() -> None:
    """The public code compares this stage with itself, without any gradient."""
    deep = context(2, student=TEACHER)
    method = build("hlfd", deep, variant="deep_kd", weight_feature=0.0)
    student, teacher = pair(method)
    total(method(student, teacher, target(2), PROGRESS)).backward()
    assert student.features["dec1"].grad.abs().sum() > 0


@pytest.mark.parametrize("channels", [2, 5])
def test_the_published_normalisation_is_over_half_of_the_elements(channels: int) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, channels, 4, 3, 5)
    published = pixel_loss(student, teacher, normalisation="published")
    torch.testing.assert_close(published, pixel_loss(student, teacher) * 2.0 / channels)


def test_only_logits_are_regions() -> None:
    """A decoder stage of a region network is still a softmax over channels."""
    torch.manual_seed(0)
    where: Context = context(2, "regions", classes=1)
    method = build("hlfd", where, variant="wo_feedback", weight_feature=0.0)
    student, teacher = pair(method)
    value = total(method(student, teacher, target(2, "regions", classes=1), PROGRESS))
    assert value > 1e-3  # the softmax of a single channel is always 1


def test_the_power_is_taken_after_resizing_and_scale_does_not_matter() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 6, 8, 8), torch.randn(2, 3, 4, 4)
    by_hand = [
        torch.nn.functional.normalize(x.pow(4).mean(1).flatten(1))
        for x in (resize(student, (4, 4)), teacher)
    ]
    expected = (by_hand[0] - by_hand[1]).pow(2).sum(1).mean()
    torch.testing.assert_close(feature_loss(student, teacher), expected)
    torch.testing.assert_close(feature_loss(100.0 * student, 0.01 * teacher), expected)


@pytest.mark.parametrize("size", [(3, 2, 4), (12, 10, 8)])
def test_channels_in_pieces_give_the_same_map(
    size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    feature = torch.randn(2, 7, 6, 5, 4, dtype=torch.float64)
    whole = features.unit_map(attention(resize(feature, size), 4))
    assert torch.allclose(features.unit_map(resized_attention(feature, size, 4)), whole)
    monkeypatch.setattr(features, "_PIECE", 2 * 3 * size[0] * size[1] * size[2])
    held: list[int] = []
    original = features.resize
    monkeypatch.setattr(
        features, "resize", lambda x, *rest: held.append(x.shape[1]) or original(x, *rest)
    )
    assert torch.allclose(features.unit_map(resized_attention(feature, size, 4)), whole)
    assert held == [3, 3, 1]


def test_a_student_on_a_much_finer_grid_is_compared_on_the_coarser() -> None:
    """The joined channels of the teacher would not fit the student's grid."""
    where = context(3, student={"bottleneck": (5, 2), "dec1": (6, 1)})
    method = build("hlfd", where, weight_feature=0.0)
    seen: list[tuple[int, ...]] = []
    method.adapters[0].register_forward_hook(lambda *call: seen.append(tuple(call[2].shape)))
    student = outputs(method.student_taps(), dict(where.student), 3, 1)
    teacher = outputs(method.teacher_taps(), dict(where.teacher), 3, 2)
    method(student, teacher, target(3), PROGRESS)
    assert seen == [(2, 28, 2, 3, 2)]
    assert hlfd.joined([teacher.features["dec1"], teacher.features["dec2"]]).shape == seen[0]
