"""The methods: each is views, a target branch, a head and an objective, put together into one module.

A method's forward takes a batch to its loss; everything that must survive an interruption (momentum encoder,
correlation matrix, memory bank) is in its `state_dict`. Whatever looks across the batch looks across all
ranks, so that n processes compute what one would on the same global batch.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from configs import UserError
from pretrain.backbones import build_backbone
from pretrain.bank import MemoryBank
from pretrain.config import PretrainConfig
from pretrain.data import Batch
from pretrain.diagnostics import embedding_spread, pair_similarities
from pretrain.distributed import gather, mean_over_ranks, own_slice
from pretrain.heads import Encoder, build_projector
from pretrain.method_config import SiMoConfig, SqrtKLConfig, SupervisedConfig, UniGradConfig
from pretrain.objectives.contrastive import sample_negatives, simo_loss
from pretrain.objectives.instance import class_probabilities, corrected_direction, instance_loss, updated_rows
from pretrain.objectives.unigrad import batch_correlation, unigrad_multicrop_loss, update_correlation
from pretrain.target import TargetBranch, build_target


@dataclass(frozen=True)
class Moment:
    """Where the training stands: `step` (0-based) of `total`, and randomness that all ranks share there."""

    step: int
    total: int
    generator: Generator


@dataclass(frozen=True)
class Outcome:
    """A batch's loss on this rank, and numbers to log: detached scalar tensors, later averaged over ranks."""

    loss: Tensor
    numbers: dict[str, Tensor]


class Method(nn.Module):
    """What the trainer asks of a method.

    Attributes
    ----------
    online
        The trained network; its backbone is what a finished run exports.
    """

    def __init__(self, online: Encoder) -> None:
        super().__init__()
        self.online = online

    def begin(self, batches: Iterable[Batch]) -> None:
        """Prepare before the first step of a fresh run; `batches` goes once over the whole data set."""

    def advance(self, moment: Moment) -> None:
        """Move what follows the online network, before the forward pass of this step."""

    def forward(self, batch: Batch, moment: Moment) -> Outcome:
        """Return the loss of this rank's part of a global batch."""
        raise TypeError(f"{type(self).__name__} does not train")


class UniGrad(Method):
    """UniGrad (Eq. 14 and 15): two global views and any number of local ones, symmetrised and halved."""

    def __init__(self, config: UniGradConfig, online: Encoder, width: int) -> None:
        super().__init__(online)
        self.config = config
        self.target: TargetBranch = build_target(config.target, online)
        self.correlation: Tensor
        self.register_buffer("correlation", torch.zeros(width, width))

    def advance(self, moment: Moment) -> None:
        self.target.advance(self.online, moment.step, moment.total)

    def forward(self, batch: Batch, moment: Moment) -> Outcome:
        # Each global view is a forward pass, and a batch-norm batch, of its own, as in the public code; the
        # local crops share one, as in SwAV and DINO.
        globals_, locals_ = batch.views[:2], batch.views[2:]
        embeddings = [self.online(view) for view in globals_]
        targets = [normalize(v, dim=1) for v in self.target(globals_, embeddings)]
        if locals_:
            embeddings += self.online(torch.cat(list(locals_))).chunk(len(locals_))
        embeddings = [normalize(z, dim=1) for z in embeddings]

        source = targets if self.config.correlation_source == "momentum" else embeddings[:2]
        of_batch = mean_over_ranks(batch_correlation(torch.cat(list(source))))
        before = None if moment.step == 0 else self.correlation
        F = update_correlation(before, of_batch, self.config.rho)
        self.correlation.copy_(F)

        loss = unigrad_multicrop_loss(embeddings, (targets[0], targets[1]), F, self.config.lam)
        return Outcome(loss, _siamese_numbers(embeddings[0], targets[1]))


class SiMo(Method):
    """SiMo: one query view, one momentum-key view, K random keys of the global batch as negatives."""

    def __init__(self, config: SiMoConfig, online: Encoder) -> None:
        super().__init__(online)
        self.config = config
        self.target: TargetBranch = build_target(config.target, online)

    def advance(self, moment: Moment) -> None:
        self.target.advance(self.online, moment.step, moment.total)

    def forward(self, batch: Batch, moment: Moment) -> Outcome:
        query_view, key_view = batch.views
        queries = normalize(self.online(query_view), dim=1)
        (own_keys,) = self.target([key_view], [queries])
        own_keys = normalize(own_keys, dim=1)
        keys = gather(own_keys)
        own = torch.arange(len(keys), device=keys.device)
        # Drawn for the whole global batch from the shared generator: every rank takes its rows of one draw.
        negatives = sample_negatives(len(keys), len(keys), own, self.config.negatives, moment.generator)
        loss = simo_loss(
            queries, keys, own_slice(own), own_slice(negatives), self.config.tau, self.config.alpha
        )
        return Outcome(loss, _siamese_numbers(queries, own_keys))


