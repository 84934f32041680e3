"""Looks at held-out images while a network trains: a curve, on which nothing is chosen."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from carryover.core.training.distributed import share_buffers
from carryover.core.training.loop import evenly
from carryover.core.training.watch_config import WatchConfig

T = TypeVar("T")

PREFIX = "validation_"
"""Prefix of the numbers of such a measurement in metrics.jsonl, before the metric's own name."""


def looks(steps: int, watch: WatchConfig) -> frozenset[int]:
    """Return after which of so many steps held-out images are looked at."""
    return evenly(steps, watch.times) if watch.times else frozenset()


@contextmanager
def left_as_it_was(network: nn.Module) -> Iterator[None]:
    """Allow tests of a network inside the block without any effect on its training.

    Every module's mode, the buffers (ranks test with the first one's) and torch's generators come back.
    """
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    try:
        with torch.random.fork_rng(), torch.no_grad():
            share_buffers(network)
            network.eval()
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for module, training in modes:
            module.training = training


def spread(items: Sequence[T], count: int) -> tuple[T, ...]:
    """Return `count` of some items (or all, if they are fewer), evenly by number."""
    return tuple(items[i] for i in spread_positions(len(items), count))


def spread_positions(of: int, count: int) -> list[int]:
    """Return the positions of `count` of so many items (or of all, if they are fewer), evenly by number."""
    found: list[int] = np.linspace(0, of - 1, min(count, of)).astype(int).tolist()
    return found
