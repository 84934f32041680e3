"""Cropping, resizing, flipping and blurring as matrix products, each image with its own matrices.

All of them are linear along rows and along columns: two products a channel, ``down @ image @ across.T``.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from carryover.core.data.augment import Flags, Floats, Ints
from carryover.core.training.device import copied_to

# Pixels of a side from which a blur's shifted sums are faster on a CPU than its products.
_SUMS_FROM = 112


def resampled(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Return down @ x @ across.T of each channel and image: (3, b, H, W) to (3, b, h, w)."""
    made = x.new_empty(3, x.shape[1], down.shape[1], across.shape[1])
    wide = x.new_empty(x.shape[1], x.shape[2], across.shape[1])
    for plane, into in zip(x, made):
        torch.bmm(down, torch.bmm(plane, across.transpose(1, 2), out=wide), out=into)
    return made


def resampling(
    start: Ints,
    length: Ints,
    size: int,
    out: int,
    flip: Flags,
    device: torch.device,
    cubic: bool = False,
) -> Tensor:
    """Return the matrices (b, out, size) that cut [start, start + length) out, resize and flip it.

    The weights are triangles around each output pixel's center, as wide as one pixel of the larger of the two
    grids, cut off at the crop's ends: bilinear interpolation with antialiasing. With `cubic` they are Keys'
    cubic kernel (a = -1/2), twice as wide, as in PIL and in torch's antialiased resizing.
    """
    place = np.arange(out) + 0.5
    places = np.where(flip[:, None], place[::-1], place)
    scale = length[:, None] / out
    center = copied_to(torch.from_numpy(start[:, None] + scale * places), device)[:, :, None]
    first = copied_to(torch.from_numpy(start), device)[:, None, None]
    last = copied_to(torch.from_numpy(start + length - 1), device)[:, None, None]
    if (length <= out).all() and not cubic:
        # Enlarging: two neighbors each, found directly.
        center = torch.minimum(torch.maximum(center - 0.5, first), last)
        left = center.floor()
        right_weight = (center - left).float()
        at = left.long()
        matrix = torch.zeros(len(start), out, size, device=device)
        # Where both neighbors are the last pixel, the weight that counts is written second.
        matrix.scatter_(2, (at + 1).clamp_(max=size - 1), right_weight)
        return matrix.scatter_(2, at, 1 - right_weight)
    pixel = torch.arange(size, device=device)
    width = copied_to(torch.from_numpy(np.maximum(scale, 1.0)), device)[:, :, None]
    distance = (pixel + 0.5 - center).abs_() / width
    weight = (_cubic(distance) if cubic else (1 - distance).clamp_(min=0)).float()
    weight *= (pixel >= first) & (pixel <= last)
    return weight / weight.sum(2, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Return Keys' kernel (1981, a = -1/2) at the distances x >= 0."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def blurred(x: Tensor, sigma: Floats, radius: int) -> Tensor:
    """Blur each image of x, (3, b, size, size), by its own sigma, borders reflected.

    As matrix products, or, where a CPU does so sooner, as sums of shifted images.
    """
    offset = torch.arange(-radius, radius + 1)
    exponent = -((offset / torch.from_numpy(sigma)[:, None]) ** 2) / 2
    kernel = copied_to(exponent.softmax(1).float(), x.device)
    size = x.shape[-1]
    if x.device.type == "cpu" and size >= _SUMS_FROM:
        return _blurred_by_sums(x, kernel)
    matrix = (kernel @ _reflected_shifts(size, radius, x.device)).view(-1, size, size)
    return resampled(x, matrix, matrix)


def _blurred_by_sums(x: Tensor, kernels: Tensor) -> Tensor:
    """Blur each image of x, (3, b, H, W), down and across by its own row of `kernels`, (b, 2 radius + 1).

    The weights that vanish beside the largest one in float32 are left out.
    """
    made = torch.empty_like(x)
    for image, into, kernel in zip(x.unbind(1), made.unbind(1), kernels):
        half = kernel[len(kernel) // 2 :]
        weights = half[half > half[0] * torch.finfo(torch.float32).eps / 4].tolist()
        _summed(_summed(image, weights, 1, torch.empty_like(into)), weights, 2, into)
    return made


def _summed(x: Tensor, weights: list[float], dim: int, out: Tensor) -> Tensor:
    """Convolve x along `dim` with a symmetric kernel, of which `weights` is the half from its middle on."""
    size, radius = x.shape[dim], len(weights) - 1
    before = x.narrow(dim, 1, radius).flip(dim)
    after = x.narrow(dim, size - 1 - radius, radius).flip(dim)
    padded = torch.cat([before, x, after], dim)
    torch.mul(x, weights[0], out=out)
    for t in range(1, radius + 1):
        out.add_(padded.narrow(dim, radius - t, size), alpha=weights[t])
        out.add_(padded.narrow(dim, radius + t, size), alpha=weights[t])
    return out


@cache
def _reflected_shifts(size: int, radius: int, device: torch.device) -> Tensor:
    """Return for each offset in -radius..radius the matrix that shifts by it, (2 radius + 1, size * size)."""
    position = torch.arange(size)
    shifts = torch.zeros(2 * radius + 1, size, size)
    for t in range(-radius, radius + 1):
        at = (position + t).abs()
        shifts[t + radius, position, torch.minimum(at, 2 * (size - 1) - at)] = 1
    return shifts.view(2 * radius + 1, -1).to(device)
