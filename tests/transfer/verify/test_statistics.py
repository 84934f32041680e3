"""Batch statistics: the distance against its integral and plain numpy, and statistics estimated anew."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import nn

from carryover.transfer.verify.statistics import estimate, hellinger, watching


@pytest.mark.parametrize(("m", "s", "n", "t"), [(0, 1, 0, 1), (0, 1, 1, 1), (0, 1, 0, 3), (-2, 0.5, 1, 2)])
def test_the_distance_is_hellingers_integral(m: float, s: float, n: float, t: float) -> None:
    """1 - integral of sqrt(p q), by quadrature."""
    overlap, _ = quad(lambda x: np.sqrt(norm.pdf(x, m, s) * norm.pdf(x, n, t)), -40, 40, points=[m, n])
    found = hellinger(*(np.array(v, dtype=float) for v in (m, s**2, n, t**2)))
    assert float(found) == pytest.approx(1 - overlap, abs=1e-7)


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
    )


def test_what_a_network_shows_is_compared_with_what_it_remembers_layer_by_layer() -> None:
    network, x = _network().eval(), 2 + torch.randn(12, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    with watching(network, 8) as watch, torch.no_grad():
        network(x[:5])
        watch.counted(5)
        network(x[5:])
    found = watch.mismatch()
    assert found is not None and [name for name, _ in found.layers] == ["1", "4"]
    with torch.no_grad():
        first = network[0](x[:8])
        second = network[3](network[2](network[1](first)))
    for (_, distance), seen in zip(found.layers, (first, second)):
        values = seen.double().transpose(0, 1).flatten(1).numpy()
        mean, variance = values.mean(axis=1), values.var(axis=1)
        overlap = np.sqrt(2 * np.sqrt(variance) / (variance + 1)) * np.exp(-(mean**2) / (4 * (variance + 1)))
        assert distance == pytest.approx((1 - overlap).mean(), abs=1e-5)
    assert found.value == pytest.approx(np.mean([d for _, d in found.layers]))
    assert found.sample.shape == (200,) and found.sample.std() > 0
    assert not network[1]._forward_pre_hooks, "the hooks are gone"


def test_statistics_estimated_on_the_images_are_those_of_the_images() -> None:
    network, x = _network().eval(), torch.randn(16, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    momentum = network[1].momentum
    estimate(network, iter(x.split(8)))
    expected = torch.stack([network[0](half).mean(dim=(0, 2, 3)) for half in x.split(8)]).mean(dim=0)
    assert torch.allclose(network[1].running_mean, expected, atol=1e-5)
    assert network[1].momentum == momentum and not network[1].training
    with watching(network, 16) as watch, torch.no_grad():
        network(x)
    found = watch.mismatch()
    assert found is not None and found.value < 0.01


def test_own_statistics_are_nearer_than_exchanged_ones_on_images_of_any_kind_and_strange_ones_are_not() -> (
    None
):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 48, 3), nn.BatchNorm2d(48)
    ).eval()
    x = torch.rand(64, 3, 9, 9)
    estimate(network, iter([x]))

    def own(images: torch.Tensor) -> float:
        with watching(network, 64) as watch, torch.no_grad():
            network(images)
        found = watch.mismatch()
        assert found is not None
        return found.own

    assert own(x) == own(0.5 * x + 0.4) == own(x.flip(1)) == 1
    with torch.no_grad():
        for norm_ in (network[1], network[4]):
            order = torch.randperm(norm_.num_features)
            norm_.running_mean.copy_(norm_.running_mean[order])
            norm_.running_var.copy_(norm_.running_var[order])
    assert own(x) == 0


def test_a_network_without_batch_norms_has_no_mismatch() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))
    with watching(network, 8) as watch, torch.no_grad():
        network(torch.randn(2, 3, 8, 8))
    assert watch.mismatch() is None
