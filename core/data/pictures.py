"""One reading of a picture, for every part of the product: orientation, bit depth, color (torch-free).

The rule
--------
Orientation
    The EXIF flag in front of the pixels is applied, unless a recipe says ``orientation: stored``.
Color
    Gray, palette, CMYK and YCbCr become RGB as Pillow converts them; transparency is dropped.
Bit depth
    8 bits stay; 16 bits are scaled from 0..65535; 32-bit integers are 0..255 or 0..65535, floating point is
    0..1 or 0..255, by what their largest value fits into. Everything else has no range that could be known,
    and neither has a 16-bit picture of which no value is above 255: these are `AmbiguousRange`.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np
from PIL import Image

READING: Final = 2
"""Version of this module's rule, raised when it reads any picture differently; 1 is carryover 0.1's.

It is a part of the identity of all work that reads pictures (`core.data.reading`).
"""

Orientation = Literal["exif", "stored"]

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Suffixes that torchvision's ImageFolder accepts."""

In = TypeVar("In")
Out = TypeVar("Out")

# Opening small files waits for the (often networked) disk, not for the processor.
THREADS = 16
_AT_A_TIME = 64
_ORIENTATION_TAG: Final = 0x0112
_TIFF_WIDTH: Final = 256
_TIFF_HEIGHT: Final = 257
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACK: Final = {6: 8, 8: 6}
_SIDEWAYS: Final = frozenset({5, 6, 7, 8})


class UnreadableImage(OSError):
    """An image file that cannot be decoded; its message says why."""


class AmbiguousRange(UnreadableImage):
    """A picture whose values are in no range that could be known."""


@dataclass(frozen=True)
class Header:
    """Header of an image file.

    Attributes
    ----------
    width, height
        Pixels, as the picture is read: with the orientation applied, if it is to be.
    turned
        Whether the file carries an orientation other than upright.
    """

    width: int
    height: int
    turned: bool

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.width, self.height


def read_header(path: Path, orientation: Orientation = "exif") -> Header:
    """Read an image file's header; no pixel is decoded.

    Raises FileNotFoundError, or OSError where Pillow cannot read the header.
    """
    try:
        with Image.open(path) as image:
            turn = _turn(image)
            sideways = turn in _SIDEWAYS and orientation == "exif"
            width, height = _stored_size(image)[:: -1 if sideways else 1]
    except Image.DecompressionBombError as error:
        raise OSError(str(error)) from error
    except (SyntaxError, ValueError) as error:
        # Pillow's plugins raise these on malformed headers.
        raise OSError(_reason(error)) from error
    return Header(width, height, turn in _TURNS)


def read_picture(path: Path, orientation: Orientation = "exif") -> Image.Image:
    """Decode an image file to 8-bit RGB by the rule of this module.

    Raises UnreadableImage, whatever Pillow says of the file; AmbiguousRange for values of no known range.
    """
    try:
        with Image.open(path) as image:
            turn = _left_to_turn(image, orientation)
            rgb = _rgb(image)
    except (MemoryError, AmbiguousRange):
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on malformed bytes.
        raise UnreadableImage(_reason(error)) from error
    return rgb if turn is None else rgb.transpose(turn)


def turned_upright(image: Image.Image, orientation: Orientation) -> Image.Image:
    """Return an open image with its own orientation applied, if it is to be, values and mode as they are."""
    turn = _left_to_turn(image, orientation)
    return image if turn is None else image.transpose(turn)


def picture_error(path: Path) -> str | None:
    """Return why a picture cannot be read to its last pixel, or None."""
    try:
        read_picture(path)
    except UnreadableImage as error:
        return str(error)
    return None


def header_error(path: Path) -> str | None:
    """Return why the file is no image by its header, or None; pixels are not decoded."""
    try:
        with Image.open(path) as image:
            image.verify()
    except Exception as error:
        return _reason(error)
    return None


def unlike_v1(path: Path, orientation: Orientation) -> str | None:
    """Return why carryover 0.1 read a picture differently, by its header; None where it did not.

    A file that is no picture was none for 0.1 either.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I") or image.mode == "F":
                return "has more than 8 bits a channel"
            # A TIFF's own orientation is applied by Pillow, then as now.
            if orientation == "exif" and image.format != "TIFF" and _turn(image) in _TURNS:
                return "carries an orientation"
    except Exception:
        return None
    return None


def in_parallel(function: Callable[[In], Out], items: Iterable[In]) -> list[Out]:
    """Return ``[function(item) for item in items]``, computed in threads.

    A thread takes some items at a time: handing one over takes longer than a small file's digest.
    """
    everything = list(items)
    size = max(1, min(_AT_A_TIME, len(everything) // (4 * THREADS)))
    parts = [everything[i : i + size] for i in range(0, len(everything), size)]
    with ThreadPoolExecutor(THREADS) as threads:
        done = threads.map(lambda part: [function(item) for item in part], parts)
        return [result for of_part in done for result in of_part]


def _left_to_turn(image: Image.Image, orientation: Orientation) -> Image.Transpose | None:
    """Decode an open image, and return how it is to be turned then; None where it is as wanted."""
    turn = _turn(image)
    image.load()
    # Pillow applies a TIFF's flag itself while it decodes, and no other format's.
    is_upright = turn in _TURNS and _turn(image) not in _TURNS
    if is_upright and orientation == "stored":
        return _TURNS[_BACK.get(turn, turn)]
    return _TURNS[turn] if turn in _TURNS and not is_upright and orientation == "exif" else None


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) as the pixels are stored, whatever the orientation."""
    # Pillow 11 and newer state a TIFF's size with its orientation applied, older ones without.
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    return tags.get(_TIFF_WIDTH, image.width), tags.get(_TIFF_HEIGHT, image.height)


def _turn(image: Image.Image) -> int:
    """Return the EXIF orientation in front of the pixels; 1, upright, where there is none."""
    try:
        if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
            # Pillow would decode the whole picture to look behind it.
            return 1
        turn = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return int(turn) if isinstance(turn, int) else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _from_values(np.asarray(image).astype(np.int64), 16)
    if image.mode in ("I", "F"):
        return _from_values(np.asarray(image), 16 if image.format == "PNG" else None)
    # Converting what is RGB already would copy it.
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_values(values: np.ndarray, bits: int | None) -> Image.Image:
    """Turn values (H, W) of many levels into gray RGB of 8 bits; `bits` is what the file stores, if known."""
    if not np.isfinite(values).all():
        raise AmbiguousRange("holds values that are not finite")
    least, most = (values.min().item(), values.max().item()) if values.size else (0, 0)
    if least < 0:
        raise AmbiguousRange(f"holds negative values (down to {least:g}), so that its range cannot be known")
    if bits == 16:
        if 0 < most < 256:
            raise AmbiguousRange(
                f"is a 16-bit picture with no value above {most:g}: 8-bit values kept as 16-bit ones?"
            )
        gray = values.astype(np.int64) >> 8
    elif values.dtype.kind == "f":
        if most > 255:
            raise AmbiguousRange(f"holds floating-point values up to {most:g}, neither 0..1 nor 0..255")
        gray = np.rint(values * 255 if most <= 1 else values)
    elif most <= 255:
        gray = values
    elif most <= 65535:
        gray = values.astype(np.int64) >> 8
    else:
        raise AmbiguousRange(f"holds integers up to {most:g}, beyond 16 bits")
    return Image.fromarray(gray.astype(np.uint8)).convert("RGB")


def _reason(error: Any) -> str:
    text = str(error) or type(error).__name__
    return "not an image" if "cannot identify image file" in text else text
