"""A checkpoint opened for evaluation without training: its network, and its features of images."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from configs import UserError
from pretrain.canonical import CanonicalMetadata, sha256_file
from pretrain.data import Dataset
from pretrain.data_config import AugmentConfig
from pretrain.distributed import Ranks
from transfer.checkpoints.canonical import load_backbone
from transfer.classify.features import FeatureSet, Request, stored_features
from transfer.classify.labelled import require_same_pixels
from transfer.classify.probe_config import FrozenRecipe

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frozen:
    """A backbone that is only looked through.

    Attributes
    ----------
    augment
        The recipe's views of images, normalised as the checkpoint wants them.
    """

    config: FrozenRecipe
    checkpoint: Path
    sha256: str
    backbone: nn.Module
    metadata: CanonicalMetadata
    augment: AugmentConfig

    def features(self, images: Dataset, out: Path, ranks: Ranks) -> FeatureSet:
        """Return the pooled features of `images` from the store; see `transfer.classify.features`."""
        request = Request(self.sha256, images, self.augment, ("pooled",), self.config.precision)
        share = -(-self.config.extract_batch // ranks.world)
        return stored_features(request, self.backbone, self._store(out), ranks, share, self.config.workers)

    def _store(self, out: Path) -> Path:
        if self.config.store is not None:
            return self.config.store.expanduser()
        beside = self.checkpoint.parent
        return (beside if os.access(beside, os.W_OK) else out) / "features"


def open_frozen(config: FrozenRecipe, checkpoint: Path) -> Frozen:
    """Open a checkpoint, its parameters fixed.

    Raises UserError for a missing or unfit file, and where size or normalisation are not the recipe's.
    """
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such checkpoint")
    backbone, metadata = load_backbone(checkpoint)
    require_same_pixels(config.image, metadata, checkpoint)
    backbone.requires_grad_(False).eval()
    augment = config.image.augment(metadata.pixel_mean, metadata.pixel_std)
    return Frozen(config, checkpoint, sha256_file(checkpoint), backbone, metadata, augment)