class SqrtKL(Method):
    """SqrtKL: one view, one branch, and a bank with one row an image."""

    def __init__(self, config: SqrtKLConfig, online: Encoder, width: int, images: int, seed: int) -> None:
        super().__init__(online)
        self.config = config
        self.rows: Tensor
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("rows", MemoryBank.random(images, width, generator).tensor)

    @torch.no_grad()
    def begin(self, batches: Iterable[Batch]) -> None:
        """Feature calibrate: w_i = z_i of the untrained network (section 3.2), under its batch statistics."""
        if not self.config.feature_calibrate:
            return
        # The pass must leave no trace in the network: running statistics are those of the training alone.
        before = {name: value.clone() for name, value in self.online.named_buffers()}
        for batch in batches:
            z = normalize(self.online(batch.views[0]), dim=1)
            MemoryBank(self.rows).update(gather(batch.index), gather(z))
        for name, value in self.online.named_buffers():
            value.copy_(before[name])

    def forward(self, batch: Batch, moment: Moment) -> Outcome:
        config = self.config
        z = normalize(self.online(batch.views[0]), dim=1)
        terms = instance_loss(z, self.rows, batch.index, config.tau, config.lam)
        self._move_bank(z.detach(), batch.index, terms.log_partition)
        numbers = {
            "cross_entropy": terms.cross_entropy.detach(),
            "sqrtkl": terms.sqrtkl.detach(),
            "instance_accuracy": terms.accuracy.detach(),
            "embedding_spread": embedding_spread(z.detach()),
        }
        return Outcome(terms.loss, numbers)

    @torch.no_grad()
    def _move_bank(self, z: Tensor, index: Tensor, log_partition: Tensor) -> None:
        bank = MemoryBank(self.rows)
        all_z, all_index = gather(z), gather(index)
        rows = bank.rows(all_index)
        direction = all_z
        if self.config.grad_update:
            p = class_probabilities(rows, all_z, gather(log_partition), self.config.tau)
            direction = corrected_direction(all_z, p)
        bank.update(all_index, updated_rows(rows, direction, self.config.bank_momentum))


class Supervised(Method):
    """Cross-entropy on the data set's labels; its head is the classifier."""

    def __init__(self, config: SupervisedConfig, online: Encoder) -> None:
        super().__init__(online)
        self.config = config

    def forward(self, batch: Batch, moment: Moment) -> Outcome:
        assert batch.label is not None
        logits = self.online(batch.views[0])
        loss = cross_entropy(logits, batch.label, label_smoothing=self.config.label_smoothing)
        accuracy = (logits.argmax(1) == batch.label).float().mean()
        return Outcome(loss, {"accuracy": accuracy})


@dataclass(frozen=True)
class DataFacts:
    """What a method must know of the data set: its size, and its number of classes when it has labels."""

    images: int
    classes: int | None


def build_method(config: PretrainConfig, facts: DataFacts) -> Method:
    """Build the method of a recipe with freshly initialised networks, from the recipe's seed.

    Raises UserError when the data set has no labels and the method needs them, or the batch is too small for
    what the method draws from it.
    """
    if config.method.wants_labels and facts.classes is None:
        raise UserError(f"method {config.method.name} needs labels, but the data set has none")
    torch.manual_seed(config.seed)
    return _BUILDERS[config.method.name](config, facts)


def _encoder(config: PretrainConfig) -> tuple[Encoder, int]:
    backbone = build_backbone(config.backbone)
    assert config.projector is not None
    head = build_projector(config.projector, backbone.feature_dim)
    return Encoder(backbone, head, config.precision == "bf16"), config.projector.out


def _unigrad(config: PretrainConfig, facts: DataFacts) -> Method:
    online, width = _encoder(config)
    return UniGrad(cast(UniGradConfig, config.method), online, width)


def _simo(config: PretrainConfig, facts: DataFacts) -> Method:
    online, _ = _encoder(config)
    return SiMo(cast(SiMoConfig, config.method), online)


def _sqrtkl(config: PretrainConfig, facts: DataFacts) -> Method:
    online, width = _encoder(config)
    return SqrtKL(cast(SqrtKLConfig, config.method), online, width, facts.images, config.seed)


def _supervised(config: PretrainConfig, facts: DataFacts) -> Method:
    backbone = build_backbone(config.backbone)
    assert facts.classes is not None
    classifier = nn.Linear(backbone.feature_dim, facts.classes)
    online = Encoder(backbone, classifier, config.precision == "bf16")
    return Supervised(cast(SupervisedConfig, config.method), online)


def _random(config: PretrainConfig, facts: DataFacts) -> Method:
    return Method(Encoder(build_backbone(config.backbone), nn.Identity(), config.precision == "bf16"))


_BUILDERS: dict[str, Callable[[PretrainConfig, DataFacts], Method]] = {
    "unigrad": _unigrad,
    "simo": _simo,
    "sqrtkl": _sqrtkl,
    "supervised": _supervised,
    "random": _random,
}


def _siamese_numbers(queries: Tensor, keys: Tensor) -> dict[str, Tensor]:
    queries = queries.detach()
    positive, negative = pair_similarities(queries, keys.detach())
    return {
        "positive_similarity": positive,
        "negative_similarity": negative,
        "embedding_spread": embedding_spread(queries),
    }
