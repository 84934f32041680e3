"""Trace which tensors a function computes from which others, without their values."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_RESAMPLES = ("interpolate", "upsample", "_upsample", "grid_sample")


@dataclass(frozen=True)
class Made:
    """Result of a function for tensors without values.

    Attributes
    ----------
    tensors
        Its results, on the meta device.
    sources
        Of every result, the names of the tensors that it was made of; none for one that was made anew.
    resampled
        The results that were interpolated to another size.
    """

    tensors: Mapping[str, Tensor]
    sources: Mapping[str, frozenset[str]]
    resampled: frozenset[str]


def traced(
    function: Callable[[dict[str, Tensor]], Mapping[str, Tensor]], given: Mapping[str, Tensor]
) -> Made:
    """Run a function on tensors of the shapes and types of `given`, and follow each through it."""
    known = without_values(given)
    with _Following(known) as mode:
        made = dict(function(known))
    sources = {name: mode.sources_of(value) for name, value in made.items()}
    return Made(made, sources, frozenset(name for name, value in made.items() if id(value) in mode.resampled))


def without_values(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of the same shapes and types, which have no values and take no memory."""
    return {name: torch.empty_like(value, device="meta") for name, value in given.items()}


class _Following(TorchFunctionMode):
    """Notes for every tensor that an operation gives which of the first ones it was made of."""

    def __init__(self, first: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._sources = {id(value): frozenset({name}) for name, value in first.items()}
        self.resampled: set[int] = set()
        # A number stays a tensor's own while the tensor is there.
        self._alive: list[Tensor] = list(first.values())

    def sources_of(self, value: Tensor) -> frozenset[str]:
        """Return the names of the tensors that one was made of."""
        return self._sources.get(id(value), frozenset())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        used = list(_tensors((args, list((kwargs or {}).values()))))
        sources = frozenset[str]().union(*(self.sources_of(tensor) for tensor in used))
        name = getattr(func, "__name__", "")
        resampled = name.startswith(_RESAMPLES) or any(id(tensor) in self.resampled for tensor in used)
        made = [args[0]] if name == "__setitem__" else _tensors(result)
        for tensor in made:
            self._alive.append(tensor)
            self._sources[id(tensor)] = self.sources_of(tensor) | sources
            if resampled:
                self.resampled.add(id(tensor))
        return result


def _tensors(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, list | tuple):
        for part in node:
            yield from _tensors(part)
