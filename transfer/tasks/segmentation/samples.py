"""Pictures for the report: test images painted with what was found in them."""

import colorsys
from pathlib import Path

import numpy as np
from PIL import Image

from carryover.core.data.masks.dataset import IGNORED, SegmentationImage
from carryover.transfer.tasks.pictures import COLORS, SHORT_EDGE
from carryover.transfer.tasks.segmentation.transforms import load_image

_OPACITY = 0.55


def draw_sample(source: SegmentationImage, found: np.ndarray, truth: np.ndarray, directory: Path) -> Path:
    """Paint an image's pixels by the class found, outline the true regions in white, write it as PNG.

    found, truth: (height, width) labels.
    """
    pixels = np.asarray(load_image(source), dtype=np.float32)
    painted = (1 - _OPACITY) * pixels + _OPACITY * _palette()[found]
    painted[_edges(truth)] = 255
    picture = Image.fromarray(painted.astype(np.uint8))
    zoom = max(1.0, SHORT_EDGE / min(picture.size))
    picture = picture.resize((round(picture.width * zoom), round(picture.height * zoom)))
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{source.id}.png"
    picture.save(path)
    return path


def _palette() -> np.ndarray:
    """Return a color a label, (256, 3): seven that are easy to distinguish, then hues far from each other."""
    fixed = [tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in COLORS]
    golden = [colorsys.hsv_to_rgb(0.618034 * i % 1, 0.65, 0.9) for i in range(256 - len(fixed))]
    return np.array(fixed + [tuple(255 * v for v in c) for c in golden], dtype=np.float32)


def _edges(truth: np.ndarray) -> np.ndarray:
    edges = np.zeros(truth.shape, dtype=bool)
    edges[:-1] |= truth[:-1] != truth[1:]
    edges[:, :-1] |= truth[:, :-1] != truth[:, 1:]
    return edges & (truth != IGNORED)
