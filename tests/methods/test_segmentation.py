"""The segmentation losses: MONAI's DiceCELoss in value and gradient, focal and Dice by hand."""

import pytest
import torch

from kdpipe.terms.segmentation import dice_ce, focal, focal_dice, foreground_dice


@pytest.mark.parametrize("shape", [(2, 4, 5, 6, 7), (1, 2, 8, 9)])
def test_equals_monai(shape: tuple[int, ...]) -> None:
    from monai.losses.dice import DiceCELoss

    torch.manual_seed(0)
    logits = torch.randn(shape, dtype=torch.float32, requires_grad=True)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    ours = dice_ce(logits, target)
    (gradient,) = torch.autograd.grad(ours, logits)
    reference = DiceCELoss(to_onehot_y=True, softmax=True)(logits, target[:, None])
    (expected,) = torch.autograd.grad(reference, logits)
    torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)


def test_perfect_logits_cost_nothing_and_half_precision_is_computed_in_float32() -> None:
    target = torch.randint(0, 3, (2, 4, 4, 4))
    logits = 60.0 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1).half()
    loss = dice_ce(logits, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("regions", [1, 3])
def test_regions_are_monais_dice_plus_binary_cross_entropy(regions: int) -> None:
    from monai.losses.dice import DiceCELoss, DiceLoss

    torch.manual_seed(0)
    logits = torch.randn(2, regions, 5, 6, 7, requires_grad=True)
    target = torch.randint(0, 2, logits.shape)
    inside = target.float()
    ours = dice_ce(logits, target)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, inside)
    expected = DiceLoss(sigmoid=True)(logits, inside) + entropy
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    if regions == 1:  # with more, MONAI's sum takes a softmax between the regions
        reference = DiceCELoss(sigmoid=True)(logits, inside)
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-6)


def drawn(regions: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, target, and the probability of the truth at each voxel (and region)."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    if regions:
        target = torch.randint(0, 2, (2, 3, 5, 4))
        p = logits.sigmoid()
        return logits, target, torch.where(target > 0, p, 1.0 - p)
    target = torch.randint(0, 3, (2, 5, 4))
    return logits, target, logits.softmax(1).gather(1, target.unsqueeze(1))


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 2.0, 0.5])
def test_focal_weighs_the_cross_entropy_by_a_constant(regions: bool, gamma: float) -> None:
    logits, target, truth = drawn(regions)
    ours = focal(logits, target, gamma)
    expected = ((1.0 - truth.detach()) ** gamma * -truth.log()).mean()
    torch.testing.assert_close(ours, expected)
    (gradient,) = torch.autograd.grad(ours, logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, wanted)  # the factor itself has no gradient


@pytest.mark.parametrize("regions", [False, True])
def test_foreground_dice_is_over_the_whole_batch_and_leaves_the_background_out(
    regions: bool,
) -> None:
    logits, target, _ = drawn(regions)
    scores = []
    for channel in range(0 if regions else 1, 3):
        p = logits.sigmoid()[:, channel] if regions else logits.softmax(1)[:, channel]
        inside = target[:, channel] if regions else target == channel
        scores.append((2 * (p * inside).sum() + 1) / (p.sum() + inside.sum() + 1))
    expected = 1.0 - torch.stack(scores).mean()
    torch.testing.assert_close(foreground_dice(logits, target), expected)
    both = 0.5 * (focal(logits, target) + foreground_dice(logits, target))
    torch.testing.assert_close(focal_dice(logits, target), both)


@pytest.mark.parametrize("loss", [dice_ce, focal_dice])
@pytest.mark.parametrize("regions", [False, True])
def test_extreme_logits_are_finite(loss, regions: bool) -> None:  # type: ignore[no-untyped-def]
    target = drawn(regions)[1]
    logits = (1e4 * drawn(regions)[0].detach()).float().requires_grad_()
    value = loss(logits, target)
    value.backward()
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
