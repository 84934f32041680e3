"""A backbone with a linear head, its parameter groups, and how its predictions are counted."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from carryover.core.training.distributed import sum_over_ranks
from carryover.transfer.classify.config import FinetuneConfig
from carryover.transfer.results import Metric

log = logging.getLogger(__name__)

TOP = (1, 5)


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


@dataclass(frozen=True)
class Accuracy:
    """How many of `images` have their class among the 1 and the 5 first guesses."""

    images: int
    top1: int
    top5: int

    @property
    def top1_percent(self) -> float:
        """Share of images whose first guess is right, in %."""
        return 100.0 * self.top1 / self.images

    @property
    def top5_percent(self) -> float:
        """Share of images whose class is among the first five guesses, in %."""
        return 100.0 * self.top5 / self.images


def count(predictions: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Accuracy:
    """Count (logits (B, classes), labels (B,)) pairs of all ranks."""
    total = torch.zeros(1 + len(TOP), dtype=torch.int64, device=device)
    for logits, labels in predictions:
        ranked = logits.topk(min(max(TOP), logits.shape[1]), dim=1).indices
        hit = ranked == labels.unsqueeze(1)
        total[0] += len(labels)
        for i, n in enumerate(TOP, start=1):
            total[i] += hit[:, :n].any(dim=1).sum()
    images, top1, top5 = (int(n) for n in sum_over_ranks(total))
    return Accuracy(images, top1, top5)


def accuracy_metrics(found: Accuracy, classes: int) -> list[Metric]:
    """Return top-1, and top-5 where there are more than five classes: with fewer it would always be 100 %."""
    metrics = [Metric(name="top1", value=found.top1_percent, n=found.images)]
    if classes > max(TOP):
        metrics.append(Metric(name="top5", value=found.top5_percent, n=found.images))
    else:
        log.info("top-5 is left out: with %d classes it says nothing", classes)
    return metrics
