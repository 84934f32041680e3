"""UniGrad as a method: momentum targets and a correlation matrix that remembers all previous samples."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.data import Batch
from pretrain.distributed import mean_over_ranks
from pretrain.heads import Encoder
from pretrain.method_config import UniGradConfig
from pretrain.methods.base import Method, Moment, Outcome, siamese_numbers, unit
from pretrain.objectives.unigrad import batch_correlation, unigrad_multicrop_loss, update_correlation
from pretrain.target import build_target


class UniGrad(Method):
    """UniGrad (Eq. 14 and 15): two global views and any number of local ones, symmetrised and halved."""

    def __init__(self, config: UniGradConfig, online: Encoder, width: int) -> None:
        super().__init__(online, build_target(config.target, online))
        self.config = config
        self.correlation: Tensor
        self.register_buffer("correlation", torch.zeros(width, width))

    def embed(self, views: Sequence[Tensor]) -> list[Tensor]:
        # Local crops share one forward pass, as in SwAV and DINO; the paper does not say.
        embeddings = [self.online(view) for view in views[:2]]
        if locals_ := list(views[2:]):
            embeddings += self.online(torch.cat(locals_)).chunk(len(locals_))
        return embeddings

    def targets(self, views: Sequence[Tensor], embeddings: Sequence[Tensor]) -> list[Tensor]:
        return super().targets(views[:2], embeddings[:2])

    def objective(
        self, embeddings: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch, moment: Moment
    ) -> Outcome:
        u, v = unit(embeddings), unit(targets)
        source = v if self.config.correlation_source == "momentum" else u[:2]
        of_batch = mean_over_ranks(batch_correlation(torch.cat(source)))
        before = None if moment.step == 0 else self.correlation
        F = update_correlation(before, of_batch, self.config.rho)
        self.correlation.copy_(F)
        loss = unigrad_multicrop_loss(u, (v[0], v[1]), F, self.config.lam)
        return Outcome(loss, siamese_numbers(u[0], v[1]))
