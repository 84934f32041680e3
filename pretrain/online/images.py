"""The images that online signals look at: made once, from seeds, and kept: looking loads nothing."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from carryover.core.data.config import AugmentConfig, SubsetConfig
from carryover.core.data.datasets import Dataset, subset
from carryover.core.data.prepared import EvaluationLoader, Loader

# Images of one forward pass; features do not depend on it but for rounding.
CHUNK = 64
_SEED = 0


@dataclass(frozen=True)
class Shown:
    """Images as a network sees them, on the CPU in half precision.

    Attributes
    ----------
    pixels
        (N, 3, H, W) float16, normalized.
    labels
        (N,) int64; None: the data set has none.
    """

    pixels: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.pixels)

    def chunks(self, device: torch.device) -> Iterator[Tensor]:
        """Yield the images in float32 on a device, in their order."""
        for some in self.pixels.split(CHUNK):
            yield some.to(device).float()


def some(dataset: Dataset, count: int) -> Dataset:
    """Return at most `count` images, class by class alike where there are labels, always the same ones."""
    wanted = min(count, len(dataset))
    return subset(dataset, SubsetConfig(count=wanted, seed=_SEED, stratified=dataset.labels is not None))


def plain(dataset: Dataset, augment: AugmentConfig) -> Shown:
    """Return the test view of every image."""
    loader = EvaluationLoader(dataset, augment, CHUNK)
    batches = list(loader)
    labels = [b.label for b in batches if b.label is not None]
    return Shown(torch.cat([b.views[0].half() for b in batches]), torch.cat(labels) if labels else None)


def augmented(dataset: Dataset, augment: AugmentConfig, views: int) -> Tensor:
    """Return random views (n, q, 3, H, W) of every image, float16: q of the first kind of training view.

    A function of the images alone: the same views every time.
    """
    single = augment.model_copy(update={"views": "single", "second": None, "local": None, "cutmix": None})
    loader = Loader(dataset, single, min(CHUNK, len(dataset)), _SEED, drop_last=False)
    made: list[Tensor] = []
    for number in range(views):
        batches = list(loader.epoch(number))
        order = torch.cat([b.index for b in batches]).argsort()
        made.append(torch.cat([b.views[0].half() for b in batches])[order])
    return torch.stack(made, dim=1)
