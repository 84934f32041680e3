"""InfoNCE, EqCo, SiMo, MoCo and SimCLR against the papers' equations and lightly."""

import math

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor
from torch.nn.functional import normalize

from carryover.configs.errors import UserError
from carryover.pretrain.objectives.contrastive import (
    batch_info_nce,
    enqueue,
    eqco_margin,
    info_nce,
    sample_negatives,
    sampled_info_nce,
    simo_loss,
)
from tests.pretrain.objectives.formulas import simclr_loss, simplified_simclr_loss

TAU = 0.2


def unit(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def gradient(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


def written_out(query: Tensor, positive: Tensor, negatives: Tensor, margin: float) -> Tensor:
    """EqCo Eq. 1 of one query, as printed."""
    s0 = torch.exp((query @ positive - margin) / TAU)
    return -torch.log(s0 / (s0 + sum(torch.exp(query @ k / TAU) for k in negatives)))


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_info_nce_is_eq_1_with_shared_and_with_separate_negatives(margin: float) -> None:
    q, k = unit(3, 6, seed=0).requires_grad_(), unit(3, 6, seed=1).requires_grad_()
    shared, separate = unit(5, 6, seed=2).requires_grad_(), unit(3, 5, 6, seed=3).requires_grad_()

    expected = torch.stack([written_out(q[i], k[i], shared, margin) for i in range(3)]).mean()
    loss = info_nce(q, k, shared, TAU, margin)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, q, k, shared), gradient(expected, q, k, shared))

    expected = torch.stack([written_out(q[i], k[i], separate[i], margin) for i in range(3)]).mean()
    loss = info_nce(q, k, separate, TAU, margin)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, q, k, separate), gradient(expected, q, k, separate))


def test_a_tiny_temperature_does_not_overflow() -> None:
    q, k, negatives = (unit(n, 6, seed=seed, dtype=torch.float32) for seed, n in enumerate((3, 3, 5)))
    q.requires_grad_()
    loss = info_nce(q, k, negatives, tau=1e-3)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient(loss, q)[0]).all()


def test_the_margin_is_eq_5_and_vanishes_where_alpha_is_k() -> None:
    assert eqco_margin(alpha=256, K=16, tau=TAU) == pytest.approx(TAU * math.log(16))
    assert eqco_margin(alpha=64, K=64, tau=TAU) == 0


def simo_batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    queries, keys = unit(4, 6, seed=0).requires_grad_(), unit(8, 6, seed=1)
    own = torch.tensor([4, 5, 6, 7])
    negatives = sample_negatives(4, 8, own, 3, torch.Generator().manual_seed(2))
    return queries, keys, own, negatives


def test_simo_is_eq_12_and_its_gradient_eq_13() -> None:
    queries, keys, own, negatives = simo_batch()
    alpha, K = 256.0, negatives.shape[1]
    losses, gradients = [], []
    for q, positive, others in zip(queries, own, negatives, strict=True):
        s0 = torch.exp(q @ keys[positive] / TAU)
        s = torch.stack([torch.exp(q @ keys[i] / TAU) for i in others])
        denominator = s0 + alpha / K * s.sum()
        losses.append(-torch.log(s0 / denominator))
        # Eq. 13; the paper prints s0 in the numerator of its sum, Eq. 14 continues with the right s_i.
        gradients.append(
            -(1 - s0 / denominator) * keys[positive] / TAU
            + alpha / (TAU * K) * (s.unsqueeze(1) / denominator * keys[others]).sum(0)
        )
    loss = simo_loss(queries, keys, own, negatives, TAU, alpha)
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    torch.testing.assert_close(gradient(loss, queries)[0], torch.stack(gradients).detach() / 4)


def test_simo_is_info_nce_under_the_eqco_margin_and_its_keys_are_constants() -> None:
    queries, keys, own, negatives = simo_batch()
    keys.requires_grad_()
    loss = simo_loss(queries, keys, own, negatives, TAU, alpha=64.0)
    margin = eqco_margin(64.0, 3, TAU)
    torch.testing.assert_close(loss, info_nce(queries, keys[own], keys[negatives], TAU, margin))
    loss.backward()
    assert keys.grad is None


def test_negatives_are_distinct_never_the_own_key_and_drawn_evenly() -> None:
    own = torch.arange(6) % 3
    counts = torch.zeros(6, 5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        drawn = sample_negatives(6, 5, own, 2, generator)
        assert (drawn[:, 0] != drawn[:, 1]).all()
        counts.scatter_add_(1, drawn, torch.ones(6, 2))
    assert (counts.gather(1, own.unsqueeze(1)) == 0).all()
    others = counts[counts > 0].view(6, 4)
    # 1000 expected; binomial standard deviation 22.
    assert (others - 1000).abs().max() < 110


def test_the_same_seed_draws_the_same_negatives() -> None:
    own = torch.arange(8)
    draws = [sample_negatives(8, 8, own, 4, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)


def test_all_other_keys_are_drawn_where_k_takes_them_all() -> None:
    drawn = sample_negatives(4, 4, torch.arange(4), 3, torch.Generator().manual_seed(0))
    assert drawn.sort(1).values.tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


@pytest.mark.parametrize("K", [0, 4])
def test_an_impossible_number_of_negatives_is_refused(K: int) -> None:
    with pytest.raises(UserError, match=rf"K = {K} .* 4 keys only 3 .* 1 <= K <= 3"):
        sample_negatives(4, 4, torch.arange(4), K)


def test_sampled_simclr_uses_only_the_drawn_keys_and_reaches_them_with_its_gradient() -> None:
    views = unit(8, 6, seed=0).requires_grad_()
    itself = torch.arange(8)
    positive = itself.roll(4)
    negatives = sample_negatives(
        8, 8, torch.stack([itself, positive], 1), 3, torch.Generator().manual_seed(1)
    )
    assert all(i not in row and j not in row for i, j, row in zip(itself, positive, negatives, strict=True))
    expected = torch.stack(
        [written_out(views[i], views[positive[i]], views[negatives[i]], 0.1) for i in range(8)]
    ).mean()
    loss = sampled_info_nce(views, views[positive], views, negatives, TAU, margin=0.1)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, views), gradient(expected, views))


