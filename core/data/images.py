"""One picture as a tensor, for pretraining and classification."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from carryover.core.data.pictures import (
    Orientation,
    UnreadableImage,
    read_picture,
)


def read_image(path: Path, resize: int | None = None, orientation: Orientation = "exif") -> Tensor:
    """Decode a file to RGB, uint8 (3, H, W), by the rule of `core.data.pictures`.

    The channels lie innermost in memory, as Pillow keeps them: torchvision resizes such images twice as fast.

    Parameters
    ----------
    resize
        Shorter side to resize to before the central square is cut out; None: the image as it is.

    Raises
    ------
    UnreadableImage
        When Pillow cannot decode the file, whatever it says; the message begins with the path.
    """
    try:
        rgb = read_picture(path, orientation)
    except UnreadableImage as error:
        raise type(error)(f"{path}: {error}") from error
    if resize is not None:
        rgb = _central_square(rgb, resize)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def _central_square(image: Image.Image, side: int) -> Image.Image:
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + side, top + side))
