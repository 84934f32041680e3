"""Asymmetric networks: BYOL, SimSiam and DirectPred, and DirectPred's gradient in closed form.

Source: Tao et al., "Exploring the Equivalence of Siamese Self-Supervised Learning via A Unified Gradient
Framework" (Eqs. 5-7, 22-28); its public code. BYOL and SimSiam are `negative_cosine` with a learnt predictor,
on a momentum or a stop-gradient target. The correlation matrix F is UniGrad's (`unigrad.update_correlation`).

The closed forms give N x dL/du of a batch of N, for `surrogate`. They are the steps of simplification that
lead from DirectPred to UniGrad.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from carryover.pretrain.objectives.precision import at_least_float32


@at_least_float32
def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over the batch of -cos(prediction, target) (Eq. 5), the target a constant; both (B, d).

    SimSiam's loss for one direction. BYOL's paper has 2 - 2 cos: twice this gradient.
    """
    return -(normalize(prediction, dim=1) * normalize(target.detach(), dim=1)).sum(1).mean()


@at_least_float32
def predictor_matrix(F: Tensor, eps: float) -> Tensor:
    """DirectPred's predictor W_h = U (sqrt(L) + eps l_max I) U^T of F = U L U^T: (d, d) (Eqs. 6, 23).

    F: (d, d), symmetric and positive semi-definite. The authors' public code (eps 0.3) applies it to
    `to_unit_spectrum(F)`, where l_max = 1; W_h's own scale has no effect on a cosine, but there eps weighs
    1 / sqrt(l_max) times as much.
    """
    root, boost, identity = _spectrum(F, eps)
    return root + boost * identity


def _spectrum(F: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the square root of F, eps x F's largest eigenvalue, and the identity."""
    values, vectors = torch.linalg.eigh(F.detach())
    # Rounding leaves the smallest ones just below zero.
    values = values.clamp(min=0)
    root = (vectors * values.sqrt()) @ vectors.T
    return root, eps * values[-1], torch.eye(len(F), dtype=F.dtype, device=F.device)


@at_least_float32
def to_unit_spectrum(F: Tensor) -> Tensor:
    """F divided by its largest eigenvalue."""
    return F / torch.linalg.eigvalsh(F)[-1]


@at_least_float32
def directpred_loss(u1: Tensor, v2: Tensor, W_h: Tensor) -> Tensor:
    """Mean over the batch of -cos(W_h u1, v2) (Eq. 22); u1, v2: (B, d), W_h: (d, d) a constant."""
    return negative_cosine(u1 @ W_h.detach().T, v2)


@at_least_float32
def directpred_gradient(u1: Tensor, v2: Tensor, F: Tensor, eps: float) -> Tensor:
    """N x the gradient of `directpred_loss` in u1, in terms of F (Eq. 26): (N, d); v2 l2-normalized."""
    root, boost, identity = _spectrum(F, eps)
    negative = F + 2 * boost * root + boost**2 * identity
    return _gradient(u1, v2, root + boost * identity, negative, negative)


@at_least_float32
def directpred_gradient_without_root(u1: Tensor, v2: Tensor, F: Tensor, eps: float) -> Tensor:
    """`directpred_gradient` without the term in the square root of F (Eq. 27, Table 2 d): (N, d)."""
    root, boost, identity = _spectrum(F, eps)
    negative = F + boost**2 * identity
    return _gradient(u1, v2, root + boost * identity, negative, negative)


@at_least_float32
def directpred_gradient_simplified(u1: Tensor, v2: Tensor, F: Tensor, eps: float) -> Tensor:
    """Eq. 27 without what a normalization of u1 takes out anyway (Eqs. 7, 28): (N, d); u1 l2-normalized.

    The balance factor keeps Eq. 27's denominator, as the text under Eq. 7 has it.
    """
    root, boost, identity = _spectrum(F, eps)
    return _gradient(u1, v2, root + boost * identity, F, F + boost**2 * identity)


def _gradient(u1: Tensor, v2: Tensor, W_h: Tensor, negative: Tensor, balanced: Tensor) -> Tensor:
    """(-W_h v2 + balance x negative u1) / |W_h u1|, balance = u1^T W_h v2 / u1^T balanced u1: (N, d)."""
    predicted = u1 @ W_h
    balance = (predicted * v2).sum(1, keepdim=True) / ((u1 @ balanced) * u1).sum(1, keepdim=True)
    return (-v2 @ W_h + balance * (u1 @ negative)) / predicted.norm(dim=1, keepdim=True)


@at_least_float32
def surrogate(u: Tensor, gradient: Tensor) -> Tensor:
    """Return a scalar whose gradient in u (N, d) is `gradient` / N: how a closed form is trained with.

    Its value is not a loss (UniGrad's public code trains this way).
    """
    return (u * gradient.detach()).sum(1).mean()
