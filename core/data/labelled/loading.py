"""Batches of labeled images for training: every image once an epoch, in equal parts over the ranks."""

import torch
from torch import Tensor

from carryover.core.data.config import AugmentConfig
from carryover.core.data.prepared import Dataset, Loader
from carryover.core.training.distributed import Ranks


def training_loader(
    images: Dataset,
    augment: AugmentConfig,
    batch_size: int,
    seed: int,
    ranks: Ranks,
    workers: int,
    drop_last: bool = False,
) -> Loader:
    """Load `images` in global batches of `batch_size`, the last one of an epoch as small as it comes out.

    With `drop_last` the images that do not fill it are left out of the epoch.

    Ranks must hold equally many images in every batch: where their number is no multiple of the ranks, the
    first few come twice an epoch, as with torch's DistributedSampler.

    Raises UserError when the batch cannot be divided among the ranks.
    """
    share = ranks.share_of(batch_size)
    spare = -len(images) % ranks.world
    if spare:
        images = images.take([*range(len(images)), *range(spare)])
    return Loader(
        images,
        augment,
        share,
        seed,
        ranks.rank,
        ranks.world,
        workers,
        drop_last=drop_last,
        device=ranks.device,
    )


def laid_out(images: Tensor, channels_last: bool) -> Tensor:
    """Return images (B, 3, H, W) in the memory layout of the network."""
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images
