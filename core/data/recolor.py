"""The color operations of random views, on many images at once, each with its own parameters.

Here channels come first, (3, b, H, W): whole planes without gaps are what torch's elementwise operations are
fast on. Images are float32 in [0, 1] and changed in place; values agree with torchvision's functionals on
float images.
"""

import numpy as np
import torch
from torch import Tensor

from carryover.core.data.augment import CONTRAST, HUE, SATURATION, Flags, Floats, Ints, ViewParameters
from carryover.core.data.resample import blurred
from carryover.core.training.device import copied_to

# Planes (b, H, W) of memory that `recolor` works in.
SCRATCH = 7
_LUMA = (0.2989, 0.587, 0.114)


def recolor(x: Tensor, drawn: ViewParameters, hue_place: int, radius: int, scratch: Tensor) -> None:
    """Jitter the colors, then turn gray, blur and solarise, where it was drawn so; in place.

    Parameters
    ----------
    x
        Cropped images, (3, b, H, W).
    hue_place
        When the hue is turned, 0 to 3, the same for all of these images; -1: their colors are not jittered.
    radius
        Half-width of the blur's kernel.
    scratch
        (SCRATCH, b, H, W): fresh memory for every operation would cost more than the arithmetic does.
    """
    if hue_place >= 0:
        _jitter(x, drawn, hue_place, scratch)
    for some in _runs(drawn.grayscale):
        r, g, b = x[:, some]
        g.copy_(_gray(x[:, some], out=r))
        b.copy_(r)
    for some in _runs(drawn.sigma > 0):
        x[:, some] = blurred(x[:, some], drawn.sigma[some], radius)
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


def _blend(x: Tensor, operation: Ints, factor: Floats, scratch: Tensor) -> None:
    """Apply each image's own one of brightness, contrast and saturation; in place.

    All three blend: with black, with the mean of the gray image, with the gray image.
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
    return copied_to(torch.from_numpy(values).float(), device)[:, None, None]


def _runs(which: Flags) -> list[slice]:
    """Return the stretches of images that `which` marks."""
    edges = np.flatnonzero(np.diff(which.astype(np.int8), prepend=0, append=0))
    return [slice(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
