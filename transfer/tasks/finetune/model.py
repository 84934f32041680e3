"""A backbone with a linear head, its parameter groups, and how its predictions are counted."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from carryover.transfer.tasks.finetune.config import FinetuneConfig

log = logging.getLogger(__name__)


class Classifier(nn.Module):
    """Maps images (B, 3, H, W) to logits (B, classes); a frozen backbone stays in evaluation mode.

    Attributes
    ----------
    backbone, norm, head
        The carried network, what is done to its pooled features, and the linear layer on them.
    """

    def __init__(self, backbone: nn.Module, feature_dim: int, classes: int, config: FinetuneConfig) -> None:
        super().__init__()
        self.backbone = backbone
        batch = config.head_norm == "batch"
        self.norm = nn.BatchNorm1d(feature_dim, affine=False) if batch else nn.Identity()
        self.head = nn.Linear(feature_dim, classes)
        self.frozen = config.freeze_backbone
        self._bn_in_training = config.bn == "train"
        initialise(self.head, config.head_init)
        if self.frozen:
            backbone.requires_grad_(False)

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
        if self.frozen:
            with torch.no_grad():
                features = self.backbone(x)
        else:
            features = self.backbone(x)
        return self.head(self.norm(features))


def initialise(head: nn.Linear, how: str) -> None:
    """Give the head its first weights, from torch's seeded generator.

    "normal": N(0, 0.01^2), zero bias (Barlow Twins, VICReg, SimCLR's code, mmselfsup); "zero"; "uniform":
    torch's default for linear layers (SwAV).
    """
    if how == "uniform":
        head.reset_parameters()
        return
    nn.init.zeros_(head.bias)
    if how == "normal":
        nn.init.normal_(head.weight, std=0.01)
    else:
        nn.init.zeros_(head.weight)


def build_optimizer(
    model: Classifier, config: FinetuneConfig, lr_backbone: float, lr_head: float
) -> torch.optim.SGD:
    """Build SGD over the trained parameters: backbone and head at their own rates, each under ``peak_lr``.

    Weights, and one-dimensional parameters (biases and normalisation), are groups of their own.
    """
    o = config.optimizer
    groups: list[dict[str, Any]] = []
    for module, lr in ((model.backbone, lr_backbone), (model.head, lr_head)):
        trained = [p for p in module.parameters() if p.requires_grad]
        for members, decayed in (
            ([p for p in trained if p.dim() > 1], True),
            ([p for p in trained if p.dim() <= 1], o.decay_norm_and_bias),
        ):
            decay = o.weight_decay if decayed else 0.0
            if members:
                groups.append({"params": members, "weight_decay": decay, "lr": lr, "peak_lr": lr})
    return torch.optim.SGD(groups, lr=lr_head, momentum=o.momentum, nesterov=o.nesterov, foreach=True)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its own peak rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
