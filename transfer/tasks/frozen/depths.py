"""At which depths of a backbone features are read: its pooled output, a stage's maps averaged, or a grid."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from carryover.configs import UserError
from carryover.core.backbones.build import feature_maps

POOLED = "pooled"
_GRID = re.compile(r"pool([1-9][0-9]*)")


def pooled(backbone: nn.Module, x: Tensor, depths: Sequence[str]) -> dict[str, Tensor]:
    """Return features (B, D) of images `x` (B, 3, H, W) at each depth, all from one forward pass.

    "pooled" is the backbone's own output; "pool6" the last stage's maps, averaged over every window of 6 x 6
    cells, one cell apart (over all of a map that is smaller), and flattened; any other name is one of
    `core.backbones.build.feature_maps`'s, averaged over the image.

    Raises UserError naming a depth that the backbone does not have.
    """
    if list(depths) == [POOLED]:
        return {POOLED: backbone(x)}
    maps = feature_maps(backbone, x)
    last = list(maps)[-1]
    found = {}
    for depth in depths:
        if grid := _GRID.fullmatch(depth):
            found[depth] = _windows(maps[last], int(grid[1]))
            continue
        name = last if depth == POOLED else depth
        if name not in maps:
            raise UserError(f"depth '{depth}': this backbone has {', '.join([POOLED, 'pool6', *maps])}")
        found[depth] = torch.mean(maps[name], dim=(2, 3))
    return found


def _windows(maps: Tensor, side: int) -> Tensor:
    """Average maps (B, C, H, W) over windows of `side` cells: (B, C (H - side + 1) (W - side + 1))."""
    window = [min(side, length) for length in maps.shape[2:]]
    return avg_pool2d(maps.float(), window, stride=1).flatten(1)
