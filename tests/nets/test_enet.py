"""ENet: pooling and unpooling equal torch's, and parameters that do not go together."""

import pytest
import torch
from torch.nn import functional

from kdpipe.errors import ConfigError
from kdpipe.nets.base import build_network
from kdpipe.nets.enet import pool, unpool


@pytest.mark.parametrize("sides", [(6, 8), (4, 6, 8)])
def test_pool_and_unpool_equal_torch_in_value_and_gradient(sides: tuple[int, ...]) -> None:
    suffix = f"{len(sides)}d"
    feature = torch.randn(2, 3, *sides, requires_grad=True)
    other = feature.detach().clone().requires_grad_()

    maxima, winners = pool(feature)
    spread = unpool(maxima**2, winners)
    expected, places = getattr(functional, f"max_pool{suffix}")(other, 2, return_indices=True)
    unpooled = getattr(functional, f"max_unpool{suffix}")(expected**2, places, 2)

    assert torch.equal(maxima, expected)
    assert torch.equal(spread, unpooled)
    weight = torch.randn_like(spread)
    (spread * weight).sum().backward()
    (unpooled * weight).sum().backward()
    assert torch.equal(feature.grad, other.grad)


def test_it_trains_where_only_deterministic_operations_are_allowed() -> None:
    network = build_network("enet", {"channels": [8, 12, 16]}, 1, 3)
    torch.use_deterministic_algorithms(True)
    try:
        network(torch.randn(2, 1, 16, 16, 24)).square().mean().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(value.grad.abs().sum() > 0 for value in network.parameters())


@pytest.mark.parametrize("channels", [[16, 16, 32], [32, 16, 64], [16, 30, 64]])
def test_channels_that_do_not_increase_in_fours_are_refused(channels: list[int]) -> None:
    with pytest.raises(ConfigError, match="multiples of 4"):
        build_network("enet", {"channels": channels}, 1, 2, spatial_dims=2)


@pytest.mark.parametrize("name", ["enet", "erfnet"])
def test_an_image_of_more_channels_than_the_first_stage_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="more than 16"):
        build_network(name, {}, 16, 2, spatial_dims=2)
