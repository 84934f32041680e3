"""Batch norms' running statistics against those of images at hand, layer by layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from carryover.transfer.results.intervals import draws

SAMPLES: Final = 200
EXCHANGES: Final = 39
# Variances below this share of a layer's largest are of channels that died.
_DEAD: Final = 1e-6

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Mismatch:
    """Distance between the statistics of some images and a network's running statistics.

    Attributes
    ----------
    value
        Mean over layers of the squared Hellinger distance: 0 for the same, 1 for disjoint distributions.
    sample
        (B,) the same on images drawn anew; the draws depend on the number of images alone, so that two
        networks' samples are paired.
    layers
        Every batch norm's own distance, in the order in which the network runs them.
    own
        Share of the layers whose running statistics are nearer to those of the images than after exchanging
        their channels at random (a permutation test at 1 / 40). Those of another network are as near as
        that, in most layers; a network's own are nearer, of whatever kind the images are.
    """

    value: float
    sample: Array
    layers: tuple[tuple[str, float], ...]
    own: float = 1.0


class Watch:
    """Collects mean and mean square of what enters each batch norm, for every image apart."""

    def __init__(self, network: nn.Module, images: int) -> None:
        self._left = images
        self._sums: dict[str, list[tuple[Array, Array]]] = {}
        self._running: dict[str, tuple[Array, Array]] = {}
        self.on = True
        self._handles = [
            module.register_forward_pre_hook(self._hook(name))
            for name, module in network.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        ]

    def _hook(self, name: str) -> Any:
        def collect(module: Any, inputs: tuple[Tensor, ...]) -> None:
            if not self.on or self._left <= 0:
                return
            if name not in self._running:
                self._running[name] = _numpy(module.running_mean), _numpy(module.running_var)
            x = inputs[0][: self._left].float()
            flat = x.flatten(2).transpose(1, 2) if x.dim() > 2 else x.unsqueeze(1)
            self._sums.setdefault(name, []).append(
                (_numpy(flat.mean(dim=1)), _numpy(flat.square().mean(dim=1)))
            )

        return collect

    def counted(self, images: int) -> None:
        """Note that a batch of so many images has gone through."""
        self._left -= images

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def mismatch(self) -> Mismatch | None:
        """Return the distance of what was seen from the running statistics; None without a batch norm."""
        if not self._sums:
            return None
        layers, samples, own = [], [], []
        rng = np.random.default_rng(0)
        for name, parts in self._sums.items():
            mean, square = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
            everything = np.full((1, len(mean)), 1.0)
            at = _distance(everything, mean, square, *self._running[name])[0]
            layers.append((name, float(at)))
            own.append(_nearer_than_exchanged(float(at), mean, square, *self._running[name], rng))
            counts = np.concatenate(list(draws(len(mean), SAMPLES)))
            samples.append(_distance(counts, mean, square, *self._running[name]))
        value = float(np.mean([of for _, of in layers]))
        return Mismatch(value, np.mean(samples, axis=0), tuple(layers), float(np.mean(own)))


@contextmanager
def watching(network: nn.Module, images: int) -> Iterator[Watch]:
    """Watch a network's batch norms while the block lasts."""
    watch = Watch(network, images)
    try:
        yield watch
    finally:
        watch.close()


def hellinger(mean: Array, variance: Array, other_mean: Array, other_variance: Array) -> Array:
    """Return the squared Hellinger distance of normal distributions, elementwise.

    1 - sqrt(2 s t / (s^2 + t^2)) exp(-(m - n)^2 / (4 (s^2 + t^2))), of deviations s and t.
    """
    both = variance + other_variance
    overlap = np.sqrt(2 * np.sqrt(variance * other_variance) / both)
    found: Array = 1 - overlap * np.exp(-((mean - other_mean) ** 2) / (4 * both))
    return found


def _distance(counts: Array, mean: Array, square: Array, running: Array, variance: Array) -> Array:
    """Return the distance (B,) for images counted `counts` (B, N) times, of sums (N, C)."""
    weights = counts / counts.sum(axis=1, keepdims=True)
    m = weights @ mean
    v = np.maximum(weights @ square - m**2, 0)
    alive = variance > _DEAD * max(float(variance.max()), float(v.max()))
    if not alive.any():
        return np.ones(len(counts))
    found: Array = hellinger(m, v, running, variance)[:, alive].mean(axis=1)
    return found


def _nearer_than_exchanged(
    at: float, mean: Array, square: Array, running: Array, variance: Array, rng: np.random.Generator
) -> bool:
    """Return whether running statistics are nearer than all `EXCHANGES` permutations of their channels."""
    m = mean.mean(axis=0)
    v = np.maximum(square.mean(axis=0) - m**2, 0)
    orders = np.argsort(rng.random((EXCHANGES, len(running))), axis=1)
    alive = (variance > _DEAD * max(float(variance.max()), float(v.max())))[orders]
    distances = hellinger(m, v, running[orders], variance[orders])
    of_each = np.where(alive, distances, 0).sum(axis=1) / np.maximum(alive.sum(axis=1), 1)
    return bool((of_each > at).all())


def _numpy(x: Tensor) -> Array:
    return x.detach().double().cpu().numpy()


@torch.no_grad()
def estimate(network: nn.Module, batches: Iterator[Tensor]) -> None:
    """Estimate a network's running statistics anew, in place: the plain mean over batches of images."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for x in batches:
        network(x)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        norm.eval()
