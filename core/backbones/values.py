"""Values that no trained network has: found before anything is carried, in one pass over the file."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from carryover.configs import UserError

# Below this a convolution's filter gives nothing: that channel's variance may well be zero.
_SILENT = 1e-6
_SHOWN = 3
_AT_ONCE = 32 * 2**20
# Half precision's smallest normal number, and its step below it.
_NORMAL, _STEP = 2.0**-14, 2.0**-24
# Fewer norms than this say nothing of a network.
_FEW_NORMS = 3
# What scales a block's output or a norm's: as all others, it is no longer zero once it was trained.
_SCALES = ("gamma", "gamma_1", "gamma_2", "lambda1", "lambda_1", "lambda_2", "layer_scale_parameter")


def require_usable(
    state: Mapping[str, Tensor], where: str, forget: Callable[[], None] = lambda: None
) -> None:
    """Raise UserError, naming the tensors, for values with which a network cannot have been trained.

    Values that are not finite; negative running variances; variances of exactly zero in channels whose
    filters are not (an underflow of half precision); weights and layer scales that are all zero, or all below
    the normal numbers of half precision and rounded to its steps there. A channel that died in training,
    filter and all, passes, and so do biases and tokens of zeros, which sound files have. Tensors without
    values (on the meta device) are errors.

    Parameters
    ----------
    state
        Tensors by the names of any maker, as they lie in the file.
    forget
        Called now and then, to give back the memory of what was looked at.
    """
    faults: list[str] = []
    seen = 0
    for name, value in state.items():
        if value.is_meta:
            faults.append(f"'{name}' has no values (it was saved on the meta device)")
        elif value.is_floating_point() and value.numel():
            faults += _faults(name, value, state)
            seen += value.nbytes
        if seen > _AT_ONCE:
            forget()
            seen = 0
    forget()
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise UserError(
            f"{where}: {'; '.join(faults[:_SHOWN])}{more}: no trained network has such values; take a"
            " checkpoint that was saved whole, in float32"
        )


def untouched(state: Mapping[str, Tensor]) -> bool:
    """Return whether every batch normalization has the statistics of a new network (mean 0, variance 1)."""
    means = [v for n, v in state.items() if n.endswith("running_mean")]
    variances = [v for n, v in state.items() if n.endswith("running_var")]
    return bool(means) and all(not v.any() for v in means) and all(bool((v == 1).all()) for v in variances)


def never_trained(state: Mapping[str, Tensor]) -> str:
    """Say how a network shows that it was never trained; "" where it may have been.

    Every norm is as it was made: scales exactly one (or zero, as blocks may begin), shifts exactly zero, and
    statistics, where it has any, exactly 0 and 1. One step of training moves each of them, and so does one
    batch through a batch norm. Norms that a maker folded or froze have scales or statistics of their own.
    """
    norms = [n.removesuffix(".weight") for n, v in state.items() if n.endswith(".weight") and v.ndim == 1]
    if len(norms) < _FEW_NORMS:
        return ""
    for norm in norms:
        scale = state[f"{norm}.weight"]
        if not (bool((scale == 1).all()) or bool((scale == 0).all())):
            return ""
        for name, first in (("bias", 0), ("running_mean", 0), ("running_var", 1)):
            value = state.get(f"{norm}.{name}")
            if value is not None and bool((value != first).any()):
                return ""
    return f"all {len(norms)} norms ('{norms[0]}', ...) are as a new network has them (scale 1, shift 0)"


def _faults(name: str, value: Tensor, state: Mapping[str, Tensor]) -> list[str]:
    low, high = _range(value)
    if not (float("-inf") < low <= high < float("inf")):
        return [f"'{name}' has values that are not finite"]
    last = name.rpartition(".")[2]
    if last == "running_var":
        return _variance(name, value, low, state)
    scale = last in _SCALES
    if (
        low == high == 0
        and (value.ndim >= 2 or scale)
        and not name.endswith(("mask_token", "pos_embed", "beta"))
    ):
        return [f"'{name}' is all zero"]
    if (value.ndim >= 2 or scale) and _underflowed(value, max(-low, high)):
        largest = max(-low, high)
        return [f"'{name}' underflowed in half precision ({largest:.2g} at most, in steps of {_STEP:.2g})"]
    return []


def _underflowed(value: Tensor, largest: float) -> bool:
    """Return whether all of a weight is below half precision's normal numbers, and in whole steps of it."""
    if not 0 < largest < _NORMAL or value.dtype == torch.bfloat16:
        return False
    steps = value.double() / _STEP
    return bool((steps == steps.round()).all())


def _range(value: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest value; neither is a number where one of them is none."""
    if value.element_size() == 1:
        value = value.float()
    flat = value.reshape(-1) if value.is_contiguous() else value
    low, high = torch.aminmax(flat)
    return float(low), float(high)


def _variance(name: str, value: Tensor, low: float, state: Mapping[str, Tensor]) -> list[str]:
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
    """Return the name of the convolution before a ResNet's batch normalization."""
    place = name.rpartition(".")[0]
    if place.endswith("downsample.1"):
        return f"{place[:-1]}0.weight"
    head, _, number = place.rpartition("bn")
    return f"{head}conv{number}.weight"
