"""RankMe and LiDAR against their formulas written out in numpy, with explicit matrices and SciPy's roots."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from torch import Tensor

import carryover
from carryover.pretrain.online.rank import lidar, rankme

Array = NDArray[np.float64]


def _entropy_rank(values: Array, epsilon: float) -> float:
    p = values / np.abs(values).sum() + epsilon
    return float(np.exp(-np.sum(p * np.log(p))))


def _rankme(Z: Array, epsilon: float = 1e-7) -> float:
    """Garrido et al. 2023, Eq. 1, by singular values."""
    return _entropy_rank(np.linalg.svd(Z, compute_uv=False), epsilon)


def _lidar(e: Array, delta: float = 1e-4, epsilon: float = 1e-7) -> float:
    """Thilak et al. 2023: sums over images and views one by one, and the (p, p) matrices themselves."""
    n, q, p = e.shape
    mu_i = e.mean(axis=1)
    mu = mu_i.mean(axis=0)
    S_b, S_w = np.zeros((p, p)), np.zeros((p, p))
    for i in range(n):
        S_b += np.outer(mu_i[i] - mu, mu_i[i] - mu) / n
        for j in range(q):
            S_w += np.outer(e[i, j] - mu_i[i], e[i, j] - mu_i[i]) / (n * q)
    root = np.linalg.inv(np.real(sqrtm(S_w + delta * np.eye(p))))
    values = np.linalg.eigvalsh(root @ S_b @ root)
    return _entropy_rank(np.clip(values, 0, None), epsilon)


def _random(*shape: int, seed: int = 0, decay: float = 0.0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * torch.arange(1, shape[-1] + 1).double() ** -decay


@pytest.mark.parametrize("shape", [(50, 20), (20, 50), (64, 64), (300, 7)])
@pytest.mark.parametrize("decay", [0.0, 1.0, 3.0])
def test_rankme_is_the_papers_formula(shape: tuple[int, int], decay: float) -> None:
    Z = _random(*shape, decay=decay)
    assert rankme(Z) == pytest.approx(_rankme(Z.numpy()), rel=1e-5)


@pytest.mark.parametrize("shape", [(20, 5, 12), (8, 3, 40), (6, 4, 24), (30, 2, 5)])
@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_lidar_is_the_papers_formula_whichever_matrix_is_smaller(
    shape: tuple[int, int, int], decay: float
) -> None:
    e = _random(*shape, decay=decay) + 2 * _random(shape[0], 1, shape[2], seed=1, decay=decay)
    assert lidar(e) == pytest.approx(_lidar(e.numpy()), rel=1e-6)
    assert lidar(e, delta=0.1, epsilon=1e-5) == pytest.approx(_lidar(e.numpy(), 0.1, 1e-5), rel=1e-6)


def test_embeddings_along_one_line_have_rank_one_and_equal_directions_count_fully() -> None:
    line = _random(40, 1) @ _random(1, 16, seed=1)
    assert rankme(line) == pytest.approx(1, abs=1e-3)
    assert rankme(torch.eye(16)) == pytest.approx(16, rel=1e-4)
    # Views that differ in directions in which images do not: only what tells images apart counts.
    images = torch.zeros(32, 4, 10, dtype=torch.float64)
    images[..., :2] = _random(32, 1, 2)
    images[..., 2:] = 100 * _random(32, 4, 8, seed=2)
    assert lidar(images) < 2.5 < 8 < rankme(images.flatten(0, 1))


def test_ranks_ignore_scale_as_long_as_delta_is_small() -> None:
    Z = _random(40, 10)
    assert rankme(1000 * Z) == pytest.approx(rankme(Z), rel=1e-9)
    e = _random(12, 6, 8) + 3 * _random(12, 1, 8, seed=1)
    assert lidar(100 * e, delta=1e-12) == pytest.approx(lidar(e, delta=1e-12), rel=1e-6)


def test_collapsed_embeddings_have_no_rank() -> None:
    assert math.isnan(rankme(torch.zeros(8, 4)))
    assert math.isnan(lidar(torch.ones(8, 3, 4)))


@pytest.mark.parametrize("shape", [(8, 4), (1, 4, 3), (8, 1, 3)])
def test_lidar_refuses_what_has_no_views(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected \\(images, views, width\\)"):
        lidar(torch.ones(shape))


def test_both_are_in_the_public_api() -> None:
    assert carryover.rankme is rankme and carryover.lidar is lidar
