"""A critic that tells the maps of two networks apart, trained as a Wasserstein GAN's.

Source: Gulrajani et al.: Improved Training of Wasserstein GANs, NeurIPS 2017; the critic follows
SAGAN (Zhang et al., ICML 2019) without its spectral norms.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdpipe.terms.adapters import convolution, pointwise


class SelfAttention(nn.Module):
    """Non-local attention over the positions of a coarse map; starts as the identity."""

    def __init__(self, spatial_dims: int, channels: int):
        super().__init__()
        inner = max(1, channels // 8)
        self.query = pointwise(spatial_dims, channels, inner, bias=True)
        self.key = pointwise(spatial_dims, channels, inner, bias=True)
        self.value = pointwise(spatial_dims, channels, channels, bias=True)
        self.strength = nn.Parameter(torch.zeros(1))

    def forward(self, feature: Tensor) -> Tensor:
        """Return the feature ``(B, c, *s)`` plus what its positions gather from each other."""
        query, key = self.query(feature).flatten(2), self.key(feature).flatten(2)
        gaze = (query.transpose(1, 2) @ key).softmax(dim=2)
        gathered: Tensor = self.value(feature).flatten(2) @ gaze.transpose(1, 2)
        return feature + self.strength * gathered.view_as(feature)


class Critic(nn.Module):
    """Score of a map: four convolutions of stride 2, self-attention, mean over positions.

    There is no normalisation over the batch, which a gradient penalty a sample does not allow.

    Args:
        spatial_dims: 2 or 3.
        channels: of the judged maps.
        width: channels after the first convolution; they double three times.
    """

    def __init__(self, spatial_dims: int, channels: int, width: int = 16):
        super().__init__()
        widths = [channels, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [convolution(spatial_dims, inputs, outputs, stride=2), nn.LeakyReLU(0.1)]
        self.down = nn.Sequential(*layers)
        self.attend = SelfAttention(spatial_dims, widths[-1])
        self.score = pointwise(spatial_dims, widths[-1], 1, bias=True)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the scores ``(B,)`` of maps ``(B, C, *S)``; any grid of one voxel or more."""
        places: Tensor = self.score(self.attend(self.down(maps)))
        return places.flatten(1).mean(dim=1)


def frozen_score(critic: nn.Module, maps: Tensor) -> Tensor:
    """Return the critic's scores; gradients reach the maps, never the critic's parameters."""
    constants = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    scores: Tensor = torch.func.functional_call(critic, constants, (maps,))
    return scores


def wasserstein_loss(critic: nn.Module, fake: Tensor, real: Tensor, penalty: float) -> Tensor:
    """Return what the critic minimises: fakes score low, real maps high, slopes near 1.

    Deviation: the slope is taken against the *root mean square* distance over voxels, so that
    scores, and with them the loss of the fakes' maker, do not grow with the patch.

    Args:
        critic: maps -> scores ``(B,)``.
        fake: ``(B, C, *S)``; gets no gradient.
        real: ``(B, C, *S)``; gets no gradient.
        penalty: weight of the squared deviation of the slope from 1.
    """
    fake, real = fake.detach(), real.detach()
    share = torch.rand(len(real), *[1] * (real.ndim - 1), dtype=real.dtype, device=real.device)
    between = (share * real + (1.0 - share) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    voxels = real[0, 0].numel()
    slope: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1) * voxels**0.5
    gap: Tensor = critic(fake).mean() - critic(real).mean()
    return gap + penalty * (slope - 1.0).square().mean()
