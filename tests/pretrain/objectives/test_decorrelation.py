"""Barlow Twins and VICReg against lightly, autograd of the printed losses and the public code's gradient."""

import pytest
import torch
from lightly.loss import BarlowTwinsLoss, VICRegLoss
from torch import Tensor
from torch.nn.functional import normalize

from carryover.pretrain.objectives.decorrelation import (
    barlow_twins_loss,
    simplified_barlow_twins_gradient,
    simplified_vicreg_gradient,
    standardized,
    vicreg_gradient,
    vicreg_loss,
)
from tests.pretrain.objectives.formulas import barlow_twins_gradient


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def gradient(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


def test_standardizing_is_batch_normalization() -> None:
    z = 3 * normal(8, 5, seed=0) + 2
    expected = torch.nn.functional.batch_norm(z, None, None, training=True)
    torch.testing.assert_close(standardized(z), expected)


# Fewer features than images, and more: sums of squares are taken another way there.
WIDTHS = pytest.mark.parametrize("width", [4, 11])


@WIDTHS
def test_barlow_twins_equals_lightly(width: int) -> None:
    z1 = normal(8, width, seed=0, dtype=torch.float32).requires_grad_()
    z2 = normal(8, width, seed=1, dtype=torch.float32).requires_grad_()
    loss = barlow_twins_loss(standardized(z1), standardized(z2), lam=5e-3)
    expected = BarlowTwinsLoss(lambda_param=5e-3)(z1, z2)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient(loss, z1, z2), gradient(expected, z1, z2), rtol=1e-5, atol=1e-6)


@WIDTHS
def test_barlow_twins_is_eq_29_written_out(width: int) -> None:
    z1, z2 = normal(6, width, seed=0), normal(6, width, seed=1)
    expected = 0.0
    for i in range(width):
        for j in range(width):
            W_ij = sum(float(a[i] * b[j]) for a, b in zip(z1, z2)) / 6
            expected += (W_ij - 1) ** 2 if i == j else 0.3 * W_ij**2
    actual = barlow_twins_loss(z1, z2, lam=0.3)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))


@WIDTHS
def test_eq_32_is_autograds_gradient_in_the_normalized_embeddings(width: int) -> None:
    u, v = standardized(normal(6, width, seed=0)).requires_grad_(), standardized(normal(6, width, seed=1))
    (expected,) = gradient(barlow_twins_loss(u, v, lam=0.3), u)
    torch.testing.assert_close(barlow_twins_gradient(u.detach(), v, u.detach(), v, 0.3) / 6, expected)


def test_replacing_a_changes_the_positive_gradient_alone() -> None:
    u, v = standardized(normal(6, 4, seed=0)), standardized(normal(6, 4, seed=1))
    A = torch.diag(1 - (1 - 0.3) * (u * v).mean(0))
    difference = simplified_barlow_twins_gradient(v, u, v, 0.3, a=0.1) - barlow_twins_gradient(
        u, v, u, v, 0.3
    )
    torch.testing.assert_close(difference, 2 * (v @ A - 0.1 * v))


def test_the_l2_variant_is_the_public_codes_gradient_for_one_ranks_part_of_the_batch() -> None:
    z1, z2m = normalize(normal(6, 4, seed=0), dim=1), normalize(normal(6, 4, seed=1), dim=1)
    own = slice(2, 4)
    neg = (z2m[own] @ z2m.T) @ z1 / 6
    expected = 2 * (-z2m[own] + 50.0 * neg)
    torch.testing.assert_close(simplified_barlow_twins_gradient(z2m[own], z1, z2m, 50.0), expected)


@WIDTHS
def test_vicreg_equals_lightly_at_vicregs_weights(width: int) -> None:
    z1 = normal(8, width, seed=0, dtype=torch.float32).requires_grad_()
    z2 = normal(8, width, seed=1, dtype=torch.float32).requires_grad_()
    # lightly sums both views' regularisers, and averages the squared distance over features as well.
    weights = {"lam1": 2 * width / 25, "lam2": float(width)}
    loss = 25 / width * (vicreg_loss(z1, z2, **weights) + vicreg_loss(z2, z1, **weights)) / 2
    expected = VICRegLoss(lambda_param=25.0, mu_param=25.0, nu_param=1.0)(z1, z2)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient(loss, z1, z2), gradient(expected, z1, z2), rtol=1e-5, atol=1e-5)


@WIDTHS
def test_vicreg_is_eqs_33_to_35_written_out(width: int) -> None:
    v1, v2 = 0.8 * normal(6, width, seed=0), normal(6, width, seed=1)
    lam1, lam2, gamma = 0.7, 0.9, 1.0
    mean = v1.mean(0)
    W = sum(torch.outer(v - mean, v - mean) for v in v1) / 5
    expected = sum((a - b) @ (a - b) for a, b in zip(v1, v2)) / 6
    for i in range(width):
        expected = expected + lam1 / width * sum(W[i, j] ** 2 for j in range(width) if j != i)
        expected = expected + lam2 / width * max(torch.zeros_like(W[i, i]), gamma - W[i, i].sqrt())
    torch.testing.assert_close(vicreg_loss(v1, v2, lam1, lam2, gamma, eps=0.0), expected)


def test_eq_39_is_autograds_gradient() -> None:
    # Some features' deviations lie above gamma and some below.
    scale = torch.tensor([0.5, 0.9, 1.2, 2.0], dtype=torch.float64)
    u, v = (scale * normal(6, 4, seed=0)).requires_grad_(), normal(6, 4, seed=1)
    assert 0 < (u.std(0) < 1).sum() < 4
    (expected,) = gradient(vicreg_loss(u, v, 0.7, 0.9), u)
    online = u.detach()
    torch.testing.assert_close(vicreg_gradient(online, v, online, 0.7, 0.9) / 6, expected)
    torch.testing.assert_close(vicreg_gradient(online[2:4], v[2:4], online, 0.7, 0.9) / 6, expected[2:4])


def test_the_simplified_vicreg_gradient_is_unigrads_with_the_batch_for_history() -> None:
    u, v = normalize(normal(6, 4, seed=0), dim=1), normalize(normal(6, 4, seed=1), dim=1)
    F = u.T @ u / 6
    torch.testing.assert_close(simplified_vicreg_gradient(u, v, u, 25.0), 2 * (-v + 25.0 * u @ F))
