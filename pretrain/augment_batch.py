"""Random views of whole batches at once, on the CPU or the GPU, each image with its own parameters.

Cropping with resizing is linear along rows and along columns, and so is blurring: each is two small matrix
products an image, ``down @ image @ across.T``. Between them images lie row by row with the channels inside,
(b, H, 3, W), where both products are plain batched ones.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from pretrain.augment import BRIGHTNESS, CONTRAST, HUE, SATURATION, Flags, Floats, Ints, ViewParameters
from pretrain.data_config import ViewConfig

# On a CPU, images are handled in blocks that stay in its cache.
_BLOCK = 32
_LUMA = (0.2989, 0.587, 0.114)


def batch_views(images: Tensor, config: ViewConfig, drawn: ViewParameters) -> Tensor:
    """Make one view of each image, uint8 (b, 3, H, W), together float32 in [0, 1] (b, 3, size, size).

    Agrees with torchvision's functionals on float images (antialiased bilinear resizing, reflected borders).
    """
    b = len(images)
    views = torch.empty(b, 3, config.size, config.size, device=images.device)
    block = _BLOCK if images.device.type == "cpu" else b
    for start in range(0, b, block):
        rows = slice(start, start + block)
        views[rows] = _block(images[rows], config, drawn.rows(rows)).permute(0, 2, 1, 3)
    return views


def _block(images: Tensor, config: ViewConfig, drawn: ViewParameters) -> Tensor:
    x = images.permute(0, 2, 1, 3).to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)
    down = _resampling(drawn.top, drawn.height, images.shape[2], config.size, images.device)
    across = _resampling(drawn.left, drawn.width, images.shape[3], config.size, images.device)
    flip = torch.from_numpy(drawn.flip).to(images.device)[:, None, None]
    x = _apply(x, down, torch.where(flip, across.flip(1), across))
    _jitter(x, drawn)
    _on_some(x, drawn.grayscale, lambda some: _gray(some).expand_as(some))
    if config.blur is not None:
        sigma, radius = drawn.sigma[drawn.sigma > 0], config.blur.radius
        _on_some(x, drawn.sigma > 0, lambda some: _blur(some, sigma, radius))
    _on_some(x, drawn.solarize, lambda some: torch.where(some >= 0.5, 1 - some, some))
    return x


def _on_some(x: Tensor, which: Flags, change: Callable[[Tensor], Tensor]) -> None:
    """Replace the images of x that `which` marks by `change` of them."""
    if which.any():
        at = torch.from_numpy(which.nonzero()[0]).to(x.device)
        x[at] = change(x[at])


def _column(values: Floats, x: Tensor) -> Tensor:
    """Return one number an image as float32 (b, 1, 1, 1) beside x."""
    return torch.from_numpy(values).to(x.device, torch.float32)[:, None, None, None]


def _apply(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Return down @ x @ across.T of each image and channel: (b, H, 3, W) to (b, h, 3, w)."""
    b, height, _, width = x.shape
    x = torch.bmm(x.view(b, height * 3, width), across.transpose(1, 2))
    return torch.bmm(down, x.view(b, height, -1)).view(b, down.shape[1], 3, -1)


def _resampling(start: Ints, length: Ints, size: int, out: int, device: torch.device) -> Tensor:
    """Return the matrices (b, out, size) that cut [start, start + length) out and resize it to `out`.

    The weights are triangles around each output pixel's centre, as wide as one pixel of the larger of the two
    grids, cut off at the crop's ends: bilinear interpolation with antialiasing.
    """
    first = torch.from_numpy(start).to(device, torch.float32)[:, None, None]
    span = torch.from_numpy(length).to(device, torch.float32)[:, None, None]
    scale = span / out
    centre = first + scale * (torch.arange(out, device=device, dtype=torch.float32)[:, None] + 0.5)
    if (length <= out).all():
        # Enlarging: two neighbours each, found directly.
        centre = torch.minimum(torch.maximum(centre - 0.5, first), first + span - 1)
        left = centre.floor()
        right_weight = centre - left
        matrix = torch.zeros(len(start), out, size, device=device)
        at = left.long()
        # Where both neighbours are the last pixel, the weight that counts is written second.
        matrix.scatter_(2, (at + 1).clamp_(max=size - 1), right_weight)
        return matrix.scatter_(2, at, 1 - right_weight)
    pixel = torch.arange(size, device=device, dtype=torch.float32) + 0.5
    weight = (1 - (pixel - centre).abs_() / scale.clamp(min=1)).clamp_(min=0)
    weight *= (pixel > first) & (pixel < first + span)
    return weight / weight.sum(2, keepdim=True)


