"""A checkpoint opened for evaluation without training: its network, and its features of images."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from carryover.core.backbones.pixels import require_same_crops
from carryover.core.backbones.source import Source, open_source
from carryover.core.data.config import AugmentConfig
from carryover.core.data.prepared import Dataset
from carryover.core.formats.canonical import CanonicalMetadata
from carryover.core.training.distributed import Ranks
from carryover.transfer.tasks.frozen.config import FrozenRecipe
from carryover.transfer.tasks.frozen.features import FeatureSet, Request, stored_features

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
    source: Source
    augment: AugmentConfig

    @property
    def backbone(self) -> nn.Module:
        """The frozen network."""
        return self.source.backbone

    @property
    def metadata(self) -> CanonicalMetadata:
        """What the checkpoint says of itself."""
        return self.source.metadata

    def features(self, images: Dataset, out: Path, ranks: Ranks) -> FeatureSet:
        """Return the pooled features of `images` from the store; see `transfer.tasks.frozen.features`."""
        request = Request(self.source.digest, images, self.augment, ("pooled",), self.config.precision)
        share = -(-self.config.extract_batch // ranks.world)
        return stored_features(request, self.backbone, self._store(out), ranks, share, self.config.workers)

    def _store(self, out: Path) -> Path:
        if self.config.store is not None:
            return self.config.store.expanduser()
        beside = self.source.path.parent
        return (beside if os.access(beside, os.W_OK) else out) / "features"


def open_frozen(config: FrozenRecipe, checkpoint: Path | Source) -> Frozen:
    """Open a checkpoint, or take a source that is open already, its parameters fixed.

    Raises UserError for a missing or unfit file, and where size or normalisation are not the recipe's.
    """
    source = checkpoint if isinstance(checkpoint, Source) else open_source(checkpoint)
    require_same_crops(config.image, source.metadata, source.path)
    source.backbone.requires_grad_(False).eval()
    augment = config.image.augment(source.metadata.pixel_mean, source.metadata.pixel_std)
    return Frozen(config, source, augment)
