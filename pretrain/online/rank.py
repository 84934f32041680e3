"""Effective ranks of embeddings, which predict linear accuracy without labels: RankMe and LiDAR."""

import torch
from torch import Tensor

EPSILON = 1e-7
DELTA = 1e-4


@torch.no_grad()
def rankme(embeddings: Tensor, epsilon: float = EPSILON) -> float:
    """Return RankMe of embeddings (N, K): exp(-sum_k p_k log p_k), p_k = s_k / |s|_1 + epsilon.

    s are the min(N, K) singular values (Garrido et al. 2023, Eq. 1). Between 1 and min(N, K), and of
    few embeddings lower than of many: compare equal N. NaN for embeddings that are all zero. In float64.
    """
    z = _in_doubles(embeddings)
    # The roots of the smaller Gram matrix's eigenvalues: several times as fast as singular values.
    gram = z @ z.T if z.shape[0] < z.shape[1] else z.T @ z
    return _effective_rank(torch.linalg.eigvalsh(gram).clamp(min=0).sqrt(), epsilon)


@torch.no_grad()
def lidar(embeddings: Tensor, delta: float = DELTA, epsilon: float = EPSILON) -> float:
    """Return LiDAR of embeddings (n, q, p) of q random views of each of n images (Thilak et al. 2023).

    With mu_i the mean of an image's views and mu that of all,

        S_b = 1/n sum_i (mu_i - mu) (mu_i - mu)^T,
        S_w = 1/(n q) sum_ij (e_ij - mu_i) (e_ij - mu_i)^T + delta I,

    LiDAR is exp(-sum_k p_k log p_k) of p_k = l_k / |l|_1 + epsilon over the eigenvalues l of
    S_w^(-1/2) S_b S_w^(-1/2). The p - n smallest, which are zero where n < p, are counted as well: each adds
    -epsilon log epsilon. The paper takes n = 1000 and q = 50; the number grows with n: compare equal n and q.
    NaN where all images have one mean. In float64, without a (p, p) matrix where n q < p.

    Raises ValueError for embeddings that are not (n, q, p) with n and q of at least 2.
    """
    if embeddings.dim() != 3 or min(embeddings.shape[:2]) < 2:
        raise ValueError(f"LiDAR: embeddings {tuple(embeddings.shape)}, expected (images, views, width)")
    e = _in_doubles(embeddings)
    n, q, p = e.shape
    means = e.mean(dim=1)
    B = (means - means.mean(dim=0)) / n**0.5
    W = (e - means[:, None]).reshape(n * q, p) / (n * q) ** 0.5
    # S_b = B^T B has at most n eigenvalues that are not zero; those of B S_w^-1 B^T are the same.
    if n * q < p:
        # Woodbury: (W^T W + delta I)^-1 = (I - W^T (W W^T + delta I)^-1 W) / delta.
        inner = W @ W.T + delta * torch.eye(n * q, dtype=e.dtype, device=e.device)
        across = B @ W.T
        gram = (B @ B.T - across @ torch.linalg.solve(inner, across.T)) / delta
    else:
        within = W.T @ W + delta * torch.eye(p, dtype=e.dtype, device=e.device)
        gram = B @ torch.linalg.solve(within, B.T)
    values = torch.linalg.eigvalsh((gram + gram.T) / 2).flip(0).clamp(min=0)[:p]
    if len(values) < p:
        values = torch.cat([values, values.new_zeros(p - len(values))])
    return _effective_rank(values, epsilon)


def _in_doubles(x: Tensor) -> Tensor:
    """Return values in float64: where they are, or on the CPU where their device (mps) has none."""
    x = x.detach()
    return x.double() if x.device.type in ("cpu", "cuda") else x.cpu().double()


def _effective_rank(values: Tensor, epsilon: float) -> float:
    """Return the exponential of the entropy of non-negative values that are normalized to a sum of one."""
    total = values.sum()
    if not total > 0:
        return float("nan")
    p = values / total + epsilon
    return float((-(p * p.log()).sum()).exp())
