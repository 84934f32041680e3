"""Segmentation data set, independent of the layout it was read from; decoding of masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from carryover.core.data.pictures import Orientation, turned_upright

IGNORED: Final = 255
"""The label of pixels that neither teach nor count."""

_ILLEGAL: Final = -1
_LOSSY: Final = frozenset({"JPEG", "MPO"})


@dataclass(frozen=True)
class MaskCode:
    """Encoding of labels 0..C-1 and `IGNORED` in a mask's pixels.

    Attributes
    ----------
    labels
        The label of each index 0..255, or -1 where the index has no meaning.
    colors
        The label of each RGB color, where masks are painted; then `labels` is not used.
    """

    labels: tuple[int, ...]
    colors: Mapping[tuple[int, int, int], int] | None = None


@dataclass(frozen=True)
class SegmentationImage:
    """One image file with its mask; width and height (pixels) are those of the picture as it is read."""

    id: str
    path: Path
    mask: Path
    width: int
    height: int
    orientation: Orientation = "exif"
    turned: bool = False


@dataclass(frozen=True)
class SegmentationDataset:
    """A split, or several joined ones, read and checked.

    Attributes
    ----------
    name
        What to call it in logs and records, for example ``VOC 2012 val``.
    classes
        Class names in label order.
    """

    name: str
    classes: tuple[str, ...]
    images: tuple[SegmentationImage, ...]
    code: MaskCode


def index_code(classes: int, ignored: Sequence[int] = (IGNORED,), first: int = 0) -> MaskCode:
    """Return the code of masks that hold indices: `first` is class 0, those of `ignored` are ignored."""
    labels = [_ILLEGAL] * 256
    labels[first : first + classes] = range(classes)
    for index in ignored:
        labels[index] = IGNORED
    return MaskCode(tuple(labels))


def load_labels(path: Path, code: MaskCode, orientation: Orientation = "exif") -> np.ndarray:
    """Decode a mask to labels (height, width) uint8; what the code does not know becomes `IGNORED`.

    Raises OSError where there is no readable image, ValueError where its pixels are no masks of this code.
    """
    return decode(path, code, orientation).labels


class DecodedMask(NamedTuple):
    """A mask as labels, with what only a check wants to know.

    Attributes
    ----------
    labels
        (height, width) uint8.
    unknown
        The values that the code does not know.
    palette
        The RGB color that the file gives to each index in use; empty without a palette of its own.
    lossy
        Whether the file's format changes pixels.
    """

    labels: np.ndarray
    unknown: tuple[str, ...] = ()
    palette: Mapping[int, tuple[int, int, int]] = {}
    lossy: bool = False


def decode(path: Path, code: MaskCode, orientation: Orientation = "exif") -> DecodedMask:
    """Decode a mask as `load_labels` does, and say which values the code does not know."""
    with Image.open(path) as opened:
        image, lossy = turned_upright(opened, orientation), opened.format in _LOSSY
        if code.colors is not None:
            return _from_colors(np.asarray(image.convert("RGB")), code.colors)._replace(lossy=lossy)
        values = _indices(image).astype(np.int64)
        palette = _palette(image, values)
    table = np.array(code.labels)
    inside = (values >= 0) & (values < len(table))
    labels = np.where(inside, table[values.clip(0, len(table) - 1)], _ILLEGAL)
    unknown = labels == _ILLEGAL
    names = tuple(str(v) for v in np.unique(values[unknown])) if unknown.any() else ()
    labels[unknown] = IGNORED
    return DecodedMask(labels.astype(np.uint8), names, palette, lossy)


def _indices(image: Image.Image) -> np.ndarray:
    """Return the indices that a mask holds, (height, width); gray saved in three equal channels is gray."""
    if image.mode in ("1", "L", "P", "I", "I;16"):
        return np.asarray(image)
    if image.mode in ("RGB", "RGBA", "LA"):
        channels = np.asarray(image)[..., : 3 if image.mode != "LA" else 1]
        if (channels == channels[..., :1]).all():
            return channels[..., 0]
    raise ValueError(
        f"is an image of mode {image.mode}, not a mask of indices; where colors stand for classes, use"
        " `kind: folders` with `palette:`, the color of each class"
    )


def _from_colors(pixels: np.ndarray, colors: Mapping[tuple[int, int, int], int]) -> DecodedMask:
    packed = pixels.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    labels = np.full(packed.shape, _ILLEGAL)
    for (red, green, blue), label in colors.items():
        labels[packed == (red << 16 | green << 8 | blue)] = label
    unknown = labels == _ILLEGAL
    found = np.unique(packed[unknown]) if unknown.any() else ()
    labels[unknown] = IGNORED
    return DecodedMask(labels.astype(np.uint8), tuple(f"#{value:06x}" for value in found))


def _palette(image: Image.Image, values: np.ndarray) -> Mapping[int, tuple[int, int, int]]:
    colors = image.getpalette("RGB") if image.mode == "P" else None
    if not colors:
        return {}
    used = np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist()
    return {i: (r, g, b) for i in used if len(rgb := colors[3 * i : 3 * i + 3]) == 3 for r, g, b in [rgb]}
