"""RandAugment and random erasing: timm's own code, with random numbers from each image's key."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from carryover.configs import UserError
from carryover.core.data.config import ViewConfig
from carryover.core.data.draws import Keys
from carryover.core.training.device import copied_to


@contextmanager
def seeded(key: int) -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch's CPU from a 64-bit key, and restore them after.

    timm draws from them.
    """
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    try:
        random.seed(key)
        np.random.seed([key & 0xFFFFFFFF, key >> 32])  # noqa: NPY002
        torch.default_generator.manual_seed(key)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.default_generator.set_state(before[2])


def rand_augment(config: ViewConfig, mean: Sequence[float]) -> Callable[[Tensor], Tensor] | None:
    """Return timm's RandAugment of uint8 images (3, H, W) on the CPU; None where a view has none.

    Vacated pixels have the color `mean`, as in `timm.data.create_transform`. It draws from the global
    generators.

    Raises UserError where timm is not installed.
    """
    if config.rand_augment is None:
        return None
    require_timm("image.rand_augment")
    from timm.data.auto_augment import posterize, rand_augment_transform
    from timm.data.transforms import str_to_pil_interp

    made: Any = rand_augment_transform(
        config.rand_augment,
        {
            "translate_const": int(config.size * 0.45),
            "img_mean": tuple(min(255, round(255 * x)) for x in mean),
            "interpolation": str_to_pil_interp(config.interpolation),
        },
    )
    for operation in made.ops:
        if operation.aug_fn is posterize:
            operation.aug_fn = partial(_posterized, posterize)
    return _OfTensors(made)


def _posterized(own: Callable[..., Any], image: Any, bits: int, **unused: Any) -> Any:
    """Return a PIL image of fewer bits; of none it is black, as Pillow had it until version 13 refused it."""
    return own(image, bits) if bits > 0 else image.point(lambda value: 0)


@dataclass(frozen=True)
class _OfTensors:
    """Applies a transform of PIL images to uint8 images (3, H, W)."""

    made: Any

    def __call__(self, image: Tensor) -> Tensor:
        changed: Tensor = F.pil_to_tensor(self.made(F.to_pil_image(image)))
        return changed


@dataclass(frozen=True)
class Erased:
    """A rectangle of one image of a batch, and the pixels (3, h, w) or (3, 1, 1) that it is given."""

    row: int
    rows: slice
    columns: slice
    pixels: Tensor

    def write(self, views: Tensor) -> None:
        """Overwrite the rectangle in normalized views (b, 3, H, W)."""
        views[self.row, :, self.rows, self.columns] = copied_to(self.pixels, views.device)


def erased(config: ViewConfig, keys: Keys) -> list[Erased]:
    """Draw the rectangles that timm's random erasing overwrites in views of b images, whose keys are (b,).

    Raises UserError where timm is not installed.
    """
    if config.erase is None:
        return []
    require_timm("image.erase")
    from timm.data.random_erasing import RandomErasing

    own = config.erase
    erase: Any = RandomErasing(own.p, mode=own.mode, max_count=own.count, device="cpu")
    found: list[Erased] = []
    for row, key in enumerate(keys.tolist()):
        with seeded(key):
            erase(_Written(row, config.size, found))
    return found


class _Written:
    """Stands in for an image in timm's random erasing, and notes what is written where."""

    dtype = torch.float32

    def __init__(self, row: int, side: int, found: list[Erased]) -> None:
        self._row, self._side, self._found = row, side, found

    def size(self) -> tuple[int, int, int]:
        return 3, self._side, self._side

    def __setitem__(self, where: tuple[slice, slice, slice], pixels: Tensor) -> None:
        self._found.append(Erased(self._row, where[1], where[2], pixels))


def require_timm(key: str) -> None:
    """Raise UserError naming the key that needs timm where it is not installed."""
    try:
        import timm.data  # noqa: F401
    except ImportError as error:
        raise UserError(f"{key} needs timm: pip install 'carryover-eval[timm]' ({error})") from None
