"""Transforms of an image for a detector: short-edge resize and flip, from its own seed."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from carryover.configs import WorkError
from carryover.core.data.objects.dataset import DetectionImage, decode_masks
from carryover.core.data.pictures import UnreadableImage, read_picture
from carryover.transfer.tasks.detection.config import InputConfig


@dataclass(frozen=True)
class Example:
    """One image as the detector takes it.

    Attributes
    ----------
    image
        (3, h, w) uint8, RGB, resized.
    target
        `boxes` (n, 4) float32 in pixels of the resized image, `labels` (n,) from 1, and for mask detectors
        `masks` (n, H, W) uint8 at the original resolution, mirrored when the image is.
    """

    image: Tensor
    target: dict[str, Tensor]


def train_example(
    source: DetectionImage, config: InputConfig, with_masks: bool, rng: np.random.Generator
) -> Example:
    """Load one training image: short edge drawn from the recipe's sizes, then mirrored or not.

    Crowd regions are no training objects; difficult boxes are, as in Detectron2.
    """
    if config.jitter is not None:
        return _jittered(source, config, with_masks, rng)
    image = load_image(source)
    short = _short_edge(config, rng)
    mirrored = config.flip and bool(rng.random() < 0.5)
    width, height = resized(image.size, short, config.max_size_train)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    kept = ~source.annotation.iscrowd
    boxes = source.annotation.boxes[kept] * np.array(
        [width / source.width, height / source.height] * 2, dtype=np.float32
    )
    boxes = boxes.clip(0, np.array([width, height] * 2, dtype=np.float32))
    masks = decode_masks(source)[kept] if with_masks else None
    if mirrored:
        pixels = pixels[:, ::-1]
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        masks = None if masks is None else masks[:, :, ::-1]
    return _example(pixels, boxes, source.annotation.labels[kept], masks)


def _jittered(
    source: DetectionImage, config: InputConfig, with_masks: bool, rng: np.random.Generator
) -> Example:
    """Load one training image by large-scale jitter: flip, then a scale of the square, then a crop of it.

    As Detectron2's RandomFlip, ResizeScale and FixedSizeCrop without padding; masks come out at the size of
    the crop, and boxes are drawn around what is left of them.
    """
    assert config.jitter is not None and config.square is not None
    image, side = load_image(source), config.square
    mirrored = config.flip and bool(rng.random() < 0.5)
    scale = side * rng.uniform(*config.jitter) / max(image.size)
    width, height = (max(1, round(edge * scale)) for edge in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    kept = ~source.annotation.iscrowd
    boxes = source.annotation.boxes[kept] * np.array(
        [width / source.width, height / source.height] * 2, dtype=np.float32
    )
    masks = None
    if with_masks:
        whole = [Image.fromarray(mask).resize((width, height)) for mask in decode_masks(source)[kept]]
        masks = np.array([np.asarray(mask) for mask in whole], dtype=np.uint8).reshape(-1, height, width)
    if mirrored:
        pixels = pixels[:, ::-1]
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        masks = None if masks is None else masks[:, :, ::-1]
    left, top = (round(max(edge - side, 0) * rng.random()) for edge in (width, height))
    pixels = pixels[top : top + side, left : left + side]
    seen = [min(width, side), min(height, side)]
    boxes = (boxes - np.array([left, top] * 2, np.float32)).clip(0, np.array(seen * 2, np.float32))
    if masks is not None:
        masks = masks[:, top : top + side, left : left + side]
        boxes = _around(masks, boxes)
    return _example(pixels, boxes, source.annotation.labels[kept], masks)


def _around(masks: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the boxes (n, 4) around masks (n, h, w); that of an empty one as it is."""
    around = boxes.copy()
    for number, mask in enumerate(masks):
        rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
        if len(rows):
            around[number] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return around


def _example(pixels: np.ndarray, boxes: np.ndarray, labels: np.ndarray, masks: np.ndarray | None) -> Example:
    # A box may shrink to nothing, and a mask be empty from the start; neither can be learned from.
    solid = (boxes[:, 2] - boxes[:, 0] > 1e-5) & (boxes[:, 3] - boxes[:, 1] > 1e-5)
    if masks is not None:
        solid &= masks.any(axis=(1, 2))
    target = {
        "boxes": torch.from_numpy(boxes[solid]),
        "labels": torch.from_numpy(labels[solid] + 1),
    }
    if masks is not None:
        target["masks"] = torch.from_numpy(np.ascontiguousarray(masks[solid]))
    return Example(_to_tensor(pixels), target)


def resize_for_test(source: DetectionImage, config: InputConfig) -> Tensor:
    """Load one test image: (3, h, w) uint8, its short edge `min_size_test`."""
    image = load_image(source)
    size = resized(image.size, config.min_size_test, config.max_size_test)
    return _to_tensor(np.asarray(image.resize(size, Image.Resampling.BILINEAR)))


def resized(size: tuple[int, int], short_edge: int, max_size: int) -> tuple[int, int]:
    """Return the (width, height) whose short edge is `short_edge`, or less so that none exceeds `max_size`.

    Rounded as Detectron2's ResizeShortestEdge does.
    """
    scale = short_edge / min(size)
    scale = min(scale, max_size / max(size))
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def load_image(source: DetectionImage) -> Image.Image:
    """Decode an image to RGB by the one rule of `core.data.pictures`."""
    try:
        return read_picture(source.path, source.orientation)
    except UnreadableImage as error:
        raise WorkError(f"{source.path}: not readable as an image ({error})") from None


def _short_edge(config: InputConfig, rng: np.random.Generator) -> int:
    sizes = config.min_sizes_train
    if config.min_size_sampling == "range":
        return int(rng.integers(sizes[0], sizes[1], endpoint=True))
    return int(sizes[rng.integers(len(sizes))])


def _to_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
