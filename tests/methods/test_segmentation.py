"""The segmentation loss equals MONAI's DiceCELoss, in value and gradient."""

import pytest
import torch

from kdpipe.terms.segmentation import dice_ce


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
