"""A backbone that is only looked through: its network, and its features of images."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from carryover.core.backbones.source import Source
from carryover.core.data.config import AugmentConfig
from carryover.core.data.prepared import Dataset
from carryover.core.training.distributed import Ranks
from carryover.transfer.tasks.base import Run
from carryover.transfer.tasks.frozen.config import FrozenRecipe
from carryover.transfer.tasks.frozen.features import FeatureSet, Request, stored_features


@dataclass(frozen=True)
class Frozen:
    """A backbone whose parameters are fixed.

    Attributes
    ----------
    augment
        The recipe's views of images, normalized as the checkpoint wants them.
    """

    config: FrozenRecipe
    source: Source
    augment: AugmentConfig
    out: Path
    ranks: Ranks

    @property
    def backbone(self) -> nn.Module:
        """The network: images (B, 3, H, W) to features (B, D)."""
        return self.source.backbone

    def features(self, images: Dataset, depth: str | None = None) -> FeatureSet:
        """Return the features of `images` at one depth (the recipe's own by default), and their labels.

        Every rank calls this and computes a part of what is not there yet; each gets all of them. See
        `transfer.tasks.frozen.features`.

        Raises WorkError naming the first image whose features are not finite.
        """
        at = (depth or self.config.feature,)
        request = Request(self.source.digest, images, self.augment, at, self.config.precision)
        share = -(-self.config.extract_batch // self.ranks.world)
        return stored_features(request, self.backbone, self._store(), self.ranks, share, self.config.workers)

    def _store(self) -> Path:
        if self.config.store is not None:
            return self.config.store.expanduser()
        beside = self.source.path.parent
        return (beside if os.access(beside, os.W_OK) else self.out) / "features"


def frozen_of(run: Run[Any, Any]) -> Frozen:
    """Return the run's backbone with its parameters fixed, in evaluation mode."""
    source, config = run.source, run.config
    source.backbone.requires_grad_(False).eval()
    augment = config.image.augment(source.metadata.pixel_mean, source.metadata.pixel_std)
    return Frozen(config, source, augment, run.out, run.ranks)
