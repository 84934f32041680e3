"""Paint for the procedural shapes: backgrounds, and fills whose colors say nothing of the class."""

import colorsys

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

_SUPERSAMPLING = 3


WEAVES = (
    "plain",
    "stripes",
    "checks",
    "rings",
    "dots",
    "fine stripes",
    "spokes",
    "fine checks",
    "waves",
    "speckle",
)


def background(rng: Generator, size: int) -> np.ndarray:
    """Return a canvas (size, size, 3), float 0..255: a smooth gradient of two muted colors, with clutter."""
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    weight = 0.5 + (x * np.cos(angle) + y * np.sin(angle)) / np.sqrt(2)
    one, other = _color(rng, 0.05, 0.4), _color(rng, 0.05, 0.4)
    canvas = one + (other - one) * weight[..., None]
    for _ in range(rng.integers(1, 4)):
        # Straight lines and blotches: edges that belong to no shape.
        if rng.random() < 0.5:
            _line(canvas, rng)
        else:
            _blotch(canvas, rng)
    return canvas


def paint(canvas: np.ndarray, polygon: np.ndarray, weave: str, rng: Generator) -> None:
    """Fill `polygon` (n, 2), in pixels, on the canvas in place: `weave` in two colors drawn at random."""
    size = canvas.shape[0]
    light, dark = _color(rng, 0.3, 1.0), _color(rng, 0.3, 1.0)
    # The two colors differ in brightness, so that a weave is there to be seen.
    light, dark = light * (235 / light.max()), dark * (90 / dark.max())
    weight = _weave(weave, rng, size, polygon.mean(axis=0))
    _blend(canvas, light + (dark - light) * weight[..., None], _coverage(polygon, size))


def _coverage(polygon: np.ndarray, size: int) -> np.ndarray:
    """Return how much of each pixel lies inside `polygon`, (size, size) in 0..1."""
    large = Image.new("L", (size * _SUPERSAMPLING, size * _SUPERSAMPLING))
    ImageDraw.Draw(large).polygon([(float(x), float(y)) for x, y in polygon * _SUPERSAMPLING], fill=255)
    return np.asarray(large.resize((size, size), Image.Resampling.BOX), dtype=np.float64) / 255


def _blend(canvas: np.ndarray, paint_: np.ndarray, coverage: np.ndarray) -> None:
    canvas += (paint_ - canvas) * coverage[..., None]


def _color(rng: Generator, low: float, high: float) -> np.ndarray:
    hue, saturation, value = rng.random(), rng.uniform(low, high), rng.uniform(0.25, 0.95)
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def _weave(name: str, rng: Generator, size: int, center: np.ndarray) -> np.ndarray:
    """Return how much of the second color each pixel has, (size, size) in 0..1, at a random angle."""
    y, x = (np.mgrid[0:size, 0:size] - center[::-1, None, None]) / 64
    angle, phase = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    around = 2 * np.pi * rng.uniform(0.9, 1.1)
    if name == "plain":
        return np.full_like(u, 0.1)
    if name == "speckle":
        return np.asarray(rng.random((size, size)) < 0.5, dtype=np.float64)
    waves = {
        "stripes": np.sin(around * 7 * u + phase),
        "fine stripes": np.sin(around * 14 * u + phase),
        "checks": np.sin(around * 6 * u) * np.sin(around * 6 * v),
        "fine checks": np.sin(around * 12 * u) * np.sin(around * 12 * v),
        "rings": np.sin(around * 9 * np.hypot(u, v) + phase),
        "dots": np.cos(around * 8 * u) + np.cos(around * 8 * v) - 1.0,
        "spokes": np.sin(8 * np.arctan2(v, u) + phase),
        "waves": np.sin(around * 8 * u + 2.5 * np.sin(around * 5 * v)),
    }
    return 0.5 + 0.5 * np.clip(3 * waves[name], -1, 1)


def _line(canvas: np.ndarray, rng: Generator) -> None:
    size = canvas.shape[0]
    start, end = rng.uniform(0, size, size=(2, 2))
    along = (end - start) / max(float(np.hypot(*(end - start))), 1e-6)
    across = np.array([-along[1], along[0]]) * rng.uniform(0.5, 1.5)
    corners = np.array([start + across, end + across, end - across, start - across])
    _blend(canvas, _color(rng, 0.1, 0.7) + np.zeros_like(canvas), _coverage(corners, size) * 0.7)


def _blotch(canvas: np.ndarray, rng: Generator) -> None:
    size = canvas.shape[0]
    y, x = np.mgrid[0:size, 0:size]
    center, radius = rng.uniform(0, size, size=2), rng.uniform(0.05, 0.25) * size
    coverage = np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / (2 * radius**2))
    _blend(canvas, _color(rng, 0.1, 0.7) + np.zeros_like(canvas), coverage * rng.uniform(0.3, 0.8))
