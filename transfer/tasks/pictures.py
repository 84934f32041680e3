"""Shared parts of the sample images of all tasks."""

import numpy as np

# Okabe and Ito's palette, distinguishable with any color vision; truth is drawn in white.
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
SHORT_EDGE = 320
"""Pixels that small images are enlarged to, so that lines and letters keep their size."""


def evenly(images: int, count: int) -> list[int]:
    """Choose `count` of so many images (or all, if they are fewer) evenly by number."""
    chosen: list[int] = np.linspace(0, images - 1, min(count, images)).astype(int).tolist()
    return chosen
