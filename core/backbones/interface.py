"""A backbone as its users see it: stages, strides and widths declared, features by name."""

from pathlib import Path

import torch
from torch import Tensor, nn

from carryover.core.backbones.build import feature_maps
from carryover.core.formats.canonical import CanonicalMetadata

_SIDE = 224


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
    metadata
        What the checkpoint says of itself.
    """

    def __init__(self, network: nn.Module, metadata: CanonicalMetadata) -> None:
        super().__init__()
        self.network, self.metadata = network, metadata
        shapes = _shapes(network)
        self.stages: tuple[str, ...] = tuple(shapes)
        self.strides: tuple[int, ...] = tuple(_SIDE // side for _, side in shapes.values())
        self.widths: tuple[int, ...] = tuple(width for width, _ in shapes.values())

    @classmethod
    def of(cls, path: Path, encoder: str | None = None) -> "Backbone":
        """Load a checkpoint's backbone, in evaluation mode; raises UserError as `load_backbone` does."""
        from carryover.core.backbones.inspection import load_backbone

        network, metadata = load_backbone(path, encoder)
        return cls(network.eval(), metadata)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Return every stage's maps (B, width, H / stride, W / stride) of images `x` (B, 3, H, W)."""
        return feature_maps(self.network, x)

    def pooled(self, x: Tensor) -> Tensor:
        """Return the last stage averaged over the image, (B, D)."""
        pooled: Tensor = self.network(x)
        return pooled

    def forward(self, x: Tensor) -> Tensor:
        """Return `pooled(x)`."""
        return self.pooled(x)


def _shapes(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Return (channels, side) of every stage's map of a square image, without changing anything."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    with torch.no_grad():
        maps = feature_maps(network, torch.zeros(1, 3, _SIDE, _SIDE))
    for module, training in modes.items():
        module.training = training
    return {name: (found.shape[1], found.shape[-1]) for name, found in maps.items()}
