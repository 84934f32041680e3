"""Reading one image file: what becomes RGB and how, and what counts as unreadable."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class UnreadableImage(Exception):
    """An image file that cannot be decoded; its message names the file and the reason."""


def read_image(path: Path, resize: int | None = None) -> Tensor:
    """Decode a file to RGB, uint8 (3, H, W).

    As torchvision's ImageFolder does: greyscale, palette and CMYK images are converted, transparency is
    dropped, EXIF orientation is not applied. Unlike it, 16-bit greyscale is scaled to 8 bits, not clipped.

    Parameters
    ----------
    resize
        Shorter side to resize to before the central square is cut out; None: the image as it is.

    Raises
    ------
    UnreadableImage
        When Pillow cannot decode the file, whatever it says.
    """
    try:
        with Image.open(path) as image:
            rgb = _rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on malformed bytes.
        raise UnreadableImage(f"{path}: {_reason(error)}") from error
    if resize is not None:
        rgb = _central_square(rgb, resize)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def check_header(path: Path) -> str | None:
    """Return why the file is no image by its header, or None; pixels are not decoded."""
    try:
        with Image.open(path) as image:
            image.verify()
    except Exception as error:
        return f"{path}: {_reason(error)}"
    return None


def check_pixels(path: Path) -> str | None:
    """Return why the file cannot be decoded, or None."""
    try:
        read_image(path)
    except UnreadableImage as error:
        return str(error)
    return None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion of 16-bit greyscale clips everything above 255 to white.
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _central_square(image: Image.Image, side: int) -> Image.Image:
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + side, top + side))


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return "not an image" if "cannot identify image file" in text else text
