"""Which images make up which step: a pure function of the seed, so that a resumed run sees the same ones."""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from torch.utils.data import Dataset

from carryover.core.data.objects.dataset import DetectionDataset, DetectionImage
from carryover.core.data.steps import Draw
from carryover.transfer.tasks.detection.config import InputConfig
from carryover.transfer.tasks.detection.transforms import Example, train_example


def annotated_images(dataset: DetectionDataset) -> tuple[DetectionImage, ...]:
    """Leave out images without a single object that is not a crowd (FILTER_EMPTY_ANNOTATIONS)."""
    return tuple(i for i in dataset.images if (~i.annotation.iscrowd).any())


def batches(is_wide: Sequence[bool], size: int, seed: int) -> Iterator[list[int]]:
    """Yield steps of `size` image indices for ever: shuffled passes, wide and tall images apart.

    Images of one shape are collected until they fill a step, so that little of it is padding (Detectron2's
    aspect-ratio grouping); none is ever skipped.
    """
    waiting: tuple[list[int], list[int]] = ([], [])
    epoch = 0
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(is_wide))
        for index in order.tolist():
            group = waiting[is_wide[index]]
            group.append(index)
            if len(group) == size:
                yield list(group)
                group.clear()
        epoch += 1


class TrainingImages(Dataset[Example]):
    """Loads one `Draw`."""

    def __init__(
        self, images: Sequence[DetectionImage], config: InputConfig, with_masks: bool, seed: int
    ) -> None:
        self.images, self.config, self.with_masks, self.seed = images, config, with_masks, seed

    def __getitem__(self, draw: Draw) -> Example:
        rng = np.random.default_rng([self.seed, draw.iteration, draw.position])
        return train_example(self.images[draw.index], self.config, self.with_masks, rng)


class Steps:
    """The draws of this rank's share of steps `start` to `stop`, one list a step."""

    def __init__(
        self,
        images: Sequence[DetectionImage],
        size: int,
        seed: int,
        start: int,
        stop: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.is_wide = [image.width > image.height for image in images]
        self.size, self.seed, self.start, self.stop = size, seed, start, stop
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Draw]]:
        stream = islice(batches(self.is_wide, self.size, self.seed), self.start, self.stop)
        for iteration, indices in enumerate(stream, start=self.start):
            draws = [Draw(index, iteration, position) for position, index in enumerate(indices)]
            yield draws[self.rank :: self.world]
