"""Networks built without values, and nothing computed for the values that they will not have."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# What the usual initializations are made of; each gives back the tensor that it fills.
_FILLS = frozenset(
    f"{name}_"
    for names in (
        ("normal", "uniform", "trunc_normal", "erfinv", "clamp", "mul", "add", "sub", "div", "fill", "zero"),
        ("kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal", "constant", "ones", "zeros"),
    )
    for name in names
)


class _Unfilled(TorchFunctionMode):
    """Leaves out operations that only fill a tensor without values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _FILLS:
            first = next(iter((*args, *(kwargs or {}).values())), None)
            if isinstance(first, Tensor) and first.is_meta:
                return first
        return func(*args, **(kwargs or {}))


@contextmanager
def shapes_only() -> Iterator[None]:
    """Build modules on the meta device, without running their initialization."""
    with torch.device("meta"), _Unfilled():
        yield
