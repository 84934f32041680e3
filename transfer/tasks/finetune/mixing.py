"""Mixup and CutMix of a fine-tuning's batches: timm's own code, seeded by step and group."""

from typing import Any

import torch
from torch import Tensor

from carryover.configs import UserError
from carryover.core.data.draws import keys
from carryover.core.data.strong import require_timm, seeded
from carryover.core.training.distributed import Ranks
from carryover.transfer.tasks.finetune.config import FinetuneConfig, MixConfig

# Beside what the loader draws (`core.data.loader`).
_MIXED = 6


def require_groups(config: MixConfig, batch_size: int, ranks: Ranks) -> None:
    """Raise UserError where timm is not installed, or a group would lie on two ranks."""
    require_timm("mix")
    share = ranks.share_of(batch_size)
    if ranks.world > 1 and share % config.group:
        raise UserError(
            f"mix.group: {config.group} images do not divide the {share} of a rank's batch; choose another"
            " batch_size, or a mix.group that divides it"
        )


def mixed(
    images: Tensor, labels: Tensor, classes: int, config: FinetuneConfig, step: int, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """Mix this rank's images (b, 3, H, W), in place, and their labels (b,) of one step.

    Returns the images and targets (b, classes), smoothed, each of which sums to one. In a group of an odd
    number, the last of an epoch, the image in the middle stays as it is.
    """
    from timm.data.mixup import Mixup, mixup_target

    own = config.mix
    assert own is not None
    mix: Any = Mixup(
        mixup_alpha=own.mixup,
        cutmix_alpha=own.cutmix,
        prob=own.prob,
        switch_prob=own.switch,
        label_smoothing=config.smoothing,
        num_classes=classes,
    )
    targets = mixup_target(labels, classes, smoothing=config.smoothing)
    first = ranks.rank * (ranks.share_of(config.batch_size) // own.group)
    for number, start in enumerate(range(0, len(images), own.group)):
        at = torch.arange(start, min(start + own.group, len(images)), device=images.device)
        if len(at) % 2:
            at = torch.cat([at[: len(at) // 2], at[len(at) // 2 + 1 :]])
        if len(at):
            with seeded(int(keys(config.seed, _MIXED, step, first + number)[0])):
                images[at], targets[at] = mix(images[at], labels[at])
    return images, targets
