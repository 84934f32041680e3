"""Precise batch statistics: measured again with the final weights, before testing."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from carryover.core.training.distributed import sum_over_ranks


@torch.no_grad()
def recalibrate(model: nn.Module, steps: Iterable[tuple[Any, ...]]) -> int:
    """Replace the running statistics of every BatchNorm by those of the given training steps.

    Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", Sec. 3: running averages mix in the statistics of
    weights long gone. The model runs in training mode, so that the heads see sampled regions.

    Returns
    -------
    int
        How many layers were recalibrated; 0 where the recipe has none (FrozenBN).
    """
    collected = [_Population(m) for m in model.modules() if isinstance(m, _BatchNorm)]
    if not collected:
        return 0
    model.train()
    for step in steps:
        model(*step)
    for population in collected:
        population.settle()
    return len(collected)


class _Population:
    """Mean and variance of all that one layer is fed, over batches of any size (Chan et al. 1979)."""

    def __init__(self, norm: _BatchNorm) -> None:
        self.norm = norm
        self.count = 0
        assert norm.running_mean is not None
        # On the network's device, so that no layer of a step makes the host wait for it.
        self.mean = torch.zeros_like(norm.running_mean, dtype=torch.float64)
        self.squares = torch.zeros_like(self.mean)
        self.hook = norm.register_forward_pre_hook(self._note)

    def settle(self) -> None:
        """Put what was measured over all ranks into the layer."""
        self.hook.remove()
        running_mean, running_var = self.norm.running_mean, self.norm.running_var
        assert running_mean is not None and running_var is not None
        device = running_mean.device
        count = sum_over_ranks(torch.tensor(float(self.count), dtype=torch.float64, device=device))
        if count == 0:
            return
        own_mean, own_count = self.mean, self.count
        mean = sum_over_ranks(own_mean * own_count) / count
        spread = sum_over_ranks(self.squares + own_count * (own_mean - mean).square())
        running_mean.copy_(mean)
        running_var.copy_(spread / count)

    def _note(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0]
        rows = x.numel() // x.shape[1]
        if rows == 0:
            return
        variance, mean = torch.var_mean(x.float(), [d for d in range(x.dim()) if d != 1], correction=0)
        difference = mean.double() - self.mean
        total = self.count + rows
        self.mean += difference * (rows / total)
        self.squares += variance.double() * rows + difference.square() * (self.count * rows / total)
        self.count = total
