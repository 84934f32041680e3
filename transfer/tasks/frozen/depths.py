"""At which depths of a backbone features are read: its pooled output, or a stage's maps averaged."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from carryover.configs import UserError
from carryover.core.backbones.build import feature_maps

POOLED = "pooled"


def pooled(backbone: nn.Module, x: Tensor, depths: Sequence[str]) -> dict[str, Tensor]:
    """Return features (B, D) of images `x` (B, 3, H, W) at each depth, all from one forward pass.

    "pooled" is the backbone's own output; any other name is one of `core.backbones.build.feature_maps`'s,
    averaged over the image.

    Raises UserError naming a depth that the backbone does not have.
    """
    if list(depths) == [POOLED]:
        return {POOLED: backbone(x)}
    maps = feature_maps(backbone, x)
    last = list(maps)[-1]
    found = {}
    for depth in depths:
        name = last if depth == POOLED else depth
        if name not in maps:
            raise UserError(f"depth '{depth}': this backbone has {', '.join([POOLED, *maps])}")
        found[depth] = torch.mean(maps[name], dim=(2, 3))
    return found
