"""SiMo, MoCo, MoCo v3 and SimCLR as methods: where each takes its negative keys from."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from carryover.core.data.prepared import Batch
from carryover.core.training.distributed import gather, own_slice, rank, world_size
from carryover.pretrain.config import PretrainConfig
from carryover.pretrain.heads import Encoder, Predictor
from carryover.pretrain.method_config import MoCoConfig, MoCoV3Config, SimCLRConfig, SiMoConfig
from carryover.pretrain.methods.base import DataFacts, Method, Moment, Outcome, unit
from carryover.pretrain.objectives.contrastive import (
    batch_info_nce,
    enqueue,
    eqco_margin,
    info_nce,
    mi_bound,
    sample_negatives,
    sampled_info_nce,
    simo_loss,
)
from carryover.pretrain.target import build_target


class SiMo(Method):
    """One query view, one momentum-key view, K random keys of the global batch as negatives."""

    def __init__(self, config: SiMoConfig, online: Encoder) -> None:
        super().__init__(online, build_target(config.target, online, config.shuffle_bn))
        self.config = config

    def embed(self, views: Sequence[Tensor]) -> list[Tensor]:
        return [self.online(views[0])]

    def targets(self, views: Sequence[Tensor], embeddings: Sequence[Tensor]) -> list[Tensor]:
        return super().targets(views[1:], embeddings)

    def objective(
        self, embeddings: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch, moment: Moment
    ) -> Outcome:
        (queries,), (own_keys,) = unit(embeddings), unit(targets)
        keys = gather(own_keys)
        own = torch.arange(len(keys), device=keys.device)
        # Drawn for the whole global batch from the shared generator: every rank takes its rows of one draw.
        drawn = sample_negatives(len(keys), len(keys), own, self.config.negatives, moment.generator)
        tau, alpha = self.config.tau, self.config.alpha
        loss = simo_loss(queries, keys, own_slice(own), own_slice(drawn), tau, alpha)
        bound = mi_bound(loss, alpha)
        return Outcome(loss, {"mi_bound": bound}, queries, own_keys)


class MoCo(Method):
    """Momentum keys of earlier batches, in a queue, as negatives (UniGrad Table 2 a; EqCo Table 4)."""

    def __init__(self, config: MoCoConfig, online: Encoder, width: int, seed: int) -> None:
        super().__init__(online, build_target(config.target, online, config.shuffle_bn))
        self.config = config
        self.queue: Tensor
        start = torch.randn(config.queue, width, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("queue", normalize(start, dim=1))

    @classmethod
    def of(cls, recipe: PretrainConfig, online: Encoder, facts: DataFacts) -> "MoCo":
        assert isinstance(recipe.method, MoCoConfig) and recipe.projector is not None
        return cls(recipe.method, online, recipe.projector.out, recipe.seed)

    def embed(self, views: Sequence[Tensor]) -> list[Tensor]:
        return super().embed(views if self.config.symmetric else views[:1])

    def targets(self, views: Sequence[Tensor], embeddings: Sequence[Tensor]) -> list[Tensor]:
        return super().targets(list(reversed(views)) if self.config.symmetric else views[1:], embeddings)

    def objective(
        self, embeddings: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch, moment: Moment
    ) -> Outcome:
        queries, keys = unit(embeddings), unit(targets)
        margin = _margin(self.config.alpha, self.config.queue, self.config.tau)
        # A clone: the queue moves on before the gradient is taken.
        negatives = self.queue.clone()
        losses = [
            info_nce(q, k, negatives, self.config.tau, margin) for q, k in zip(queries, keys, strict=True)
        ]
        self.queue.copy_(enqueue(self.queue, torch.cat([gather(k) for k in keys]), moment.generator))
        loss = torch.stack(losses).mean()
        bound = mi_bound(loss, self.config.alpha or self.config.queue)
        return Outcome(loss, {"mi_bound": bound}, queries[0], keys[0])


class MoCoV3(Method):
    """A predictor's outputs against the momentum keys of the global batch, both ways (Algorithm 1)."""

    def __init__(self, config: MoCoV3Config, online: Encoder, width: int) -> None:
        super().__init__(online, build_target(config.target, online))
        self.config = config
        self.predictor = Predictor(config.predictor, width, online.bf16)

    @classmethod
    def of(cls, recipe: PretrainConfig, online: Encoder, facts: DataFacts) -> "MoCoV3":
        assert isinstance(recipe.method, MoCoV3Config) and recipe.projector is not None
        return cls(recipe.method, online, recipe.projector.out)

    def embed(self, views: Sequence[Tensor]) -> list[Tensor]:
        return [self.predictor(z) for z in super().embed(views)]

    def objective(
        self, embeddings: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch, moment: Moment
    ) -> Outcome:
        queries, keys = unit(embeddings), list(reversed(unit(targets)))
        tau, count = self.config.tau, len(queries[0])
        own = (rank() * count + torch.arange(count, device=queries[0].device)).unsqueeze(1)
        losses = [batch_info_nce(q, k, gather(k), own, tau) for q, k in zip(queries, keys, strict=True)]
        total = torch.stack(losses).sum()
        bound = mi_bound(total / 2, count * world_size() - 1)
        return Outcome(2 * tau * total, {"mi_bound": bound}, queries[0], keys[0])


class SimCLR(Method):
    """The other images' views of the global batch as negatives (UniGrad Eqs. 19 to 21; EqCo 2.3)."""

    def __init__(self, config: SimCLRConfig, online: Encoder) -> None:
        super().__init__(online, build_target(config.target, online))
        self.config = config

    def objective(
        self, embeddings: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch, moment: Moment
    ) -> Outcome:
        config = self.config
        u, v = unit(embeddings), unit(targets)
        queries, positives = torch.cat(u), torch.cat([v[1], v[0]])
        source = v if config.negatives_from == "target" else [z.detach() for z in u]
        keys = torch.cat([gather(source[0]), gather(source[1])])

        # Among the 2B keys of the global batch B, a query is number own and its positive number other.
        count = len(keys) // 2
        first = rank() * len(u[0]) + torch.arange(len(u[0]), device=keys.device)
        own, other = torch.cat([first, first + count]), torch.cat([first + count, first])
        excluded = torch.stack([own, other], dim=1)
        available = 2 * count - 2
        margin = _margin(config.alpha, config.negatives or available, config.tau)
        if config.negatives is None:
            loss = batch_info_nce(queries, positives, keys, excluded, config.tau, margin)
        else:
            everyone = torch.arange(2 * count, device=keys.device)
            pairs = torch.stack([everyone, everyone.roll(count)], dim=1)
            drawn = sample_negatives(2 * count, 2 * count, pairs, config.negatives, moment.generator)
            loss = sampled_info_nce(queries, positives, keys, drawn[own], config.tau, margin)
        bound = mi_bound(loss, config.alpha or config.negatives or available)
        return Outcome(loss, {"mi_bound": bound}, queries, positives)


def _margin(alpha: float | None, negatives: int, tau: float) -> float:
    return 0.0 if alpha is None else eqco_margin(alpha, negatives, tau)
