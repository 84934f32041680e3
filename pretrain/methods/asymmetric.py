"""BYOL, SimSiam and DirectPred as methods: a predictor, learnt or computed, on one branch only."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from carryover.core.data.prepared import Batch
from carryover.core.training.distributed import mean_over_ranks
from carryover.pretrain.config import PretrainConfig
from carryover.pretrain.heads import Encoder, Predictor
from carryover.pretrain.method_config import BYOLConfig, DirectPredConfig, SimSiamConfig
from carryover.pretrain.methods.base import DataFacts, Method, Moment, Outcome, unit
from carryover.pretrain.objectives.asymmetric import (
    directpred_gradient,
    directpred_gradient_simplified,
    directpred_gradient_without_root,
    directpred_loss,
    negative_cosine,
    predictor_matrix,
    surrogate,
    to_unit_spectrum,
)
from carryover.pretrain.objectives.unigrad import batch_correlation, update_correlation
from carryover.pretrain.target import build_target


class BYOL(Method):
    """A learnt predictor on a momentum target (BYOL) or a stop-gradient one (SimSiam)."""

    def __init__(self, config: BYOLConfig | SimSiamConfig, online: Encoder, width: int) -> None:
        super().__init__(online, build_target(config.target, online))
        self.predictor = Predictor(config.predictor, width, online.bf16)

    @classmethod
    def of(cls, recipe: PretrainConfig, online: Encoder, facts: DataFacts) -> "BYOL":
        assert isinstance(recipe.method, BYOLConfig | SimSiamConfig) and recipe.projector is not None
        return cls(recipe.method, online, recipe.projector.out)

    def embed(self, views: Sequence[Tensor]) -> list[Tensor]:
        embeddings = super().embed(views)
        return embeddings + [self.predictor(z) for z in embeddings]

    def targets(self, views: Sequence[Tensor], embeddings: Sequence[Tensor]) -> list[Tensor]:
        return super().targets(views, embeddings[: len(views)])

    def objective(
        self, embeddings: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch, moment: Moment
    ) -> Outcome:
        _, _, p1, p2 = embeddings
        v1, v2 = targets
        loss = (negative_cosine(p1, v2) + negative_cosine(p2, v1)) / 2
        queries, keys = unit([p1, v2])
        return Outcome(loss, queries=queries, keys=keys)


class DirectPred(Method):
    """The predictor computed from the correlation matrix F (Eqs. 6, 22 to 28; Table 2 d)."""

    def __init__(self, config: DirectPredConfig, online: Encoder, width: int) -> None:
        super().__init__(online, build_target(config.target, online))
        self.config = config
        self.correlation: Tensor
        self.register_buffer("correlation", torch.zeros(width, width))

    @classmethod
    def of(cls, recipe: PretrainConfig, online: Encoder, facts: DataFacts) -> "DirectPred":
        assert isinstance(recipe.method, DirectPredConfig) and recipe.projector is not None
        return cls(recipe.method, online, recipe.projector.out)

    def objective(
        self, embeddings: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch, moment: Moment
    ) -> Outcome:
        config = self.config
        (u1, u2), (v1, v2) = unit(embeddings), unit(targets)
        source = [v1, v2] if config.correlation_source == "momentum" else [u1, u2]
        of_batch = mean_over_ranks(batch_correlation(torch.cat(source)))
        self.correlation.copy_(
            update_correlation(None if moment.step == 0 else self.correlation, of_batch, config.rho)
        )
        # Scaled as in the public code, where eps is 0.3; W_h's own scale drops out of the cosine.
        F = to_unit_spectrum(self.correlation)
        # Rows do not meet, and the mean is over both directions: one decomposition of F serves both.
        loss = self._loss(torch.cat([u1, u2]), torch.cat([v2, v1]), F)
        return Outcome(loss, queries=u1, keys=v2, details=lambda: self._terms(u1.detach(), v2, F))

    @torch.no_grad()
    def _terms(self, u: Tensor, v: Tensor, F: Tensor) -> dict[str, Tensor]:
        """Measure Eq. 26's balance factor, and how alike its first two negative terms are (Figure 3 a, b)."""
        eps, W_h = self.config.eps, predictor_matrix(F, self.config.eps)
        root = W_h - eps * torch.eye(len(F), dtype=F.dtype, device=F.device)
        first, second = u @ F, 2 * eps * (u @ root)
        balance = ((u @ W_h) * v).sum(1) / ((u @ W_h) ** 2).sum(1)
        return {
            "balance_factor": balance.mean(),
            "negative_term_norm": (balance * first.norm(dim=1)).mean(),
            "neglected_term_norm": (balance * second.norm(dim=1)).mean(),
            "neglected_term_similarity": cosine_similarity(first, second).mean(),
        }

    def _loss(self, u: Tensor, v: Tensor, F: Tensor) -> Tensor:
        eps = self.config.eps
        match self.config.form:
            case "loss":
                return directpred_loss(u, v, predictor_matrix(F, eps))
            case "gradient":
                return surrogate(u, directpred_gradient(u, v, F, eps))
            case "without_root":
                return surrogate(u, directpred_gradient_without_root(u, v, F, eps))
            case "simplified":
                return surrogate(u, directpred_gradient_simplified(u, v, F, eps))
