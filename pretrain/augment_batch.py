"""Random views of whole batches at once, on the CPU or the GPU, each image with its own parameters.

Cropping with resizing is linear along rows and along columns, and so is blurring: each is two small matrix
products a channel, ``down @ image @ across.T``. While a view is made the channels come first, (3, b, H, W):
whole planes without gaps are what torch's elementwise operations are fast on.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from pretrain.augment import CONTRAST, HUE, SATURATION, Floats, Ints, ViewParameters
from pretrain.data_config import ViewConfig

# On a CPU, images are handled in blocks that stay in its cache.
_BLOCK = 32
# Planes that `_turn_hue` works in.
_SCRATCH = 7
_LUMA = (0.2989, 0.587, 0.114)


def batch_views(images: Tensor, config: ViewConfig, drawn: ViewParameters) -> Tensor:
    """Make one view of each image, uint8 (b, 3, H, W), together float32 in [0, 1] (b, 3, size, size).

    Agrees with torchvision's functionals on float images (antialiased bilinear resizing, reflected borders).
    """
    b, device = len(images), images.device
    # Images whose hue is turned at the same place among the other colour operations are made together; those
    # that are blurred lie side by side.
    hue_place = np.where(drawn.jitter, (drawn.order == HUE).argmax(1), -1)
    order = np.lexsort((drawn.grayscale, drawn.sigma > 0, hue_place))
    drawn, hue_place = drawn.rows(order), hue_place[order]
    at = torch.from_numpy(order).to(device)
    views = torch.empty(b, 3, config.size, config.size, device=device)
    block = min(b, _BLOCK) if device.type == "cpu" else b
    # Fresh memory costs more than the arithmetic done in it, so all blocks use the same.
    scratch = torch.empty(_SCRATCH, block, config.size, config.size, device=device)
    start = 0
    while start < b:
        stop = min(start + block, int(np.searchsorted(hue_place, hue_place[start], side="right")))
        own = drawn.rows(slice(start, stop))
        view = _cropped(images[at[start:stop]], config.size, own)
        if hue_place[start] >= 0:
            _jitter(view, own, int(hue_place[start]), scratch[:, : stop - start])
        _finish(view, config, own)
        views[at[start:stop]] = view.transpose(0, 1)
        start = stop
    return views


def _cropped(images: Tensor, size: int, drawn: ViewParameters) -> Tensor:
    """Crop, resize and flip images (b, 3, H, W) to (3, b, size, size)."""
    x = images.transpose(0, 1).to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)
    unflipped = np.zeros(len(drawn), bool)
    down = _resampling(drawn.top, drawn.height, images.shape[2], size, unflipped, images.device)
    across = _resampling(drawn.left, drawn.width, images.shape[3], size, drawn.flip, images.device)
    return _resampled(x, down, across)


def _finish(x: Tensor, config: ViewConfig, drawn: ViewParameters) -> None:
    """Turn some of the views x (3, b, size, size) grey, blur some, solarise some; in place."""
    for some in _runs(drawn.grayscale):
        r, g, b = x[:, some]
        g.copy_(_gray(x[:, some], out=r))
        b.copy_(r)
    for some in _runs(drawn.sigma > 0):
        assert config.blur is not None
        x[:, some] = _blurred(x[:, some], drawn.sigma[some], config.blur.radius)
    for some in _runs(drawn.solarize):
        # Inverting what lies above one half: both halves meet there, so this is 1/2 - |x - 1/2|.
        x[:, some].sub_(0.5).abs_().neg_().add_(0.5)


def _jitter(x: Tensor, drawn: ViewParameters, hue_place: int, scratch: Tensor) -> None:
    """Apply brightness, contrast, saturation and hue, in each image's own order; in place."""
    for place in range(4):
        if place == hue_place:
            _turn_hue(x, _column(drawn.factors[:, HUE], x.device), scratch)
        else:
            operation = drawn.order[:, place]
            factor = np.take_along_axis(drawn.factors, operation[:, None], 1)[:, 0]
            _blend(x, operation, factor, scratch)


