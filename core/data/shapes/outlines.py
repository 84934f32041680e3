"""The outlines of the procedural shapes: simple polygons within the unit circle."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.random import Generator


def _regular(corners: int, radius: float = 1.0, turn: float = 0.0) -> np.ndarray:
    angles = 2 * np.pi * np.arange(corners) / corners + turn
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _spokes(points: int, inner: float) -> np.ndarray:
    outline = _regular(2 * points, turn=-np.pi / 2)
    outline[1::2] *= inner
    return outline


def _crescent() -> np.ndarray:
    outer = np.linspace(0.25 * np.pi, 1.75 * np.pi, 40)
    outside = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    tip = outside[0]
    center = 0.72
    angle = np.arctan2(tip[1], tip[0] - center)
    inner = np.linspace(2 * np.pi - angle, angle, 30)
    radius = np.hypot(tip[0] - center, tip[1])
    inside = np.stack([center + radius * np.cos(inner), radius * np.sin(inner)], axis=1)
    return np.concatenate([outside, inside])


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -(y + 2)], axis=1) / 17


def _gear(teeth: int) -> np.ndarray:
    outline = _regular(4 * teeth)
    outline[0::4] *= 0.68
    outline[3::4] *= 0.68
    return outline


_CROSS = np.array(
    [
        (-1, -3),
        (1, -3),
        (1, -1),
        (3, -1),
        (3, 1),
        (1, 1),
        (1, 3),
        (-1, 3),
        (-1, 1),
        (-3, 1),
        (-3, -1),
        (-1, -1),
    ]
)
_ARROW = np.array([(-3, -1), (0.4, -1), (0.4, -2.4), (3.2, 0), (0.4, 2.4), (0.4, 1), (-3, 1)])
_BOLT = np.array([(0.8, -3.2), (-1.9, 0.5), (-0.2, 0.5), (-0.9, 3.2), (1.9, -0.8), (0.2, -0.8)])

OUTLINES: Mapping[str, np.ndarray] = MappingProxyType(
    {
        "disk": _regular(40, 0.85),
        "star": _spokes(5, 0.42),
        "triangle": _regular(3, turn=-np.pi / 2),
        "cross": _CROSS / np.hypot(3, 1),
        "square": _regular(4, 0.98, turn=np.pi / 4),
        "crescent": _crescent(),
        "heart": _heart(),
        "arrow": _ARROW / 3.2,
        "bolt": _BOLT / 3.35,
        "gear": _gear(8),
    }
)


def place(outline: np.ndarray, rng: Generator, size: int, low: float, high: float) -> np.ndarray:
    """Return `outline` somewhere on a canvas of `size` pixels: scaled, rotated, slightly squeezed, whole.

    `low` and `high` bound the radius as a fraction of the canvas. Shape (n, 2), in pixels.
    """
    radius = rng.uniform(low, high) * size
    angle = rng.uniform(0, 2 * np.pi)
    squeeze = rng.uniform(0.8, 1.0)
    cos, sin = np.cos(angle), np.sin(angle)
    turned = (outline * [1.0, squeeze]) @ np.array([[cos, sin], [-sin, cos]])
    center = rng.uniform(radius, size - radius, size=2)
    return np.clip(turned * radius + center, 0, size)
