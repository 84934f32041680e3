"""Optimizers and their parameter groups: SGD, AdamW, and LARS with its exclusions."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from carryover.core.backbones.layers import in_library, undecayed
from carryover.pretrain.config import AdamWConfig, LARSConfig, OptimizerConfig
from carryover.pretrain.heads import Encoder, Predictor


def build_optimizer(config: OptimizerConfig, module: nn.Module, peak_lr: float) -> torch.optim.Optimizer:
    """Build the optimizer of a recipe over the trained parameters of `module`.

    Groups: weights, and what a recipe may exempt from weight decay (one-dimensional parameters, that is
    biases and normalization, and a transformer's tokens and positions); each once more for the heads that say
    `constant_lr` (SimSiam's predictor). A group keeps its peak rate under ``peak_lr``, for `set_lr` to scale.
    """
    constant = {
        id(p) for m in module.modules() if isinstance(m, Predictor) and m.constant_lr for p in m.parameters()
    }
    exempt = {id(p) for m in module.modules() if isinstance(m, Encoder) for p in _exempt(m.backbone)}
    exempt |= {id(p) for p in module.parameters() if p.dim() <= 1}
    groups: list[dict[str, Any]] = []
    for held in (False, True):
        trained = [p for p in module.parameters() if p.requires_grad and (id(p) in constant) == held]
        weights = {"params": [p for p in trained if id(p) not in exempt], "adapt": True}
        others = {"params": [p for p in trained if id(p) in exempt], "adapt": False}
        for group in (weights, others):
            decayed = group is weights or config.decay_norm_and_bias
            group |= {"weight_decay": config.weight_decay if decayed else 0.0, "constant": held}
            group["peak_lr"] = peak_lr
            if (
                isinstance(config, LARSConfig)
                and group is others
                and config.base_lr_norm_and_bias is not None
            ):
                group["peak_lr"] = peak_lr * config.base_lr_norm_and_bias / config.base_lr
            if group["params"]:
                groups.append(group)
    if isinstance(config, LARSConfig):
        optimizer: torch.optim.Optimizer = LARS(groups, peak_lr, config.momentum, config.trust_coefficient)
    elif isinstance(config, AdamWConfig):
        optimizer = torch.optim.AdamW(groups, lr=peak_lr, betas=config.betas, foreach=True)
    else:
        optimizer = torch.optim.SGD(
            groups, lr=peak_lr, momentum=config.momentum, nesterov=config.nesterov, foreach=True
        )
    set_lr(optimizer, 1.0)
    return optimizer


def _exempt(backbone: nn.Module) -> list[nn.Parameter]:
    names = undecayed(backbone)
    return [p for name, p in backbone.named_parameters() if in_library(name) in names]


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its peak rate times `factor`; constant ones stay at the peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * (1.0 if group["constant"] else factor)


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
