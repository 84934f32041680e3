"""CutMix (Yun et al. 2019): each image of a batch gets a patch of another one, as UniGrad uses it.

"We cut patches from this batch with shuffled order, and paste them onto the original batch" (unigrad_arxiv
5.2). Each image has a box of its own. What is done with the mixed images' loss is the method's.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from carryover.core.data.config import CutMixConfig
from carryover.core.data.draws import keys, uniforms

_CUTMIX = 3


@dataclass(frozen=True)
class CutMix:
    """Mixing of the b images of a batch.

    Attributes
    ----------
    partner
        Row of the batch that each image's patch comes from, int64 (b,): a permutation.
    box
        The patch: left, top, right, bottom in pixels, right and bottom exclusive, int64 (b, 4).
    kept
        Area of each mixed image that is its own, float32 (b,) in [0, 1].
    """

    partner: Tensor
    box: Tensor
    kept: Tensor


def draw_cutmix(config: CutMixConfig, seed: int, step: int, index: Tensor, size: int) -> CutMix:
    """Draw patches for the images `index` (b,) of one step, whose views are `size` pixels wide and high.

    As torchvision's CutMix draws them: 1 - area ratio from Beta(alpha, alpha), the center anywhere, the patch
    cut off at the borders. A function of its arguments; on `index`'s device.
    """
    key = keys(seed, _CUTMIX, step, index.cpu().numpy())
    u = uniforms(key, 3)
    half = (0.5 * np.sqrt(1 - betaincinv(config.alpha, config.alpha, u[:, 0])) * size).astype(np.int64)
    center = (u[:, 1:] * size).astype(np.int64)
    low = np.maximum(center - half[:, None], 0)
    high = np.minimum(center + half[:, None], size)
    kept = 1 - (high - low).prod(1) / size**2
    return CutMix(
        partner=torch.from_numpy(np.argsort(key, kind="stable")).to(index.device),
        box=torch.from_numpy(np.concatenate([low, high], axis=1)).to(index.device),
        kept=torch.from_numpy(kept).to(index.device, torch.float32),
    )


def paste(views: Tensor, mix: CutMix) -> Tensor:
    """Return the views (b, 3, size, size) with their patches pasted in."""
    place = torch.arange(views.shape[-1], device=views.device)
    left, top, right, bottom = mix.box[:, :, None].unbind(1)
    rows = (place >= top) & (place < bottom)
    columns = (place >= left) & (place < right)
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, views[mix.partner], views)
