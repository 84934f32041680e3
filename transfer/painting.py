"""Paint for the procedural shapes: textured backgrounds and fills whose colours say nothing of the class."""

import colorsys

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

_SUPERSAMPLING = 3


def background(rng: Generator, size: int) -> np.ndarray:
    """Return a canvas (size, size, 3), float 0..255: two muted colours in a gradient, stripes or blotches."""
    canvas = _texture(rng, size, _colour(rng, 0.1, 0.5), _colour(rng, 0.1, 0.5))
    for _ in range(rng.integers(2, 6)):
        # Straight lines and blotches: edges that belong to no shape.
        if rng.random() < 0.5:
            _line(canvas, rng)
        else:
            _blotch(canvas, rng)
    return canvas


def paint(canvas: np.ndarray, polygon: np.ndarray, rng: Generator) -> None:
    """Fill `polygon` (n, 2), in pixels, on the canvas in place, with a texture of two colours of its own."""
    size = canvas.shape[0]
    fill = _texture(rng, size, _colour(rng, 0.3, 1.0), _colour(rng, 0.3, 1.0))
    _blend(canvas, fill, _coverage(polygon, size))


def _coverage(polygon: np.ndarray, size: int) -> np.ndarray:
    """Return how much of each pixel lies inside `polygon`, (size, size) in 0..1."""
    large = Image.new("L", (size * _SUPERSAMPLING, size * _SUPERSAMPLING))
    ImageDraw.Draw(large).polygon([(float(x), float(y)) for x, y in polygon * _SUPERSAMPLING], fill=255)
    return np.asarray(large.resize((size, size), Image.Resampling.BOX), dtype=np.float64) / 255


def _blend(canvas: np.ndarray, paint_: np.ndarray, coverage: np.ndarray) -> None:
    canvas += (paint_ - canvas) * coverage[..., None]


def _colour(rng: Generator, low: float, high: float) -> np.ndarray:
    hue, saturation, value = rng.random(), rng.uniform(low, high), rng.uniform(0.25, 0.95)
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def _texture(rng: Generator, size: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mix two colours over the canvas: smoothly, in stripes, in checks, or hardly at all."""
    y, x = np.mgrid[0:size, 0:size] / 64
    angle = rng.uniform(0, 2 * np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kind = rng.integers(4)
    frequency, phase = rng.uniform(3, 9), rng.uniform(0, 2 * np.pi)
    if kind == 0:
        weight = np.clip(u / 2 + 0.5, 0, 1)
    elif kind == 1:
        weight = 0.5 + 0.5 * np.sin(2 * np.pi * frequency * u + phase)
    elif kind == 2:
        weight = 0.5 + 0.5 * np.sin(2 * np.pi * frequency * u + phase) * np.sin(2 * np.pi * frequency * v)
    else:
        weight = np.full_like(u, 0.15)
    strength = rng.uniform(0.3, 0.8)
    return one + (other - one) * (weight * strength)[..., None]


def _line(canvas: np.ndarray, rng: Generator) -> None:
    size = canvas.shape[0]
    start, end = rng.uniform(0, size, size=(2, 2))
    along = (end - start) / max(float(np.hypot(*(end - start))), 1e-6)
    across = np.array([-along[1], along[0]]) * rng.uniform(0.5, 1.5)
    corners = np.array([start + across, end + across, end - across, start - across])
    _blend(canvas, _colour(rng, 0.1, 0.7) + np.zeros_like(canvas), _coverage(corners, size) * 0.7)


def _blotch(canvas: np.ndarray, rng: Generator) -> None:
    size = canvas.shape[0]
    y, x = np.mgrid[0:size, 0:size]
    centre, radius = rng.uniform(0, size, size=2), rng.uniform(0.05, 0.25) * size
    coverage = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * radius**2))
    _blend(canvas, _colour(rng, 0.1, 0.7) + np.zeros_like(canvas), coverage * rng.uniform(0.3, 0.8))
