"""EqCo's toy experiment: InfoNCE and EqCo as estimators of a mutual information that is known.

Source: Zhu et al., "EqCo: Equivalent Rules for Self-supervised Contrastive Learning", Eqs. 9 and 10, Table 5.
What it leaves open is that of Poole et al., "On Variational Bounds of Mutual Information", whose
configuration it follows: embeddings of 32 dimensions, not normalized, their plain dot product the critic
(tau = 1).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor, nn

from carryover.core.training.device import random_states_kept
from carryover.pretrain.objectives.contrastive import batch_info_nce, eqco_margin, mi_bound

Estimator = Literal["infonce", "eqco"]


@dataclass(frozen=True)
class ToyProtocol:
    """Setup of Table 5.

    Attributes
    ----------
    information
        True mutual information of each experiment, in nats.
    pairs
        K: pairs (X, Y) of each step, hence K - 1 negatives a query.
    alpha
        EqCo's constant.
    dimension, hidden, embedding
        Widths of X and Y, of the critics' one hidden layer, and of the embeddings.
    steps, lr
        Adam's steps and rate.
    estimates
        Batches of K fresh pairs that the bound is averaged over after training.
    """

    information: tuple[float, ...] = (2.0, 4.0, 6.0, 8.0, 10.0)
    pairs: tuple[int, ...] = (64, 128, 256, 512)
    alpha: float = 512.0
    dimension: int = 20
    hidden: int = 256
    embedding: int = 32
    steps: int = 5000
    lr: float = 5e-4
    estimates: int = 1000


@dataclass(frozen=True)
class Bound:
    """One cell of the table: the lower bound that one estimator reaches, in nats."""

    estimator: Estimator
    information: float
    pairs: int
    value: float


def correlation(information: float, dimension: int) -> float:
    """Return the rho that gives X and Y (`dimension` wide) a mutual information of so many nats (Eq. 10)."""
    return math.sqrt(1 - math.exp(-2 * information / dimension))


def correlated_pairs(count: int, dimension: int, rho: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw X standard normal and Y = rho X + sqrt(1 - rho^2) epsilon (Eq. 9): (count, dimension) each."""
    x, noise = torch.randn(2, count, dimension, generator=generator)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def eqco_table(
    protocol: ToyProtocol, seed: int, advance: Callable[[], None] = lambda: None
) -> Iterator[Bound]:
    """Train a critic for every cell of Table 5, one after the other; `advance` is called after every
    step and after every estimate.

    A cell depends on the seed and on its own place in the table only, not on the cells before it.
    """
    estimators: tuple[Estimator, ...] = ("infonce", "eqco")
    for information, estimator, pairs in product(protocol.information, estimators, protocol.pairs):
        value = lower_bound(protocol, estimator, information, pairs, seed, advance)
        yield Bound(estimator, information, pairs, value)


def lower_bound(
    protocol: ToyProtocol,
    estimator: Estimator,
    information: float,
    pairs: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> float:
    """Train a critic on `pairs` pairs a step, freeze it, and return its mean bound in nats."""
    words = [seed, round(1000 * information), pairs, int(estimator == "eqco")]
    start, draws = np.random.SeedSequence(words).generate_state(2, np.uint64).tolist()
    generator = Generator().manual_seed(draws)
    rho = correlation(information, protocol.dimension)
    of_x, of_y = _critics(protocol, start)
    optimizer = torch.optim.Adam([*of_x.parameters(), *of_y.parameters()], lr=protocol.lr)
    negatives = pairs - 1
    alpha = protocol.alpha if estimator == "eqco" else negatives
    margin = eqco_margin(alpha, negatives, tau=1.0)
    own = torch.arange(pairs).unsqueeze(1)

    def loss() -> Tensor:
        x, y = correlated_pairs(pairs, protocol.dimension, rho, generator)
        queries, keys = of_x(x), of_y(y)
        return batch_info_nce(queries, keys, keys, own, 1.0, margin)

    for _ in range(protocol.steps):
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()
        advance()
    bounds = []
    with torch.no_grad():
        for _ in range(protocol.estimates):
            bounds.append(mi_bound(loss(), alpha))
            advance()
    return torch.stack(bounds).double().mean().item()


def _critics(protocol: ToyProtocol, seed: int) -> tuple[nn.Module, nn.Module]:
    with random_states_kept():
        torch.manual_seed(seed)
        one, other = (
            nn.Sequential(
                nn.Linear(protocol.dimension, protocol.hidden),
                nn.ReLU(),
                nn.Linear(protocol.hidden, protocol.embedding),
            )
            for _ in range(2)
        )
    return one, other
