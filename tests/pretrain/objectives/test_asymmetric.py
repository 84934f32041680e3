"""BYOL, SimSiam and DirectPred against lightly, autograd and the public code's gradient."""

import torch
from lightly.loss import NegativeCosineSimilarity
from torch import Tensor
from torch.nn.functional import normalize

from carryover.pretrain.objectives.asymmetric import (
    directpred_gradient,
    directpred_gradient_simplified,
    directpred_gradient_without_root,
    directpred_loss,
    negative_cosine,
    predictor_matrix,
    surrogate,
    to_unit_spectrum,
)
from carryover.pretrain.objectives.unigrad import batch_correlation

EPS = 0.3


def unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss, x)[0]


U, V, F = unit(4, 5, seed=0), unit(4, 5, seed=1), batch_correlation(unit(30, 5, seed=2))


def test_negative_cosine_equals_lightly_and_is_half_of_byols_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    p, z = torch.randn(6, 8, generator=generator).requires_grad_(), torch.randn(6, 8, generator=generator)
    loss, expected = negative_cosine(p, z), NegativeCosineSimilarity()(p, z)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient(loss, p), gradient(expected, p), rtol=1e-5, atol=1e-6)
    byol = (normalize(p, dim=1) - normalize(z, dim=1)).square().sum(1).mean()
    torch.testing.assert_close(2 + 2 * negative_cosine(p, z), byol)
    torch.testing.assert_close(2 * gradient(negative_cosine(p, z), p), gradient(byol, p))


def test_the_target_is_a_constant() -> None:
    p, z = U.clone().requires_grad_(), V.clone().requires_grad_()
    negative_cosine(p, z).backward()
    assert z.grad is None


def test_the_predictor_has_fs_eigenvectors_and_boosted_roots_of_its_eigenvalues() -> None:
    vectors = torch.linalg.qr(unit(5, 5, seed=3)).Q
    values = torch.tensor([0.0, 0.01, 0.04, 0.09, 0.25], dtype=torch.float64)
    W_h = predictor_matrix(vectors @ torch.diag(values) @ vectors.T, EPS)
    expected = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.5], dtype=torch.float64) + EPS * 0.25
    torch.testing.assert_close(W_h @ vectors, vectors * expected, rtol=1e-6, atol=1e-8)


def test_eq_26_is_autograds_gradient_of_eq_22() -> None:
    u = U.clone().requires_grad_()
    expected = gradient(directpred_loss(u, V, predictor_matrix(F, EPS)), u)
    torch.testing.assert_close(directpred_gradient(U, V, F, EPS) / len(U), expected)


def as_printed(u: Tensor, v: Tensor, negative: Tensor, pushed: Tensor) -> Tensor:
    """Eqs. 27 and 28 for one sample: the balance factor's denominator, and the negative term, are given."""
    W_h = predictor_matrix(F, EPS)
    balance = (u @ W_h.T @ v) / (u @ negative @ u)
    return (-W_h.T @ v + balance * pushed) / (W_h @ u).norm()


def test_eqs_27_and_28_are_as_printed() -> None:
    boosted = F + EPS**2 * torch.linalg.eigvalsh(F).max() ** 2 * torch.eye(5, dtype=torch.float64)
    without_root = torch.stack([as_printed(u, v, boosted, boosted @ u) for u, v in zip(U, V)])
    torch.testing.assert_close(directpred_gradient_without_root(U, V, F, EPS), without_root)
    simplified = torch.stack([as_printed(u, v, boosted, F @ u) for u, v in zip(U, V)])
    torch.testing.assert_close(directpred_gradient_simplified(U, V, F, EPS), simplified)


def test_eqs_27_and_28_agree_once_the_embedding_is_normalized() -> None:
    difference = directpred_gradient_without_root(U, V, F, EPS) - directpred_gradient_simplified(U, V, F, EPS)
    assert difference.norm() > 1e-3
    tangential = difference - (difference * U).sum(1, keepdim=True) * U
    torch.testing.assert_close(tangential, torch.zeros_like(tangential))


def test_on_a_unit_spectrum_eq_27_is_the_public_codes_gradient() -> None:
    left, values, right = torch.svd(F)
    highest = values.max()
    W = left @ torch.diag((values / highest).sqrt() + EPS) @ right.T
    negative = F / highest + EPS**2 * torch.eye(5, dtype=torch.float64)
    balance = torch.einsum("nc,nc->n", U @ W, V) / torch.einsum("nc,nc->n", U @ negative, U)
    expected = (-V @ W + balance.unsqueeze(1) * (U @ negative)) / (U @ W).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(directpred_gradient_without_root(U, V, to_unit_spectrum(F), EPS), expected)


def test_the_surrogates_gradient_is_the_given_one_over_n() -> None:
    u = U.clone().requires_grad_()
    torch.testing.assert_close(gradient(surrogate(u, V), u), V / len(U))
