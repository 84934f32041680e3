"""Images into views: random ones, of a decoded batch or image by image, and the center."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from carryover.core.data.augment import HUE, Ints, ViewParameters
from carryover.core.data.config import TestViewConfig, ViewConfig
from carryover.core.data.recolor import SCRATCH, recolor
from carryover.core.data.resample import resampled, resampling
from carryover.core.training.device import copied_to

# Pixels of a plane of several images that stay in a CPU's cache while they are worked on.
_BLOCK = 2**18


def batch_views(images: Tensor, config: ViewConfig, drawn: ViewParameters) -> Tensor:
    """Make one view of each image, uint8 (b, 3, H, W), together float32 in [0, 1] (b, 3, size, size).

    On the images' device. Agrees with torchvision's functionals on float images: antialiased resizing,
    reflected borders of the blur.
    """
    _, _, height, width = images.shape
    cubic = config.interpolation == "bicubic"

    def crop(rows: Ints, own: ViewParameters) -> Tensor:
        some = images[copied_to(torch.from_numpy(rows), images.device)]
        x = some.transpose(0, 1).to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)
        no = np.zeros(len(own), bool)
        down = resampling(own.top, own.height, height, config.size, no, x.device, cubic)
        across = resampling(own.left, own.width, width, config.size, own.flip, x.device, cubic)
        made = resampled(x, down, across)
        return made.clamp_(0, 1) if cubic else made

    return _made(crop, config, drawn, images.device, torch.float32)


def image_views(
    images: Sequence[Tensor],
    config: ViewConfig,
    drawn: ViewParameters,
    policy: Callable[[int, Tensor], Tensor] | None = None,
) -> Tensor:
    """Make one view of each image, uint8 (3, H_i, W_i) on the CPU, together uint8 (b, 3, size, size).

    As `batch_views`, but the crop, resized by torchvision, is rounded to eight bits, and so is the view.
    `policy` changes the flipped crop, uint8 (3, size, size), of a row.
    """
    size = [config.size, config.size]
    interpolation = InterpolationMode(config.interpolation)

    block = torch.empty(3, _block_length(config.size), *size)

    def crop(rows: Ints, own: ViewParameters) -> Tensor:
        x = block[:, : len(rows)]
        for i, row in enumerate(rows.tolist()):
            box = [int(side[i]) for side in (own.top, own.left, own.height, own.width)]
            view = F.resized_crop(images[row], *box, size=size, interpolation=interpolation, antialias=True)
            view = F.horizontal_flip(view) if own.flip[i] else view
            x[:, i].copy_(view if policy is None else policy(row, view))
        return x.mul_(1 / 255)

    return _made(crop, config, drawn, torch.device("cpu"), torch.uint8)


def center_view(images: Tensor, config: TestViewConfig) -> Tensor:
    """Resize the shorter side of images (..., 3, H, W) and take the center, (..., 3, size, size).

    With `config.whole` all of the resized image is taken, resized to the square.
    """
    interpolation, square = InterpolationMode(config.interpolation), [config.size, config.size]
    resized = F.resize(images, [config.resize], interpolation, antialias=True)
    if config.whole:
        return F.resize(resized, square, interpolation, antialias=True)
    return F.center_crop(resized, square)


def _made(
    crop: Callable[[Ints, ViewParameters], Tensor],
    config: ViewConfig,
    drawn: ViewParameters,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Make all views in blocks, (b, 3, size, size) of `dtype`: float32 in [0, 1], or uint8, rounded.

    `crop` returns the crops of some rows of the batch, float32 (3, n, size, size) in [0, 1].
    """
    b, size = len(drawn), config.size
    # Images whose hue is turned at the same place among the other color operations are made together; those
    # that are blurred lie side by side.
    hue_place = np.where(drawn.jitter, (drawn.order == HUE).argmax(1), -1)
    order = np.lexsort((drawn.grayscale, drawn.sigma > 0, hue_place))
    drawn, hue_place = drawn.rows(order), hue_place[order]
    radius = 0 if config.blur is None else config.blur.radius
    block = min(b, _block_length(size)) if device.type == "cpu" else b
    scratch = torch.empty(SCRATCH, block, size, size, device=device)
    views = torch.empty(b, 3, size, size, device=device, dtype=dtype)
    start = 0
    while start < b:
        stop = min(start + block, int(np.searchsorted(hue_place, hue_place[start], side="right")))
        rows, own = order[start:stop], drawn.rows(slice(start, stop))
        x = crop(rows, own)
        recolor(x, own, int(hue_place[start]), radius, scratch[:, : stop - start])
        if dtype == torch.uint8:
            x.mul_(255).round_()
        if device.type == "cpu":
            # One by one: assigning through an index is ten times slower there.
            for i, row in enumerate(rows.tolist()):
                views[row].copy_(x[:, i])
        else:
            views[copied_to(torch.from_numpy(rows), device)] = x.transpose(0, 1)
        start = stop
    return views


def _block_length(size: int) -> int:
    """Return how many views of a side are made together on a CPU."""
    return max(1, _BLOCK // size**2)
