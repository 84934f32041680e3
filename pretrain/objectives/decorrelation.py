"""Feature decorrelation: Barlow Twins and VICReg, and their gradients in closed form.

Source: Tao et al., "Exploring the Equivalence of Siamese Self-Supervised Learning via A Unified Gradient
Framework" (Eqs. 8-12, 29-39, Table 2 f-j); its public code. Losses look across the whole (all-ranks) batch:
the caller gathers embeddings.

The closed forms give N x dL/du1 of a batch of N, for `asymmetric.surrogate`. In them u1, v2 are the queries'
own online embedding and target, and `online`, `target` those of the whole batch.
"""

import torch
from torch import Tensor

from carryover.pretrain.objectives.precision import at_least_float32


@at_least_float32
def standardized(z: Tensor, eps: float = 1e-5) -> Tensor:
    """Return every feature at mean 0 and variance 1 over the batch (B, d): BN without parameters."""
    variance, mean = torch.var_mean(z, dim=0, correction=0)
    return (z - mean) / (variance + eps).sqrt()


def _sum_of_squares(a: Tensor, b: Tensor) -> Tensor:
    """Sum of the squares of a^T b for a, b: (B, d); a batch smaller than d is spared the d x d matrix."""
    rows, width = a.shape
    if rows < width:
        return ((a @ a.T) * (b @ b.T)).sum()
    return (a.T @ b).square().sum()


@at_least_float32
def barlow_twins_loss(z1: Tensor, z2: Tensor, lam: float) -> Tensor:
    """Sum of (W_ii - 1)^2 + lam x sum of the other W_ij^2 (Eqs. 8, 29), W the mean of z1 z2^T over the batch.

    z1, z2: (B, d), `standardized` (Barlow Twins) or l2-normalized (Table 2 h).
    """
    diagonal = (z1 * z2).mean(0)
    others = _sum_of_squares(z1, z2) / len(z1) ** 2 - diagonal.square().sum()
    return (diagonal - 1).square().sum() + lam * others


@at_least_float32
def simplified_barlow_twins_gradient(
    v2: Tensor, online: Tensor, target: Tensor, lam: float, a: float = 1.0
) -> Tensor:
    """2 (-a v2 + lam sum_batch (v2.target / N) online): (B, d) (Eq. 9 with A = a x I; Table 2 g and h).

    a = 1 in Table 2 and in the public code (h, lam 50); the text under Eq. 9 takes 0.1 for (g).
    """
    return 2 * (-a * v2 + lam * _related(v2, target, online))


def _related(query: Tensor, compared: Tensor, summed: Tensor) -> Tensor:
    """Sum over the batch of (query.compared / N) summed."""
    return (query @ compared.T) @ summed / len(compared)


@at_least_float32
def vicreg_loss(
    v1: Tensor, v2: Tensor, lam1: float, lam2: float, gamma: float = 1.0, eps: float = 1e-4
) -> Tensor:
    """Invariance + covariance + variance terms of one view (Eqs. 10, 33-35); symmetrize and halve over views.

    mean |v1 - v2|^2 + lam1/d sum_{i != j} W'_ij^2 + lam2/d sum max(0, gamma - std), with W' and std of v1,
    unbiased, and std = sqrt(var + eps) as in VICReg's code (Eq. 35 has no eps). v1, v2: (B, d), not
    normalized. VICReg's own weights (25, 25, 1) are 25/d times this loss symmetrized and halved, with
    lam1 = 2d/25 and lam2 = d.
    """
    width = v1.shape[1]
    invariance = (v1 - v2).square().sum(1).mean()
    centered, variances = v1 - v1.mean(0), v1.var(0)
    covariance = (_sum_of_squares(centered, centered) / (len(v1) - 1) ** 2 - variances.square().sum()) / width
    variance = (gamma - (variances + eps).sqrt()).relu().sum() / width
    return invariance + lam1 * covariance + lam2 * variance


@at_least_float32
def vicreg_gradient(
    u1: Tensor, v2: Tensor, online: Tensor, lam1: float, lam2: float, gamma: float = 1.0, eps: float = 1e-4
) -> Tensor:
    """2 (-v2 + lam sum_batch (u~.v~ / N) v~) + 2 lam (u1 / lam - B u~): (B, d) (Eqs. 11, 39; Table 2 i).

    v~ = v - mean of `online` (N, d), lam = 2 lam1 N^2 / (d (N - 1)^2), B as under Eq. 39. N x the gradient of
    `vicreg_loss` in v1.
    """
    N, width = online.shape
    lam = 2 * lam1 * N**2 / (width * (N - 1) ** 2)
    variances = online.var(0)
    deviation = (variances + eps).sqrt()
    active = (deviation < gamma).to(online.dtype) / deviation
    B = N / (width * lam * (N - 1)) * (2 * lam1 * variances + lam2 / 2 * active)
    mean = online.mean(0)
    u, v = u1 - mean, online - mean
    return 2 * (-v2 + lam * _related(u, v, v)) + 2 * lam * (u1 / lam - B * u)


@at_least_float32
def simplified_vicreg_gradient(u1: Tensor, v2: Tensor, online: Tensor, lam: float) -> Tensor:
    """2 (-v2 + lam sum_batch (u1.v / N) v): (B, d) (Eq. 12, Table 2 j).

    u1, v2: (B, d) and online: (N, d) are l2-normalized; nothing is centerd.
    """
    return 2 * (-v2 + lam * _related(u1, online, online))