def _jitter(x: Tensor, drawn: ViewParameters) -> None:
    """Brightness, contrast, saturation and hue, in each image's own order; in place."""
    for place in range(4):
        for operation, change in _OPERATIONS.items():
            which = drawn.jitter & (drawn.order[:, place] == operation)
            factors = drawn.factors[which, operation]
            _on_some(x, which, lambda some, f=factors, c=change: c(some, _column(f, some)))  # type: ignore[misc]


def _gray(x: Tensor) -> Tensor:
    r, g, b = x.unbind(2)
    return (r * _LUMA[0]).add_(g, alpha=_LUMA[1]).add_(b, alpha=_LUMA[2])[:, :, None]


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return x.mul_(factor).clamp_(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    mean = _gray(x).mean((1, 2, 3), keepdim=True)
    return x.mul_(factor).add_((1 - factor) * mean).clamp_(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    gray = _gray(x).mul_(1 - factor)
    return x.mul_(factor).add_(gray).clamp_(0, 1)


def _hue(x: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue by `factor` of a full circle.

    In the hexagon of HSV, with V the largest channel, C the largest less the smallest and h the hue in
    sixths: channel = V - C clamp(min(k, 4 - k), 0, 1), k = (n + h) mod 6, n = 5, 3, 1 for red, green, blue.
    """
    r, g, b = x.permute(2, 0, 1, 3).contiguous()
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    # Products with 0 and 1 in place of torch.where, which is not vectorised on CPUs.
    red = (value == r).float()
    green = (value == g).float().mul_(1 - red)
    blue = 1 - red - green
    sixths = red.mul_(g - b).add_((b - r).mul_(green)).add_((r - g).mul_(blue))
    sixths.div_(chroma + (chroma == 0)).add_(green, alpha=2).add_(blue, alpha=4).add_(factor[:, 0] * 6)
    turned = torch.empty_like(x)
    for channel, n in enumerate((5, 3, 1)):
        k = sixths + n
        k.sub_(torch.floor(k / 6), alpha=6)
        part = torch.minimum(k, 4 - k).clamp_(0, 1)
        torch.sub(value, part.mul_(chroma), out=turned[:, :, channel])
    return turned


_OPERATIONS = {BRIGHTNESS: _brightness, CONTRAST: _contrast, SATURATION: _saturation, HUE: _hue}


def _blur(x: Tensor, sigma: Floats, radius: int) -> Tensor:
    """Blur each image by its own sigma, borders reflected."""
    offset = torch.arange(-radius, radius + 1, dtype=torch.float32)
    exponent = -((offset / torch.from_numpy(sigma).float()[:, None]) ** 2) / 2
    kernel = exponent.softmax(1).to(x.device)
    size = x.shape[1]
    matrix = (kernel @ _reflected_shifts(size, radius, x.device)).view(-1, size, size)
    return _apply(x, matrix, matrix)


@cache
def _reflected_shifts(size: int, radius: int, device: torch.device) -> Tensor:
    """Return for each offset in -radius..radius the matrix that shifts by it, (2 radius + 1, size * size)."""
    position = torch.arange(size)
    shifts = torch.zeros(2 * radius + 1, size, size)
    for t in range(-radius, radius + 1):
        at = (position + t).abs()
        shifts[t + radius, position, torch.minimum(at, 2 * (size - 1) - at)] = 1
    return shifts.view(2 * radius + 1, -1).to(device)
