"""The precision objectives are computed in: never less than float32, whatever the network ran in."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")
V = TypeVar("V")


def promote(value: V) -> V:
    """Return a half-precision tensor as float32; anything else as it is. Differentiable."""
    if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16):
        return cast(V, value.float())
    return value


def at_least_float32(objective: Callable[P, T]) -> Callable[P, T]:
    """Run an objective outside autocast, with its half-precision embeddings promoted to float32.

    A softmax over thousands of similarities divided by a temperature, or a sum of squares of a correlation
    matrix, loses its small terms in bfloat16. float64 stays float64. Only tensors that are themselves
    arguments are promoted, not those inside containers.
    """

    @wraps(objective)
    def promoted(*args: P.args, **kwargs: P.kwargs) -> T:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        device = tensors[0].device.type if tensors else "cpu"
        with torch.autocast(device_type=device, enabled=False):
            return objective(
                *(promote(value) for value in args),  # type: ignore[arg-type]
                **{name: promote(value) for name, value in kwargs.items()},  # type: ignore[arg-type]
            )

    return promoted
