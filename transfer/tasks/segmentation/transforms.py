"""Transforms of an image and its mask: scale, crop, flip, colors."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from carryover.configs import WorkError
from carryover.core.data.masks.dataset import IGNORED, MaskCode, SegmentationImage, load_labels
from carryover.core.data.pictures import UnreadableImage, read_picture
from carryover.transfer.tasks.segmentation.config import InputConfig
from carryover.transfer.tasks.segmentation.photometric import distort

_CROPS = 10


@dataclass(frozen=True)
class Example:
    """One crop as the segmenter takes it.

    Attributes
    ----------
    image
        (3, h, w) uint8, RGB; at most the crop size.
    labels
        (h, w) uint8, 0..C-1 or `IGNORED`.
    """

    image: Tensor
    labels: Tensor


def train_example(
    source: SegmentationImage, code: MaskCode, config: InputConfig, rng: np.random.Generator
) -> Example:
    """Load one training image: scaled by a ratio of the recipe's range, cropped, mirrored or not."""
    image, labels = load_image(source), load_truth(source, code)
    ratio = rng.uniform(*config.ratio_range)
    size = fitted(image.size, (int(config.scale[0] * ratio), int(config.scale[1] * ratio)))
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    labels = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    window = _crop(labels, config, rng)
    pixels, labels = pixels[window], labels[window]
    if config.flip and rng.random() < 0.5:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
    if config.photometric:
        pixels = distort(np.ascontiguousarray(pixels), rng)
    return Example(to_tensor(pixels), torch.from_numpy(labels.copy()))


def pixels_for_test(source: SegmentationImage, config: InputConfig) -> Tensor:
    """Load one test image at the recipe's test scale: (3, h, w) uint8."""
    image = load_image(source)
    if config.test_scale is not None:
        image = image.resize(fitted(image.size, config.test_scale), Image.Resampling.BILINEAR)
    return to_tensor(np.asarray(image))


def fitted(size: tuple[int, int], scale: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (width, height) of this shape within (long, short) edges, rounded as mmcv does."""
    factor = min(max(scale) / max(size), min(scale) / min(size))
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def load_image(source: SegmentationImage) -> Image.Image:
    """Decode an image to RGB by the one rule of `core.data.pictures`."""
    try:
        return read_picture(source.path, source.orientation)
    except UnreadableImage as error:
        raise WorkError(f"{source.path}: not readable as an image ({error})") from None


def load_truth(source: SegmentationImage, code: MaskCode) -> np.ndarray:
    """Decode an image's mask, (height, width) uint8 labels."""
    try:
        return load_labels(source.mask, code, source.orientation)
    except (OSError, ValueError) as error:
        raise WorkError(f"{source.mask}: not readable as a mask ({error})") from None


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) pixels as a (3, H, W) tensor."""
    # Copied: what PIL hands out may not be written to, and torch warns of that.
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _crop(labels: np.ndarray, config: InputConfig, rng: np.random.Generator) -> tuple[slice, slice]:
    """Draw where to crop; again, some times, while one class fills too much of it."""
    window = _window(labels.shape, config.crop_size, rng)
    if config.cat_max_ratio >= 1:
        return window
    for _ in range(_CROPS):
        counts = np.bincount(labels[window].ravel(), minlength=IGNORED + 1)[:IGNORED]
        if (counts > 0).sum() > 1 and counts.max() < config.cat_max_ratio * counts.sum():
            break
        window = _window(labels.shape, config.crop_size, rng)
    return window


def _window(shape: tuple[int, ...], crop: tuple[int, int], rng: np.random.Generator) -> tuple[slice, slice]:
    top = int(rng.integers(max(shape[0] - crop[0], 0), endpoint=True))
    left = int(rng.integers(max(shape[1] - crop[1], 0), endpoint=True))
    return slice(top, top + crop[0]), slice(left, left + crop[1])
