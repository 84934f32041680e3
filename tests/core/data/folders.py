"""Small image folders for the tests of data sets and of what reads them."""

from pathlib import Path

import numpy as np
from PIL import Image


def draw(path: Path, seed: int = 0, size: tuple[int, int] = (12, 12)) -> Path:
    """Write one image of noise, `size` = (height, width), making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def image_folder(root: Path, per_class: int = 6, classes: int = 3, size: tuple[int, int] = (12, 12)) -> Path:
    """Write root/train/c0/00.png and so on; return root."""
    for label in range(classes):
        for i in range(per_class):
            draw(root / "train" / f"c{label}" / f"{i:02d}.png", seed=100 * label + i, size=size)
    return root


def truncate(path: Path) -> None:
    """Cut off the second half of a file, as an interrupted download does."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
