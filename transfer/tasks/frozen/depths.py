"""At which depths of a backbone features are read: its pooled output, a stage averaged, a grid, or tokens."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from carryover.configs import UserError
from carryover.core.backbones.build import feature_maps

POOLED = "pooled"
_GRID = re.compile(r"pool([1-9][0-9]*)")
_TOKEN = re.compile(r"mean|cls(@\d+)?(\+mean)?")


def pooled(backbone: nn.Module, x: Tensor, depths: Sequence[str]) -> dict[str, Tensor]:
    """Return features (B, D) of images `x` (B, 3, H, W) at each depth.

    "pooled" is the backbone's own output; "pool6" the last stage's maps, averaged over every window of 6 x 6
    cells, one cell apart (over all of a map that is smaller), and flattened. Of a vision transformer "cls",
    "mean", "cls+mean", "cls@4" and "cls@4+mean" are those of `core.backbones.timm_network`. Any other name is
    one of `core.backbones.build.feature_maps`'s, averaged over the image. All maps come from one forward
    pass, all tokens from another.

    Raises UserError naming a depth that the backbone does not have.
    """
    if list(depths) == [POOLED]:
        return {POOLED: backbone(x)}
    network: Any = backbone
    vectors: tuple[str, ...] = getattr(backbone, "vector_names", None) or ()
    tokens = [d for d in depths if vectors and _TOKEN.fullmatch(d)]
    found: dict[str, Tensor] = network.vectors(x, tokens) if tokens else {}
    of_maps = [d for d in depths if d not in found]
    if POOLED in of_maps and not getattr(backbone, "pools_last_stage", True):
        found[POOLED] = backbone(x)
        of_maps.remove(POOLED)
    maps = feature_maps(backbone, x) if of_maps else {}
    for depth in of_maps:
        last = list(maps)[-1]
        if grid := _GRID.fullmatch(depth):
            found[depth] = _windows(maps[last], int(grid[1]))
            continue
        name = last if depth == POOLED else depth
        if name not in maps:
            own = [POOLED, "pool6", *vectors, *maps]
            raise UserError(f"depth '{depth}': this backbone has {', '.join(own)}")
        found[depth] = torch.mean(maps[name], dim=(2, 3))
    return {depth: found[depth] for depth in depths}


def _windows(maps: Tensor, side: int) -> Tensor:
    """Average maps (B, C, H, W) over windows of `side` cells: (B, C (H - side + 1) (W - side + 1))."""
    window = [min(side, length) for length in maps.shape[2:]]
    return avg_pool2d(maps.float(), window, stride=1).flatten(1)