def test_simclr_equals_lightly() -> None:
    u1 = unit(6, 8, seed=0, dtype=torch.float32).requires_grad_()
    u2 = unit(6, 8, seed=1, dtype=torch.float32).requires_grad_()
    expected, loss = NTXentLoss(temperature=TAU)(u1, u2), simclr_loss(u1, u2, TAU)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    # lightly normalizes again, which takes the radial part out of its gradient.
    for actual, reference, u in zip(
        gradient(loss, u1, u2), gradient(expected, u1, u2), (u1, u2), strict=True
    ):
        tangential = actual - (actual * u).sum(1, keepdim=True) * u
        torch.testing.assert_close(tangential, reference, rtol=1e-5, atol=1e-6)


def test_moco_equals_lightly_with_its_memory_bank() -> None:
    q = unit(4, 8, seed=0, dtype=torch.float32).requires_grad_()
    k, queue = unit(4, 8, seed=1, dtype=torch.float32), unit(16, 8, seed=2, dtype=torch.float32)
    reference = NTXentLoss(temperature=TAU, memory_bank_size=(16, 8))
    reference.memory_bank.bank = queue.clone()
    torch.testing.assert_close(info_nce(q, k, queue, TAU), reference(q, k), rtol=1e-5, atol=1e-6)


def similarities_softmax(queries: Tensor, keys: Tensor, excluded: Tensor) -> Tensor:
    logits = queries @ keys.T / TAU
    return logits.masked_fill(excluded, -torch.inf).softmax(1)


def test_simclrs_gradient_is_eq_20_and_the_simplified_ones_its_first_line() -> None:
    u1, u2 = unit(3, 6, seed=0).requires_grad_(), unit(3, 6, seed=1).requires_grad_()
    views = torch.cat([u1, u2]).detach()
    N, itself = 6, torch.eye(6, dtype=torch.bool)
    other = views.roll(3, 0)
    s = similarities_softmax(views, views, itself)
    first = (-other + s @ views) / (TAU * N)
    second = (-other + s.T @ views) / (TAU * N)

    full = torch.cat(gradient(simclr_loss(u1, u2, TAU), u1, u2))
    torch.testing.assert_close(full, first + second)
    simplified = simplified_simclr_loss(u1, u2, u1, u2, TAU)
    torch.testing.assert_close(simplified, simclr_loss(u1, u2, TAU))
    torch.testing.assert_close(torch.cat(gradient(simplified, u1, u2)), first)


def test_momentum_simclr_with_no_key_left_out_is_the_public_codes_gradient() -> None:
    u1, u2 = unit(3, 6, seed=0).requires_grad_(), unit(3, 6, seed=1).requires_grad_()
    z1m, z2m = unit(3, 6, seed=2), unit(3, 6, seed=3)
    keys = torch.cat([z1m, z2m])
    surrogate = torch.zeros((), dtype=torch.float64)
    for u, target in ((u1, z2m), (u2, z1m)):
        weight = (u @ keys.T / TAU).softmax(-1)
        surrogate = surrogate + 0.5 * (u * ((-target + weight @ keys) / TAU).detach()).sum(-1).mean()
    positive = torch.arange(6).roll(3)
    loss = batch_info_nce(torch.cat([u1, u2]), keys[positive], keys, positive.unsqueeze(1), TAU)
    torch.testing.assert_close(gradient(loss, u1, u2), gradient(surrogate, u1, u2))


def test_mocos_gradient_is_eq_2_where_the_queue_already_holds_the_positive() -> None:
    # Eq. 2 sums its softmax over a bank that contains the positive key.
    u = unit(3, 6, seed=0).requires_grad_()
    bank = unit(7, 6, seed=1)
    losses = [info_nce(u[i : i + 1], bank[i : i + 1], bank[torch.arange(7) != i], TAU) for i in range(3)]
    s = (u.detach() @ bank.T / TAU).softmax(1)
    (actual,) = gradient(torch.stack(losses).mean(), u)
    torch.testing.assert_close(actual, (-bank[:3] + s @ bank) / (TAU * 3))


def test_the_queue_drops_its_oldest_keys() -> None:
    queue = torch.arange(6.0).unsqueeze(1)
    queue = enqueue(queue, torch.tensor([[10.0], [11.0]]))
    assert queue.flatten().tolist() == [2, 3, 4, 5, 10, 11]
    assert enqueue(queue, torch.arange(20.0, 26.0).unsqueeze(1)).flatten().tolist() == [
        20,
        21,
        22,
        23,
        24,
        25,
    ]


def test_a_queue_smaller_than_the_batch_holds_random_keys_of_the_batch() -> None:
    keys = torch.arange(100.0).unsqueeze(1)
    drawn = {
        seed: enqueue(torch.zeros(4, 1), keys, torch.Generator().manual_seed(seed)).flatten()
        for seed in range(20)
    }
    assert all(chosen.unique().numel() == 4 for chosen in drawn.values())
    assert torch.cat(list(drawn.values())).unique().numel() > 40
    assert torch.equal(drawn[3], enqueue(torch.zeros(4, 1), keys, torch.Generator().manual_seed(3)).flatten())
