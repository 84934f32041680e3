"""Test for weights that are independent draws, as in a new network, by singular values."""

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

EDGE: Final = 1.05
"""A largest singular value beyond this multiple of the edge is none of independent draws."""
# Of smaller matrices the largest singular value of independent draws scatters too much.
_SMALLEST: Final = 32
# Largest sides are cut to so many rows and columns: a part of independent draws is independent draws.
_MOST: Final = 1024


def edge_ratio(weight: Tensor) -> float | None:
    """Return a weight's largest singular value over what independent draws of its deviation have.

    A convolution (out, in, k, k) is a matrix (m, n) of its output channels. The largest singular value of
    independent draws of deviation s tends to s (sqrt(m) + sqrt(n)) (Marchenko and Pastur 1967; Geman 1980),
    whatever their distribution. Training adds directions that lie beyond it. None for what is too small.
    """
    matrix = weight.detach().flatten(1)[:_MOST, :_MOST].double().cpu()
    m, n = matrix.shape
    if min(m, n) < _SMALLEST:
        return None
    matrix = matrix - matrix.mean()
    deviation = float(matrix.std())
    if deviation == 0:
        return None
    largest = float(torch.linalg.matrix_norm(matrix, 2))
    return largest / (deviation * (math.sqrt(m) + math.sqrt(n)))


def edge_ratios(state: Mapping[str, Tensor]) -> dict[str, float]:
    """Return `edge_ratio` of every weight of a state dict that is large enough."""
    found = {}
    for name, value in state.items():
        if value.ndim >= 2 and value.is_floating_point():
            ratio = edge_ratio(value)
            if ratio is not None:
                found[name] = ratio
    return found


def constant_vectors(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return how many scales, shifts and biases are one number throughout, and how many there are.

    Those of a new network's norms are (1 and 0); a training's first steps part them.
    """
    vectors = [
        value
        for name, value in state.items()
        if value.ndim == 1 and value.is_floating_point() and "running_" not in name
    ]
    return sum(bool((v == v[0]).all()) for v in vectors), len(vectors)


def untouched_norms(state: Mapping[str, Tensor]) -> tuple[list[str], int]:
    """Return the batch norms that have a new network's statistics (0 and 1), and how many norms there are."""
    norms = [name.removesuffix(".running_mean") for name in state if name.endswith(".running_mean")]
    new = [
        norm
        for norm in norms
        if not state[f"{norm}.running_mean"].any() and bool((state[f"{norm}.running_var"] == 1).all())
    ]
    return new, len(norms)
