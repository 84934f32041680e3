"""Images of each step: a function of seed and ranks, so that a resumed run sees the same ones."""

from collections.abc import Iterator, Sequence
from itertools import count, islice

import numpy as np
from torch.utils.data import Dataset

from carryover.core.data.objects.dataset import DetectionDataset, DetectionImage
from carryover.core.data.steps import Draw
from carryover.transfer.tasks.detection.config import InputConfig
from carryover.transfer.tasks.detection.transforms import Example, train_example


def annotated_images(dataset: DetectionDataset) -> tuple[DetectionImage, ...]:
    """Leave out images without a single object that is not a crowd (FILTER_EMPTY_ANNOTATIONS)."""
    return tuple(i for i in dataset.images if (~i.annotation.iscrowd).any())


def batches(
    is_wide: Sequence[bool], size: int, seed: int, rank: int = 0, world: int = 1
) -> Iterator[list[int]]:
    """Yield this rank's `size` image indices of every step for ever, wide and tall images apart.

    The stream is shuffled passes over all images, of which each rank takes every `world`-th. A rank collects
    images of one shape until they fill its part of a step, so that little of it is padding; none is ever
    skipped. Ranks do not look at each other: a step holds both shapes where they come to others. These are
    Detectron2's `TrainingSampler` and `AspectRatioGroupedDataset`, but for the shuffling's generator.
    """
    waiting: tuple[list[int], list[int]] = ([], [])
    for index in islice(_passes(len(is_wide), seed), rank, None, world):
        group = waiting[is_wide[index]]
        group.append(index)
        if len(group) == size:
            yield list(group)
            group.clear()


def _passes(images: int, seed: int) -> Iterator[int]:
    for epoch in count():
        yield from np.random.default_rng([seed, epoch]).permutation(images).tolist()


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
    """The draws of this rank's part of steps `start` to `stop`, one list a step; `size` is of all ranks."""

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
        own = batches(self.is_wide, self.size // self.world, self.seed, self.rank, self.world)
        for iteration, indices in enumerate(islice(own, self.start, self.stop), start=self.start):
            # No two images of a step have one position, whichever ranks they are on.
            yield [Draw(index, iteration, self.rank + n * self.world) for n, index in enumerate(indices)]
