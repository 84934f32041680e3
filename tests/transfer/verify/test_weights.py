"""New weights are told from trained ones by their singular values, whatever they are drawn from."""

import math

import pytest
import torch
from torch import nn

from carryover.core.backbones.build import build_backbone
from carryover.core.formats.backbone import BackboneConfig
from carryover.transfer.verify.weights import EDGE, constant_vectors, edge_ratio, edge_ratios, untouched_norms


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small"])
def test_no_weight_of_a_new_network_is_beyond_the_edge(arch: str, seed: int) -> None:
    if arch == "resnet50" and seed:
        pytest.skip("one seed of the large one")
    torch.manual_seed(seed)
    ratios = edge_ratios(build_backbone(BackboneConfig(arch=arch)).state_dict())
    assert len(ratios) >= 10
    assert max(ratios.values()) < EDGE


def test_scales_and_shifts_part_with_the_first_steps_of_a_training() -> None:
    torch.manual_seed(0)
    network = build_backbone(BackboneConfig(arch="resnet18"))
    constant, vectors = constant_vectors(network.state_dict())
    assert constant == vectors == 40
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    network.train()(torch.randn(4, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    state = network.state_dict()
    assert constant_vectors(state)[0] == 0 and max(edge_ratios(state).values()) < EDGE


@pytest.mark.parametrize(
    "draw",
    [nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_, nn.init.xavier_uniform_, nn.init.orthogonal_],
)
def test_whatever_the_draws_are_of(draw) -> None:
    torch.manual_seed(0)
    ratio = edge_ratio(draw(torch.empty(256, 384)))
    assert ratio is not None and ratio < EDGE


def test_one_learnt_direction_lies_beyond_the_edge() -> None:
    torch.manual_seed(0)
    m, n = 128, 288
    noise = torch.randn(m, n)
    spike = torch.outer(
        nn.functional.normalize(torch.randn(m), dim=0), nn.functional.normalize(torch.randn(n), dim=0)
    )
    # Beyond (m n)^(1/4) a direction comes out of the noise (Baik, Ben Arous and Peche 2005).
    found = edge_ratio(noise + 3 * (m * n) ** 0.25 * spike)
    assert found is not None and found > EDGE


def test_the_ratio_is_numpys_largest_singular_value_over_the_edge() -> None:
    import numpy as np

    weight = torch.randn(64, 48, 3, 3, generator=torch.Generator().manual_seed(0))
    matrix = weight.flatten(1).double().numpy()
    matrix = matrix - matrix.mean()
    edge = matrix.std(ddof=1) * (math.sqrt(64) + math.sqrt(432))
    assert edge_ratio(weight) == pytest.approx(np.linalg.svd(matrix, compute_uv=False)[0] / edge)


def test_small_and_constant_weights_say_nothing() -> None:
    assert edge_ratio(torch.randn(16, 400)) is None
    assert edge_ratio(torch.ones(64, 64)) is None


def test_norms_with_a_new_networks_statistics_are_listed() -> None:
    state = build_backbone(BackboneConfig(arch="resnet18")).state_dict()
    assert len(untouched_norms(state)[0]) == untouched_norms(state)[1] == 20
    state["bn1.running_mean"] += 1
    assert untouched_norms(state)[0][:1] == ["layer1.0.bn1"]
    assert len(untouched_norms(state)[0]) == 19
