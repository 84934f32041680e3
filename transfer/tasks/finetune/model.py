"""A backbone with a linear head, its parameter groups, and how its predictions are counted."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from carryover.core.backbones.layers import UNDECAYED, in_library, rate_factors
from carryover.transfer.tasks.finetune.attentive import AttentivePool, tokens_of
from carryover.transfer.tasks.finetune.config import FC_NORM, FinetuneConfig
from carryover.transfer.tasks.frozen.depths import POOLED, pooled

log = logging.getLogger(__name__)


class Classifier(nn.Module):
    """Maps images (B, 3, H, W) to logits (B, classes); a frozen backbone stays in evaluation mode.

    `feature_dim` is that of the features that the recipe names.

    Attributes
    ----------
    backbone, pool, norm, head
        The carried network, what pools its tokens (None: the network itself), what is done to the pooled
        features, and the linear layer on them.
    """

    def __init__(self, backbone: nn.Module, feature_dim: int, classes: int, config: FinetuneConfig) -> None:
        super().__init__()
        self.backbone = backbone
        batch = config.head_norm == "batch"
        self.norm = nn.BatchNorm1d(feature_dim, affine=False) if batch else nn.Identity()
        self.head = nn.Linear(feature_dim, classes)
        self.frozen = config.freeze_backbone
        # The mean of the patches behind a new norm is the network's own output.
        self.feature = POOLED if config.feature == FC_NORM else config.feature
        self.pool = None if config.attentive is None else AttentivePool(feature_dim, config.attentive)
        self._bn_in_training = config.bn == "train"
        initialize(self.head, config.head_init)
        if self.frozen:
            backbone.requires_grad_(False)

    @property
    def new(self) -> tuple[nn.Module, ...]:
        """Return the modules that are not in the checkpoint, and have the head's rate."""
        return (self.head,) if self.pool is None else (self.pool, self.head)

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        elif mode and not self._bn_in_training:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            if self.pool is None:
                features = pooled(self.backbone, x, (self.feature,))[self.feature]
            else:
                features = tokens_of(self.backbone, x)
        if self.pool is not None:
            features = self.pool(features)
        return self.head(self.norm(features))


def initialize(head: nn.Linear, how: str) -> None:
    """Give the head its first weights, from torch's seeded generator.

    "normal": N(0, 0.01^2), zero bias (Barlow Twins, VICReg, SimCLR's code, mmselfsup); "zero"; "uniform":
    torch's default for linear layers (SwAV); "truncated": N(0, 2e-5^2) within two units, zero bias (MAE).
    """
    if how == "uniform":
        head.reset_parameters()
        return
    nn.init.zeros_(head.bias)
    if how == "normal":
        nn.init.normal_(head.weight, std=0.01)
    elif how == "truncated":
        nn.init.trunc_normal_(head.weight, std=2e-5)
    else:
        nn.init.zeros_(head.weight)


def build_optimizer(
    model: Classifier, config: FinetuneConfig, lr_backbone: float, lr_head: float
) -> torch.optim.Optimizer:
    """Build SGD or AdamW over the trained parameters: every group has its own rate under ``peak_lr``.

    Backbone and head have rates of their own, and with a layer decay every layer of the backbone has.
    Weights, and one-dimensional parameters (biases and normalization), are groups of their own.
    """
    o = config.optimizer
    if o.algorithm == "adamw" or o.layer_decay != 1:
        layered = _by_layer(model, config, lr_backbone, lr_head)
        if o.algorithm == "adamw":
            return torch.optim.AdamW(layered, lr=lr_head, betas=o.betas, foreach=True)
        return torch.optim.SGD(layered, lr=lr_head, momentum=o.momentum, nesterov=o.nesterov, foreach=True)
    groups: list[dict[str, Any]] = []
    for modules, lr in (((model.backbone,), lr_backbone), (model.new, lr_head)):
        trained = [p for module in modules for p in module.parameters() if p.requires_grad]
        for members, decayed in (
            ([p for p in trained if p.dim() > 1], True),
            ([p for p in trained if p.dim() <= 1], o.decay_norm_and_bias),
        ):
            decay = o.weight_decay if decayed else 0.0
            if members:
                groups.append({"params": members, "weight_decay": decay, "lr": lr, "peak_lr": lr})
    return torch.optim.SGD(groups, lr=lr_head, momentum=o.momentum, nesterov=o.nesterov, foreach=True)


def _by_layer(
    model: Classifier, config: FinetuneConfig, lr_backbone: float, lr_head: float
) -> list[dict[str, Any]]:
    """Group parameters by rate and weight decay, from the lowest layer up."""
    o = config.optimizer
    factors = rate_factors(model.backbone, o.layer_decay)
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    named = [(in_library(n), p, lr_backbone * factors[in_library(n)]) for n, p in _trained(model.backbone)]
    named += [(name, p, lr_head) for new in model.new for name, p in _trained(new)]
    for name, parameter, rate in named:
        plain = parameter.dim() > 1 and not (o.algorithm == "adamw" and name in UNDECAYED)
        decay = o.weight_decay if plain or o.decay_norm_and_bias else 0.0
        found.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": members, "weight_decay": decay, "lr": rate, "peak_lr": rate}
        for (rate, decay), members in sorted(found.items(), key=lambda item: item[0])
    ]


def _trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its own peak rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
