"""Optimisers and their parameter groups: SGD, and LARS with its exclusions."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config import LARSConfig, OptimizerConfig


def build_optimizer(config: OptimizerConfig, module: nn.Module, peak_lr: float) -> torch.optim.Optimizer:
    """Build the optimiser of a recipe over the trained parameters of `module`.

    Two groups: weights, and one-dimensional parameters (biases and normalisation), which a recipe may exempt
    from weight decay. Each group keeps its peak rate under ``peak_lr``, for `set_lr` to scale.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    weights = [p for p in trained if p.dim() > 1]
    others = [p for p in trained if p.dim() <= 1]
    decay_others = config.weight_decay if config.decay_norm_and_bias else 0.0
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": config.weight_decay, "peak_lr": peak_lr, "adapt": True},
        {"params": others, "weight_decay": decay_others, "peak_lr": peak_lr, "adapt": False},
    ]
    groups = [g for g in groups if g["params"]]
    if isinstance(config, LARSConfig):
        if config.base_lr_norm_and_bias is not None:
            for group in groups:
                if not group["adapt"]:
                    group["peak_lr"] = peak_lr * config.base_lr_norm_and_bias / config.base_lr
        optimizer: torch.optim.Optimizer = LARS(groups, peak_lr, config.momentum, config.trust_coefficient)
    else:
        optimizer = torch.optim.SGD(
            groups, lr=peak_lr, momentum=config.momentum, nesterov=config.nesterov, foreach=True
        )
    set_lr(optimizer, 1.0)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its peak rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step, in groups with ``adapt``, is scaled layer by layer (You et al. 2017).

    For each weight w with gradient g + wd w, the rate is multiplied by eta |w| / |g + wd w| (as in the
    Barlow Twins and SimSiam codes, where the decay is inside the norm), or by 1 when either norm is zero.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        trust_coefficient: float = 1e-3,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "trust_coefficient": trust_coefficient,
            "weight_decay": 0.0,
            "adapt": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; `closure`, if given, is evaluated first with gradients on."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            updates = [p.grad for p in weights if p.grad is not None]
            if group["weight_decay"]:
                updates = list(torch._foreach_add(updates, weights, alpha=group["weight_decay"]))
            if group["adapt"]:
                updates = list(
                    torch._foreach_mul(updates, self._ratios(weights, updates, group["trust_coefficient"]))
                )
            buffers = self._momentum_buffers(weights)
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, updates)
            torch._foreach_add_(weights, buffers, alpha=-group["lr"])
        return loss

    def _ratios(self, weights: list[Tensor], updates: list[Tensor], eta: float) -> list[Tensor]:
        pairs = zip(torch._foreach_norm(weights), torch._foreach_norm(updates), strict=True)
        return [torch.where((w > 0) & (u > 0), eta * w / u, 1.0) for w, u in pairs]

    def _momentum_buffers(self, weights: list[Tensor]) -> list[Tensor]:
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return [self.state[weight]["momentum_buffer"] for weight in weights]
