"""Parameters of random views, drawn for a batch, each sample's independent of the others.

Both ways to make views (`core.data.views`) take their parameters from here.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carryover.core.data.config import BlurConfig, JitterConfig, ViewConfig
from carryover.core.data.draws import Keys, uniforms

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_CROP_ATTEMPTS = 10
# Where each parameter's numbers begin in a key's sequence: a recipe without blur crops as one with it does.
_AREA, _RATIO, _PLACE, _FLIP, _JITTER, _ORDER, _GRAY, _BLUR, _SOLARIZE = 0, 10, 20, 22, 23, 28, 32, 33, 35
_DRAWN = 36

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclass(frozen=True)
class ViewParameters:
    """The parameters of b views; every array has b rows.

    Applied in the order of the fields: crop and resize, color jitter, grayscale, blur, solarisation; the
    flip commutes with all of them.

    Attributes
    ----------
    top, left, height, width
        The crop, in pixels of the image.
    flip, jitter, grayscale, solarize
        Whether each is done.
    order
        (b, 4): the jitter's operations (BRIGHTNESS, CONTRAST, SATURATION, HUE) in the order of their doing.
    factors
        (b, 4): brightness, contrast and saturation factors around 1, hue shift around 0 in turns.
    sigma
        Standard deviation of the blur in pixels; 0: none.
    """

    top: Ints
    left: Ints
    height: Ints
    width: Ints
    flip: Flags
    jitter: Flags
    order: Ints
    factors: Floats
    grayscale: Flags
    sigma: Floats
    solarize: Flags

    def __len__(self) -> int:
        return len(self.top)

    def rows(self, at: slice | Ints) -> "ViewParameters":
        """Return the parameters of some of the views, in the order asked for."""
        return ViewParameters(**{name: getattr(self, name)[at] for name in self.__dataclass_fields__})


def draw_view(config: ViewConfig, key: Keys, height: Ints, width: Ints) -> ViewParameters:
    """Draw the parameters of one view of each of b images of the given sizes, (b,) each.

    The distributions are those of torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter (in
    RandomApply), RandomGrayscale, GaussianBlur (in RandomApply) and RandomSolarize.
    """
    u = uniforms(key, _DRAWN)
    top, left, crop_height, crop_width = _crop(config, u, height, width)
    jitter, order, factors = _jitter(config.jitter, u)
    return ViewParameters(
        top=top,
        left=left,
        height=crop_height,
        width=crop_width,
        flip=u[:, _FLIP] < config.flip,
        jitter=jitter,
        order=order,
        factors=factors,
        grayscale=u[:, _GRAY] < config.grayscale,
        sigma=_sigma(config.blur, u),
        solarize=u[:, _SOLARIZE] < config.solarize,
    )


def _crop(config: ViewConfig, u: Floats, height: Ints, width: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    if config.scale is None:
        side = np.minimum(height, width)
        return (height - side) // 2, (width - side) // 2, side, side
    low, high = config.scale
    area = (height * width)[:, None] * (low + (high - low) * u[:, _AREA : _AREA + _CROP_ATTEMPTS])
    log_low, log_high = np.log(config.ratio)
    ratio = np.exp(log_low + (log_high - log_low) * u[:, _RATIO : _RATIO + _CROP_ATTEMPTS])
    w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    h = np.rint(np.sqrt(area / ratio)).astype(np.int64)

    fits = (w > 0) & (h > 0) & (w <= width[:, None]) & (h <= height[:, None])
    first = fits.argmax(1)[:, None]
    fallback_h, fallback_w = _largest_of_ratio(config.ratio, height, width)
    some = fits.any(1)
    h = np.where(some, np.take_along_axis(h, first, 1)[:, 0], fallback_h)
    w = np.where(some, np.take_along_axis(w, first, 1)[:, 0], fallback_w)
    top = np.where(some, (u[:, _PLACE] * (height - h + 1)).astype(np.int64), (height - h) // 2)
    left = np.where(some, (u[:, _PLACE + 1] * (width - w + 1)).astype(np.int64), (width - w) // 2)
    return top, left, h, w


def _largest_of_ratio(ratio: tuple[float, float], height: Ints, width: Ints) -> tuple[Ints, Ints]:
    """Return the sides of the largest crop within the range of aspect ratios (as RandomResizedCrop does)."""
    h = np.minimum(height, np.rint(width / ratio[0]).astype(np.int64))
    w = np.minimum(width, np.rint(height * ratio[1]).astype(np.int64))
    return np.maximum(h, 1), np.maximum(w, 1)


def _jitter(config: JitterConfig | None, u: Floats) -> tuple[Flags, Ints, Floats]:
    b = len(u)
    if config is None:
        neutral = np.tile([1.0, 1.0, 1.0, 0.0], (b, 1))
        return np.zeros(b, bool), np.tile(np.arange(4), (b, 1)), neutral
    strengths = (config.brightness, config.contrast, config.saturation)
    low = np.array([max(0.0, 1 - s) for s in strengths] + [-config.hue])
    high = np.array([1 + s for s in strengths] + [config.hue])
    factors = low + (high - low) * u[:, _JITTER + 1 : _JITTER + 5]
    order = np.argsort(u[:, _ORDER : _ORDER + 4], axis=1)
    return u[:, _JITTER] < config.p, order, factors


def _sigma(config: BlurConfig | None, u: Floats) -> Floats:
    if config is None:
        return np.zeros(len(u))
    low, high = config.sigma
    return np.where(u[:, _BLUR] < config.p, low + (high - low) * u[:, _BLUR + 1], 0.0)
