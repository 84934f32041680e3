"""A backbone as its users see it: stages, strides and widths declared, features by name."""

from pathlib import Path

from torch import Tensor, nn

from carryover.core.backbones.build import feature_maps
from carryover.core.backbones.description import Description, description_of
from carryover.core.backbones.stated import Stated
from carryover.core.formats.canonical import CanonicalMetadata


class Backbone(nn.Module):
    """A pretrained network without its head.

    Attributes
    ----------
    stages
        Names of the maps that `features` returns, from the first to the last.
    strides
        Pixels of the image per pixel of each stage's map.
    widths
        Channels of each stage's map.
    description
        All that the network declares: also the width of its pooled features, its patch size, which images it
        takes.
    metadata
        What the checkpoint says of itself: pixel mean and deviation, input size, method, epochs.
    """

    def __init__(self, network: nn.Module, metadata: CanonicalMetadata) -> None:
        super().__init__()
        self.network, self.metadata = network, metadata
        self.description: Description = description_of(network)
        self.stages: tuple[str, ...] = self.description.stages
        self.strides: tuple[int, ...] = self.description.strides
        self.widths: tuple[int, ...] = self.description.widths

    @classmethod
    def of(cls, path: Path, encoder: str | None = None, stated: Stated | None = None) -> "Backbone":
        """Load a checkpoint's backbone, in evaluation mode; raises UserError as `load_backbone` does."""
        from carryover.core.backbones.inspection import load_backbone

        network, metadata = load_backbone(path, encoder, stated)
        return cls(network.eval(), metadata)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Return every stage's maps (B, width, H / stride, W / stride) of images `x` (B, 3, H, W)."""
        return feature_maps(self.network, x)

    def pooled(self, x: Tensor) -> Tensor:
        """Return the network's own pooled features, (B, D)."""
        pooled: Tensor = self.network(x)
        return pooled

    def forward(self, x: Tensor) -> Tensor:
        """Return `pooled(x)`."""
        return self.pooled(x)
