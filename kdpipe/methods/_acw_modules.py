"""Layers of ACW-SKD: what turns a feature into the next stage's objective. Training only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdpipe.terms.adapters import block, convolution, pointwise


class Reconstruction(nn.Module):
    """Feature reconstruction ``x + conv(relu(norm(conv(x))))``, 3 wide, channels kept.

    Args:
        spatial_dims: 2 or 3.
        channels: of the feature.
        divisor: the inner channels are `channels` divided by it, at least 1.
    """

    def __init__(self, spatial_dims: int, channels: int, divisor: int):
        super().__init__()
        inner = max(1, channels // divisor)
        self.body = nn.Sequential(
            block(spatial_dims, channels, inner), convolution(spatial_dims, inner, channels)
        )

    def forward(self, feature: Tensor) -> Tensor:
        """Return the reconstructed feature, same shape."""
        result: Tensor = feature + self.body(feature)
        return result


class SelfTeacher(nn.Module):
    """Logits from the reconstructed feature and the reconstructed class-wise feature.

    Args:
        spatial_dims: 2 or 3.
        channels: of the feature.
        outputs: channels of the logits.
        places: which of ``penult`` and ``class`` are reconstructed; the other is taken as it is.
        divisor: see `Reconstruction`.
    """

    def __init__(
        self, spatial_dims: int, channels: int, outputs: int, places: frozenset[str], divisor: int
    ):
        super().__init__()

        def reconstruction(place: str) -> nn.Module:
            if place not in places:
                return nn.Identity()
            return Reconstruction(spatial_dims, channels, divisor)

        self.penult, self.classes = reconstruction("penult"), reconstruction("class")
        # two heads, summed, are one head on the concatenation, which would be the largest tensor
        self.penult_head = pointwise(spatial_dims, channels, outputs, bias=True)
        self.class_head = pointwise(spatial_dims, channels, outputs)

    def forward(self, feature: Tensor, class_wise: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(B, K, *s)`` and the reconstructed `feature` ``(B, c, *s)``."""
        refined = self.penult(feature)
        return self.penult_head(refined) + self.class_head(self.classes(class_wise)), refined


def class_wise_feature(centres: Tensor, masks: Tensor) -> Tensor:
    """Return at each voxel the class centres, weighted by its masks: ``(B, c, *s)``.

    Args:
        centres: ``(B, K, c)``.
        masks: soft, ``(B, K, *s)``. Where overlapping regions sum to more than 1 they share.
    """
    shares = masks / masks.sum(1, keepdim=True).clamp_min(1.0)
    return torch.einsum("bkc,bk...->bc...", centres, shares)
