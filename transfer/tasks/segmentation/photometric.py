"""Disturbed colors: SSD's photometric distortion (Liu et al. 2016, Sec. 2.2), as in mmseg's recipes."""

import numpy as np
from PIL import Image

BRIGHTNESS = 32.0
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18 / 180
"""Largest change of the hue, as a part of the circle (mmseg: 18 of OpenCV's 180)."""


def distort(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue of (H, W, 3) uint8 RGB, each with probability 1/2.

    Contrast comes second or last, as often.
    """
    if rng.random() < 0.5:
        pixels = _scaled(pixels, 1.0, rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast_last = rng.random() < 0.5
    contrast = rng.uniform(*CONTRAST) if rng.random() < 0.5 else None
    if contrast is not None and not contrast_last:
        pixels = _scaled(pixels, contrast, 0.0)
    saturation = rng.uniform(*SATURATION) if rng.random() < 0.5 else None
    hue = rng.uniform(-HUE, HUE) if rng.random() < 0.5 else None
    if saturation is not None or hue is not None:
        pixels = _colored(pixels, saturation or 1.0, hue or 0.0)
    if contrast is not None and contrast_last:
        pixels = _scaled(pixels, contrast, 0.0)
    return pixels


def _scaled(values: np.ndarray, factor: float, offset: float) -> np.ndarray:
    return np.clip(values.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)


def _colored(pixels: np.ndarray, saturation: float, hue: float) -> np.ndarray:
    hsv = np.array(Image.fromarray(pixels).convert("HSV"))
    # PIL's hue is a byte, and wraps around as bytes do.
    hsv[..., 0] += np.uint8(round(hue * 256) % 256)
    hsv[..., 1] = _scaled(hsv[..., 1], saturation, 0.0)
    planes = [Image.fromarray(np.ascontiguousarray(hsv[..., i])) for i in range(3)]
    return np.asarray(Image.merge("HSV", planes).convert("RGB"))
