"""Alignment and uniformity on the hypersphere (Wang and Isola 2020) as a pretraining method."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from carryover.core.data.prepared import Batch
from carryover.core.training.distributed import gather
from carryover.pretrain.heads import Encoder
from carryover.pretrain.methods import Method, Moment, Outcome
from carryover.pretrain.target import build_target
from carryover_example.config import AlignmentUniformityConfig


class AlignmentUniformity(Method):
    """Both losses on the two views' embeddings, over the batch of all ranks."""

    def __init__(self, config: AlignmentUniformityConfig, online: Encoder) -> None:
        super().__init__(online, build_target(config.target, online))
        self.config = config

    def objective(
        self, embeddings: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch, moment: Moment
    ) -> Outcome:
        x, y = (normalize(gather(z), dim=1) for z in embeddings)
        aligned = alignment(x, y)
        spread = (uniformity(x, self.config.t) + uniformity(y, self.config.t)) / 2
        numbers = {"alignment": aligned.detach(), "uniformity": spread.detach()}
        return Outcome(aligned + self.config.uniformity * spread, numbers)


def alignment(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean of |x - y|^2 over l2-normalized pairs (B, d) (Eq. 7, alpha = 2)."""
    return (x - y).square().sum(dim=1).mean()


def uniformity(x: Tensor, t: float) -> Tensor:
    """Return log of the mean of exp(-t |x_i - x_j|^2) over all pairs of l2-normalized rows (B, d) (Eq. 8)."""
    return torch.pdist(x).square().mul(-t).exp().mean().log()
