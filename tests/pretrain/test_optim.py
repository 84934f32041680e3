"""SGD and LARS, their groups and exclusions, against step formulas written out in float64."""

import pytest
import torch
from torch import nn

from carryover.pretrain.config import LARSConfig, SGDConfig
from carryover.pretrain.optim import build_optimizer, set_lr


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).double()


def _gradients(network: nn.Module, steps: int) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    shapes = [p.shape for p in network.parameters()]
    return [[torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes] for _ in range(steps)]


def _written_out(
    network: nn.Module, gradients: list[list[torch.Tensor]], config: LARSConfig, lr: float, lr_1d: float
):
    """LARS as You et al. write it, one parameter at a time, in plain Python."""
    result = []
    for index, parameter in enumerate(network.parameters()):
        w, v = parameter.detach().clone(), torch.zeros_like(parameter)
        for gradient in gradients:
            g = gradient[index]
            if w.dim() > 1:
                g = g + config.weight_decay * w
                g = g * config.trust_coefficient * w.pow(2).sum().sqrt() / g.pow(2).sum().sqrt()
            v = config.momentum * v + g
            w = w - (lr if w.dim() > 1 else lr_1d) * v
        result.append(w)
    return result


def test_lars_takes_the_steps_of_its_paper_and_leaves_biases_and_norms_out() -> None:
    config = LARSConfig(name="lars", base_lr=0.3, base_lr_norm_and_bias=0.05, weight_decay=1e-2)
    network = _network()
    gradients = _gradients(network, 4)
    expected = _written_out(network, gradients, config, lr=4.8, lr_1d=0.8)
    optimizer = build_optimizer(config, network, peak_lr=4.8)
    for gradient in gradients:
        for parameter, g in zip(network.parameters(), gradient, strict=True):
            parameter.grad = g.clone()
        optimizer.step()
    for parameter, wanted in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-12, atol=1e-12)


def test_lars_moves_a_weight_of_zeros_at_the_plain_rate() -> None:
    weight = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(weight.weight)
    optimizer = build_optimizer(LARSConfig(name="lars", base_lr=1.0), weight, peak_lr=0.5)
    weight.weight.grad = torch.ones_like(weight.weight)
    optimizer.step()
    torch.testing.assert_close(weight.weight.detach(), torch.full((2, 3), -0.5))


def test_sgd_decays_biases_and_norms_only_when_the_recipe_says_so() -> None:
    for decayed in (True, False):
        network = _network()
        before = [p.detach().clone() for p in network.parameters()]
        config = SGDConfig(base_lr=1.0, weight_decay=0.1, decay_norm_and_bias=decayed)
        optimizer = build_optimizer(config, network, peak_lr=1.0)
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for parameter, old in zip(network.parameters(), before, strict=True):
            shrunk = 0.9 if decayed or old.dim() > 1 else 1.0
            torch.testing.assert_close(parameter.detach(), shrunk * old)


def test_sgd_with_momentum_agrees_with_torch_on_one_group() -> None:
    ours, theirs = _network(), _network()
    optimizer = build_optimizer(SGDConfig(base_lr=0.1, weight_decay=1e-3), ours, peak_lr=0.1)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for gradient in _gradients(ours, 3):
        for a, b, g in zip(ours.parameters(), theirs.parameters(), gradient, strict=True):
            a.grad, b.grad = g.clone(), g.clone()
        optimizer.step()
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_schedule_scales_every_groups_own_peak_rate() -> None:
    config = LARSConfig(name="lars", base_lr=0.3, base_lr_norm_and_bias=0.05)
    optimizer = build_optimizer(config, _network(), peak_lr=4.8)
    set_lr(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2.4, 0.4])


def test_frozen_parameters_are_not_optimized() -> None:
    network = _network()
    network[0].requires_grad_(False)
    optimizer = build_optimizer(SGDConfig(base_lr=0.1), network, peak_lr=0.1)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in network.parameters() if p.requires_grad}
