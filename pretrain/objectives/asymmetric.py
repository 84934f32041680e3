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

from pretrain.objectives.precision import at_least_float32


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
    values, vectors = torch.linalg.eigh(F)
    values = values.clamp(min=0)
    return (vectors * (values.sqrt() + eps * values[-1])) @ vectors.T


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
    """N x the gradient of `directpred_loss` in u1, in terms of F (Eq. 26): (N, d); v2 l2-normalised."""
    values, vectors = torch.linalg.eigh(F)
    values = values.clamp(min=0)
    highest = values[-1]
    root = (vectors * values.sqrt()) @ vectors.T
    identity = torch.eye(len(F), dtype=F.dtype, device=F.device)
    W_h = root + eps * highest * identity
    return _gradient(u1, v2, W_h, F + 2 * eps * highest * root + eps**2 * highest**2 * identity)


@at_least_float32
def directpred_gradient_without_root(u1: Tensor, v2: Tensor, F: Tensor, eps: float) -> Tensor:
    """`directpred_gradient` without the term in the square root of F (Eq. 27, Table 2 d): (N, d)."""
    highest = torch.linalg.eigvalsh(F)[-1]
    identity = torch.eye(len(F), dtype=F.dtype, device=F.device)
    return _gradient(u1, v2, predictor_matrix(F, eps), F + eps**2 * highest**2 * identity)


@at_least_float32
def directpred_gradient_simplified(u1: Tensor, v2: Tensor, F: Tensor, eps: float) -> Tensor:
    """Eq. 27 without what a normalisation of u1 takes out anyway (Eqs. 7, 28): (N, d); u1 l2-normalised.

    The balance factor keeps Eq. 27's denominator, as the paper's text under Eq. 7 has it.
    """
    highest = torch.linalg.eigvalsh(F)[-1]
    W_h = predictor_matrix(F, eps)
    boosted = u1 @ F + eps**2 * highest**2 * u1
    balance = ((u1 @ W_h) * v2).sum(1, keepdim=True) / (boosted * u1).sum(1, keepdim=True)
    return (-v2 @ W_h + balance * (u1 @ F)) / (u1 @ W_h).norm(dim=1, keepdim=True)


def _gradient(u1: Tensor, v2: Tensor, W_h: Tensor, negative: Tensor) -> Tensor:
    """(-W_h v2 + balance x negative u1) / |W_h u1|, the balance such that it is orthogonal to u1."""
    pushed = u1 @ negative
    balance = ((u1 @ W_h) * v2).sum(1, keepdim=True) / (pushed * u1).sum(1, keepdim=True)
    return (-v2 @ W_h + balance * pushed) / (u1 @ W_h).norm(dim=1, keepdim=True)


@at_least_float32
def surrogate(u: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient in u (N, d) is `gradient` / N: how a closed form is trained with.

    Its value is not a loss (UniGrad's public code trains this way).
    """
    return (u * gradient.detach()).sum(1).mean()
