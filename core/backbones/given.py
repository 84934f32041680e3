"""A network in memory as the source of an evaluation: looked through, and left exactly as it was."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from carryover.configs import UserError
from carryover.core.backbones.source import Source
from carryover.core.formats.canonical import IMAGENET_MEAN, IMAGENET_STD, tensors_digest
from carryover.core.training.device import random_states_kept as kept

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class _Named:
    """Name in records of a network that carryover does not provide."""

    label: str


@dataclass(frozen=True)
class Given:
    """Statements about a network in memory, in place of a checkpoint's metadata.

    Attributes
    ----------
    label
        What records and reports call it.
    pixel_mean, pixel_std
        The normalization that it expects of RGB in [0, 1].
    input_size
        Side in pixels of the images that it is shown in training; None: whatever the recipe shows.
    method, epochs, dataset, seed
        Of its pretraining, as far as they are known.
    """

    label: str = "module"
    pixel_mean: Triple = IMAGENET_MEAN
    pixel_std: Triple = IMAGENET_STD
    input_size: int | None = None
    method: str = "unknown"
    epochs: float | None = None
    dataset: str = "unknown"
    seed: int | None = None
    recipe: str = "in memory"
    recipe_hash: str | None = None
    gpu_hours: float | None = None
    wall_seconds: float | None = None
    peak_gpu_memory_gib: float | None = None
    stated: tuple[str, ...] = ()
    assumed: Mapping[str, str] = field(default_factory=dict)
    backbone: _Named = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbone", _Named(self.label))


class _Features(nn.Module):
    """Turns what a network returns for images into vectors: maps (B, C, H, W) are averaged."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.feature_maps(x)["output"].mean(dim=(2, 3))

    def feature_maps(self, x: Tensor) -> dict[str, Tensor]:
        """Return the network's own output as the only stage; vectors are maps of one cell."""
        found: Any = self.module(x)
        if not isinstance(found, Tensor) or found.dim() not in (2, 4) or len(found) != len(x):
            shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(
                f"the module returned {shown} for images {tuple(x.shape)}; expected features (B, D) or maps"
                " (B, C, H, W): wrap it in one that returns those"
            )
        return {"output": found if found.dim() == 4 else found[:, :, None, None]}


@contextmanager
def source_of(module: nn.Module, said: Given, size: int) -> Iterator[Source]:
    """Yield a network as a source for frozen-feature tasks; `size` is that of the recipe's images.

    While the block lasts the network is in evaluation mode, takes no gradients and may be moved to another
    device. Afterwards its modes, its parameters' `requires_grad` and its device are as before; its gradients
    are not touched.
    """
    modes = {m: m.training for m in module.modules()}
    fixed = {p: p.requires_grad for p in module.parameters()}
    places = {tensor: tensor.device for tensor in (*module.parameters(), *module.buffers())}
    digest = tensors_digest(module.state_dict(), f"{type(module).__module__}.{type(module).__qualname__}")
    about: Any = said if said.input_size is not None else _sized(said, size)
    try:
        yield Source(Path(f"<{said.label}>"), digest, digest, _Features(module), about)
    finally:
        for m, training in modes.items():
            m.training = training
        for p, needed in fixed.items():
            p.requires_grad_(needed)
        for device in set(places.values()):
            module.to(device)


@contextmanager
def random_states_kept(module: nn.Module) -> Iterator[None]:
    """Give torch (on the CPU and the module's devices), numpy and Python their random states back."""
    devices = {p.device for p in module.parameters()}
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 (the caller's, whatever it is)
    with kept(devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _sized(said: Given, size: int) -> Given:
    kept = {k: getattr(said, k) for k in said.__dataclass_fields__ if k not in ("backbone", "input_size")}
    return Given(**kept, input_size=size)