def _runs(which: np.ndarray) -> list[slice]:
    """Return the stretches of images that `which` marks."""
    edges = np.flatnonzero(np.diff(which.astype(np.int8), prepend=0, append=0))
    return [slice(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _resampled(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Return down @ x @ across.T of each channel and image: (3, b, H, W) to (3, b, h, w)."""
    made = x.new_empty(3, x.shape[1], down.shape[1], across.shape[1])
    wide = x.new_empty(x.shape[1], x.shape[2], across.shape[1])
    for plane, into in zip(x, made):
        torch.bmm(down, torch.bmm(plane, across.transpose(1, 2), out=wide), out=into)
    return made


def _resampling(
    start: Ints, length: Ints, size: int, out: int, flip: np.ndarray, device: torch.device
) -> Tensor:
    """Return the matrices (b, out, size) that cut [start, start + length) out, resize and flip it.

    The weights are triangles around each output pixel's centre, as wide as one pixel of the larger of the two
    grids, cut off at the crop's ends: bilinear interpolation with antialiasing.
    """
    place = np.arange(out) + 0.5
    places = np.where(np.asarray(flip, bool)[:, None], place[::-1], place)
    scale = length[:, None] / out
    centre = torch.from_numpy(start[:, None] + scale * places).to(device)[:, :, None]
    first = torch.from_numpy(start).to(device)[:, None, None]
    last = torch.from_numpy(start + length - 1).to(device)[:, None, None]
    if (length <= out).all():
        # Enlarging: two neighbours each, found directly.
        centre = torch.minimum(torch.maximum(centre - 0.5, first), last)
        left = centre.floor()
        right_weight = (centre - left).float()
        at = left.long()
        matrix = torch.zeros(len(start), out, size, device=device)
        # Where both neighbours are the last pixel, the weight that counts is written second.
        matrix.scatter_(2, (at + 1).clamp_(max=size - 1), right_weight)
        return matrix.scatter_(2, at, 1 - right_weight)
    pixel = torch.arange(size, device=device)
    width = torch.from_numpy(np.maximum(scale, 1.0)).to(device)[:, :, None]
    weight = (1 - (pixel + 0.5 - centre).abs_() / width).clamp_(min=0).float()
    weight *= (pixel >= first) & (pixel <= last)
    return weight / weight.sum(2, keepdim=True)


def _blend(x: Tensor, operation: Ints, factor: Floats, scratch: Tensor) -> None:
    """Apply each image's own one of brightness, contrast and saturation; in place.

    All three blend: with black, with the mean of the grey image, with the grey image.
    """
    gray = _gray(x, out=scratch[0])
    mean = gray.mean((1, 2), keepdim=True)
    gray.mul_(_column(np.where(operation == SATURATION, 1 - factor, 0.0), x.device))
    gray.add_(mean * _column(np.where(operation == CONTRAST, 1 - factor, 0.0), x.device))
    x.mul_(_column(factor, x.device))
    # Plane by plane: a sum that is broadcast over the channels is twenty times slower on CPUs.
    for plane in x:
        plane.add_(gray)
    x.clamp_(0, 1)


def _turn_hue(x: Tensor, turn: Tensor, scratch: Tensor) -> None:
    """Turn the hue by `turn` of a full circle; in place.

    In the hexagon of HSV, with C the largest channel less the smallest and h the hue in sixths, a channel is
    the smallest plus C times clamp(|h - 3| - 1), clamp(2 - |h - 2|), clamp(2 - |h - 4|) for red, green, blue.
    """
    r, g, b = x
    smallest, chroma, h, part, red, green, blue = scratch
    largest = torch.maximum(torch.maximum(r, g, out=chroma), b, out=chroma)
    torch.minimum(torch.minimum(r, g, out=smallest), b, out=smallest)
    # Which channel is the largest, as zeros and ones in float32: boolean planes are slow on CPUs.
    torch.eq(largest, r, out=red)
    torch.eq(largest, g, out=green).addcmul_(green, red, value=-1)
    torch.sub(1, red, out=blue).sub_(green)
    chroma.sub_(smallest)

    torch.sub(g, b, out=h).mul_(red)
    h.add_(torch.sub(b, r, out=part).mul_(green))
    h.add_(torch.sub(r, g, out=part).mul_(blue))
    h.div_(torch.eq(chroma, 0, out=part).add_(chroma))
    h.add_(green, alpha=2).add_(blue, alpha=4).add_(turn * 6)
    h.sub_(torch.mul(h, 1 / 6, out=part).floor_(), alpha=6)
    for plane, corner, sign, offset in zip(x, (3, 2, 4), (1, -1, -1), (-1, 2, 2)):
        torch.sub(h, corner, out=plane)
        plane.abs_().mul_(sign).add_(offset).clamp_(0, 1).mul_(chroma).add_(smallest)


def _gray(x: Tensor, out: Tensor) -> Tensor:
    r, g, b = x
    return torch.mul(r, _LUMA[0], out=out).add_(g, alpha=_LUMA[1]).add_(b, alpha=_LUMA[2])


def _column(values: Floats, device: torch.device) -> Tensor:
    """Return one number an image as float32 (b, 1, 1)."""
    return torch.from_numpy(values).to(device, torch.float32)[:, None, None]


def _blurred(x: Tensor, sigma: Floats, radius: int) -> Tensor:
    """Blur each image by its own sigma, borders reflected."""
    offset = torch.arange(-radius, radius + 1)
    exponent = -((offset / torch.from_numpy(sigma)[:, None]) ** 2) / 2
    kernel = exponent.softmax(1).to(x.device, torch.float32)
    size = x.shape[-1]
    matrix = (kernel @ _reflected_shifts(size, radius, x.device)).view(-1, size, size)
    return _resampled(x, matrix, matrix)


@cache
def _reflected_shifts(size: int, radius: int, device: torch.device) -> Tensor:
    """Return for each offset in -radius..radius the matrix that shifts by it, (2 radius + 1, size * size)."""
    position = torch.arange(size)
    shifts = torch.zeros(2 * radius + 1, size, size)
    for t in range(-radius, radius + 1):
        at = (position + t).abs()
        shifts[t + radius, position, torch.minimum(at, 2 * (size - 1) - at)] = 1
    return shifts.view(2 * radius + 1, -1).to(device)
