"""Values that no trained network has: found before anything is carried."""

from collections.abc import Mapping

import torch
from torch import Tensor

from carryover.configs import UserError

# Below this a convolution's filter gives nothing: that channel's variance may well be zero.
_SILENT = 1e-6
_SHOWN = 3


def require_usable(state: Mapping[str, Tensor], where: str) -> None:
    """Raise UserError for tensors with which a network cannot have been trained.

    Negative running variances; variances of exactly zero in channels whose filters are not (an underflow of
    half precision); weights that are all zero. A channel that died in training, filter and all, passes.
    """
    faults = []
    for name, value in state.items():
        if not value.is_floating_point() or value.numel() == 0:
            continue
        if name.endswith("running_var"):
            faults += _variance(name, value, state)
        elif value.ndim >= 2 and not value.any() and not name.endswith(("mask_token", "pos_embed")):
            faults.append(f"'{name}' is all zero")
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise UserError(
            f"{where}: {'; '.join(faults[:_SHOWN])}{more}: no trained network has such values; take a"
            " checkpoint that was saved whole, in float32"
        )


def untouched(state: Mapping[str, Tensor]) -> bool:
    """Return whether every batch normalisation has the statistics of a new network (mean 0, variance 1)."""
    means = [v for n, v in state.items() if n.endswith("running_mean")]
    variances = [v for n, v in state.items() if n.endswith("running_var")]
    return bool(means) and all(not v.any() for v in means) and all(bool((v == 1).all()) for v in variances)


def _variance(name: str, value: Tensor, state: Mapping[str, Tensor]) -> list[str]:
    if not torch.isfinite(value).all():
        return []
    low = float(value.min())
    if low < 0:
        return [f"'{name}' has a negative variance ({low:.3g})"]
    zero = value == 0
    if not zero.any():
        return []
    weight = state.get(f"{name.rpartition('.')[0]}.weight")
    filters = state.get(_convolution_of(name))
    alive = zero.clone()
    if weight is not None:
        alive &= weight.abs() > _SILENT
    if filters is not None and filters.shape[0] == len(value):
        alive &= filters.flatten(1).abs().amax(dim=1) > _SILENT
    return [f"'{name}' has a variance of zero in {int(alive.sum())} channels"] if alive.any() else []


def _convolution_of(name: str) -> str:
    """Return the name of the convolution before a ResNet's batch normalisation."""
    place = name.rpartition(".")[0]
    if place.endswith("downsample.1"):
        return f"{place[:-1]}0.weight"
    head, _, number = place.rpartition("bn")
    return f"{head}conv{number}.weight"
