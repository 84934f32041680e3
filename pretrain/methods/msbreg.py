"""MSBReg as a method: the centroids of many views, and two dispersive terms against collapse."""

from collections.abc import Sequence

import torch
from torch import Tensor

from carryover.core.data.prepared import Batch
from carryover.core.training.distributed import gather, own_slice, world_size
from carryover.pretrain.config import PretrainConfig
from carryover.pretrain.heads import Encoder, Predictor
from carryover.pretrain.method_config import MSBRegConfig
from carryover.pretrain.methods.base import DataFacts, Method, Moment, Outcome, unit
from carryover.pretrain.objectives.msbreg import (
    brownian_directions,
    brownian_loss,
    centroid_loss,
    singular_value_loss,
)
from carryover.pretrain.target import build_target


class MSBReg(Method):
    """BYOL's predictor and momentum target, under the centroid, singular value and Brownian losses."""

    def __init__(self, config: MSBRegConfig, online: Encoder, width: int) -> None:
        super().__init__(online, build_target(config.target, online))
        self.config = config
        self.predictor = Predictor(config.predictor, width, online.bf16)

    @classmethod
    def of(cls, recipe: PretrainConfig, online: Encoder, facts: DataFacts) -> "MSBReg":
        assert isinstance(recipe.method, MSBRegConfig) and recipe.projector is not None
        return cls(recipe.method, online, recipe.projector.out)

    def embed(self, views: Sequence[Tensor]) -> list[Tensor]:
        embeddings = super().embed(views)
        return embeddings + [self.predictor(z) for z in embeddings]

    def targets(self, views: Sequence[Tensor], embeddings: Sequence[Tensor]) -> list[Tensor]:
        return super().targets(views, embeddings[: len(views)])

    def objective(
        self, embeddings: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch, moment: Moment
    ) -> Outcome:
        views = len(targets)
        z, p = torch.stack(list(embeddings[:views]), dim=1), torch.stack(list(embeddings[views:]), dim=1)
        # One direction an image of the global batch, shared by its views; each rank takes its images'.
        count = len(z) * world_size()
        directions = own_slice(brownian_directions(count, z.shape[2], moment.generator).to(z.device))
        loss = (
            centroid_loss(p, torch.stack(list(targets), dim=1))
            + self.config.lam_s * singular_value_loss(gather(z))
            + self.config.lam_b * brownian_loss(z, directions)
        )
        queries, keys = unit([embeddings[0], targets[1]])
        return Outcome(loss, queries=queries, keys=keys)
