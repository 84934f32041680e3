"""The interface that every network declares; its class is never checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@dataclass(frozen=True)
class InputRule:
    """Images that a network takes.

    Attributes
    ----------
    size
        Side in pixels that the network was built for; None: any.
    multiple
        Sides must be multiples of it.
    any_size
        Whether other sizes than `size` are served, by interpolating positions or because there are none.
    """

    size: int | None = None
    multiple: int = 1
    any_size: bool = True


@runtime_checkable
class Declared(Protocol):
    """A network that says what it is.

    Attributes
    ----------
    stages, strides, widths
        Names of the maps that `feature_maps` returns, pixels of the image per pixel of each, its channels.
    feature_dim
        Width of the pooled features.
    patch_size
        Side of a vision transformer's patches; None for other networks.
    vector_names
        Further pooled features that `vectors` gives by name.
    input_rule
        Which images it takes.
    pools_last_stage
        Whether the pooled features are the last stage's maps averaged.
    parts
        Names of its modules, part by part: what comes before the first level, then every level.
    """

    stages: tuple[str, ...]
    strides: tuple[int, ...]
    widths: tuple[int, ...]
    feature_dim: int
    patch_size: int | None
    vector_names: tuple[str, ...]
    input_rule: InputRule
    pools_last_stage: bool
    parts: tuple[tuple[str, ...], ...]

    def feature_maps(self, x: Tensor) -> dict[str, Tensor]:
        """Return every stage's maps (B, width, H / stride, W / stride) of images `x` (B, 3, H, W)."""

    def vectors(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Return further pooled features (B, D) by name, all from one forward pass."""

    def trunk(self, names: Mapping[str, str]) -> nn.Module:
        """Return a module that maps images to the maps of some stages, called as `names` says.

        It shares the network's tensors, under the network's own names.
        """
