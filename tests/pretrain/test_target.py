"""Target branches: what each kind gives, and how the momentum encoder follows."""

import math

import torch
from torch import nn

from carryover.pretrain.method_config import MomentumTarget, StopGradientTarget, WeightSharingTarget
from carryover.pretrain.target import build_target


def _online() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))


def test_a_momentum_encoder_starts_as_the_online_network_and_takes_no_gradient() -> None:
    online = _online()
    target = build_target(MomentumTarget(), online)
    views = [torch.randn(8, 6, requires_grad=True)]
    (given,) = target(views, [online(views[0])])
    torch.testing.assert_close(given, online(views[0]).detach())
    assert not given.requires_grad
    assert not any(p.requires_grad for p in target.parameters())


def test_a_momentum_encoder_is_the_moving_average_of_the_online_weights() -> None:
    online = _online()
    target = build_target(MomentumTarget(start=0.9, end=0.9), online)
    average = [p.detach().double() for p in online.parameters()]
    for step in range(3):
        with torch.no_grad():
            for p in online.parameters():
                p.add_(torch.randn_like(p))
        average = [
            0.9 * a + 0.1 * p.detach().double() for a, p in zip(average, online.parameters(), strict=True)
        ]
        target.advance(online, step, 3)
    for followed, wanted in zip(target.parameters(), average, strict=True):
        torch.testing.assert_close(followed.double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_momentum_rises_on_byols_cosine() -> None:
    online = _online()
    target = build_target(MomentumTarget(start=0.996, end=1.0), online)
    moved = []
    for step in (0, 50, 99, 100):
        before = next(target.parameters()).clone()
        with torch.no_grad():
            next(online.parameters()).copy_(before + 1)
        target.advance(online, step, 100)
        moved.append((next(target.parameters()) - before).mean().item())
    wanted = [0.004 * (math.cos(math.pi * step / 100) + 1) / 2 for step in (0, 50, 99, 100)]
    torch.testing.assert_close(torch.tensor(moved), torch.tensor(wanted), rtol=1e-3, atol=2e-7)


def test_momentum_encoders_keep_batch_statistics_of_their_own() -> None:
    online = _online()
    target = build_target(MomentumTarget(), online)
    target([torch.randn(8, 6) + 3], [])
    assert online[1].num_batches_tracked == 0
    assert target.network[1].num_batches_tracked == 1  # type: ignore[union-attr, index]


def test_a_weight_sharing_target_is_the_online_embedding_with_its_gradient() -> None:
    online = _online()
    z = online(torch.randn(8, 6))
    (given,) = build_target(WeightSharingTarget(), online)([], [z])
    assert given is z


def test_a_stop_gradient_target_is_the_online_embedding_without_a_gradient() -> None:
    online = _online()
    z = online(torch.randn(8, 6))
    (given,) = build_target(StopGradientTarget(), online)([], [z])
    torch.testing.assert_close(given, z.detach())
    assert not given.requires_grad
