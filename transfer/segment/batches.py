"""Which images make up which step: a pure function of the seed, so that a resumed run sees the same ones."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from pretrain.interrupt import SIGNALS
from transfer.segment.config import InputConfig
from transfer.segment.datasets import SegmentationDataset
from transfer.segment.transforms import Example, train_example


@dataclass(frozen=True)
class Draw:
    """One image of one step; its augmentation is decided by (seed, iteration, position) alone."""

    index: int
    iteration: int
    position: int


class TrainingImages(Dataset[Example]):
    """Loads one `Draw`."""

    def __init__(self, dataset: SegmentationDataset, config: InputConfig, seed: int) -> None:
        self.dataset, self.config, self.seed = dataset, config, seed

    def __getitem__(self, draw: Draw) -> Example:
        rng = np.random.default_rng([self.seed, draw.iteration, draw.position])
        return train_example(self.dataset.images[draw.index], self.dataset.code, self.config, rng)


class Steps:
    """The draws of this rank's share of steps `start` to `stop`, one list a step: shuffled passes, joined."""

    def __init__(
        self, images: int, size: int, seed: int, start: int, stop: int, rank: int = 0, world: int = 1
    ) -> None:
        self.images, self.size, self.seed, self.start, self.stop = images, size, seed, start, stop
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for iteration in range(self.start, self.stop):
            draws = []
            for position in range(self.size):
                passes, place = divmod(iteration * self.size + position, self.images)
                if passes != epoch:
                    epoch = passes
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.images)
                draws.append(Draw(int(order[place]), iteration, position))
            yield draws[self.rank :: self.world]


def step_loader(
    dataset: Dataset[Any], steps: Steps, workers: int, collate: Callable[[list[Any]], Any] = list
) -> DataLoader[Any]:
    """Load whole steps ahead in `workers` processes; 0 loads in this one."""
    return DataLoader(
        dataset,
        batch_sampler=steps,
        num_workers=workers,
        worker_init_fn=_outlive_signals,
        collate_fn=collate,
        persistent_workers=False,
    )


def _outlive_signals(worker: int) -> None:
    # A scheduler signals every process of a job: were the loaders to die of it, the trainer could not save.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
