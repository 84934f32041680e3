"""Images of each step: a function of the seed alone, so that a resumed run sees the same ones."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Dataset

from carryover.core.data.masks.dataset import SegmentationDataset
from carryover.core.data.steps import Draw
from carryover.transfer.tasks.segmentation.config import InputConfig
from carryover.transfer.tasks.segmentation.transforms import Example, train_example


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
