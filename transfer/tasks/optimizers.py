"""The optimizer of a detector or segmenter: SGD or AdamW, with rates that decay from the head to the stem."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from carryover.core.backbones.layers import in_library, rate_factors
from carryover.core.training.solver import ScaledSolver

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)

Decay = Callable[[nn.Module, str], float]
"""The weight decay of a parameter, by the module it belongs to and its name there."""


def build_layered(
    model: nn.Module, network: nn.Module, trunks: Sequence[str], solver: ScaledSolver, decay: Decay
) -> torch.optim.Optimizer:
    """Build a recipe's optimizer; every group holds its factor on the rate as ``factor``.

    Parameters
    ----------
    network
        The carried network, which says at which depth its parameters lie.
    trunks
        Beginnings of names in `model` behind which the network's own names follow.
    """
    factors = rate_factors(network, solver.layer_decay)
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for place, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                factor = factors.get(_of_network(f"{place}.{name}", trunks), 1.0)
                found.setdefault((factor, decay(module, name)), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": members, "weight_decay": own, "factor": factor}
        for (factor, own), members in sorted(found.items(), key=lambda item: item[0])
    ]
    if solver.algorithm == "adamw":
        return torch.optim.AdamW(groups, lr=solver.peak_lr, betas=solver.betas)
    return torch.optim.SGD(groups, lr=solver.peak_lr, momentum=solver.momentum)


def _of_network(name: str, trunks: Sequence[str]) -> str:
    for trunk in trunks:
        if name.startswith(trunk):
            return in_library(name.removeprefix(trunk))
    return ""
