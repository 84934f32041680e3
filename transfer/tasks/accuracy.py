"""How predictions are counted: top-1 and top-5, over all ranks."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from carryover.core.training.distributed import sum_over_ranks
from carryover.transfer.results.record import Metric

log = logging.getLogger(__name__)

TOP = (1, 5)


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
