"""SqrtKL and NPID as methods: every image its own class, over a bank with one row an image."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from carryover.core.data.prepared import Batch
from carryover.core.training.distributed import gather, own_slice
from carryover.pretrain.bank import MemoryBank
from carryover.pretrain.config import PretrainConfig
from carryover.pretrain.heads import Encoder
from carryover.pretrain.method_config import NPIDConfig, SqrtKLConfig
from carryover.pretrain.methods.base import DataFacts, Method, Moment, Outcome, unit
from carryover.pretrain.objectives.instance import (
    class_probabilities,
    corrected_direction,
    proximal_loss,
    updated_rows,
)
from carryover.pretrain.objectives.preconditions import check_normalized
from carryover.pretrain.sharded_bank import ShardedBank


def bank_of(
    recipe: PretrainConfig, method: SqrtKLConfig | NPIDConfig, facts: DataFacts
) -> MemoryBank | ShardedBank:
    """Return a bank of one random direction an image, drawn by the recipe's seed."""
    assert recipe.projector is not None
    dtype = torch.bfloat16 if method.bank_precision == "bf16" else torch.float32
    generator = torch.Generator().manual_seed(recipe.seed)
    kind = ShardedBank if method.bank_sharded else MemoryBank
    return kind.random(facts.images, recipe.projector.out, generator, dtype=dtype)


class _Banked(Method):
    """Base of SqrtKL and NPID: one view, one branch, and the bank."""

    def __init__(
        self, config: SqrtKLConfig | NPIDConfig, online: Encoder, bank: MemoryBank | ShardedBank
    ) -> None:
        super().__init__(online)
        self.settings = config
        self.bank = bank

    def check(self, embeddings: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch) -> None:
        super().check(embeddings, targets, batch)
        self.check_rows(embeddings[0], batch.index)
        check_normalized("the memory bank's rows", self.bank.rows(gather(batch.index)))

    def check_rows(self, z: Tensor, index: Tensor) -> None:
        """Raises UserError where an image of the batch has no row of its embedding's width in the bank."""
        self.bank.check(max(len(self.bank), int(index.max()) + 1), z.shape[1])

    def move_bank(self, z: Tensor, index: Tensor, log_partition: Tensor, corrected: bool) -> None:
        """Update the rows of the global batch's images (Eqs. 3, 6); a collective call."""
        all_z, all_index = gather(z.detach()), gather(index)
        rows = self.bank.rows(all_index)
        direction = all_z
        if corrected:
            p = class_probabilities(rows, all_z, gather(log_partition), self.settings.tau)
            direction = corrected_direction(all_z, p)
        self.bank.update(all_index, updated_rows(rows, direction, self.settings.bank_momentum))

    # The bank is no module; it moves, is saved and is restored with the one that holds it.
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.bank.tensor = fn(self.bank.tensor)
        return self

    def get_extra_state(self) -> dict[str, Tensor]:
        return self.bank.state_dict()

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        self.bank.load_state_dict(state)


class SqrtKL(_Banked):
    """Cross-entropy and the SqrtKL self-distillation over all images (Eq. 13)."""

    def __init__(self, config: SqrtKLConfig, online: Encoder, bank: MemoryBank | ShardedBank) -> None:
        super().__init__(config, online, bank)
        self.config = config

    @classmethod
    def of(cls, recipe: PretrainConfig, online: Encoder, facts: DataFacts) -> "SqrtKL":
        assert isinstance(recipe.method, SqrtKLConfig)
        return cls(recipe.method, online, bank_of(recipe, recipe.method, facts))

    @torch.no_grad()
    def begin(self, batches: Iterable[Batch]) -> None:
        """Feature calibrate: w_i = z_i of the untrained network (section 3.2), under its batch statistics."""
        if not self.config.feature_calibrate:
            return
        # The pass must leave no trace in the network: running statistics are those of the training alone.
        before = {name: value.clone() for name, value in self.online.named_buffers()}
        for batch in batches:
            (z,) = unit(self.embed(batch.views))
            self.check_rows(z, batch.index)
            self.bank.update(gather(batch.index), gather(z))
        for name, value in self.online.named_buffers():
            value.copy_(before[name])

    def objective(
        self, embeddings: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch, moment: Moment
    ) -> Outcome:
        config = self.config
        (z,) = unit(embeddings)
        terms = self.bank.loss(z, batch.index, config.tau, config.lam, config.l1, config.l2)
        self.move_bank(z, batch.index, terms.log_partition, config.grad_update)
        numbers = {
            "cross_entropy": terms.cross_entropy.detach(),
            "sqrtkl": terms.sqrtkl.detach(),
            "instance_accuracy": terms.accuracy.detach(),
        }
        return Outcome(terms.loss, numbers, queries=z)


class NPID(_Banked):
    """Non-parametric instance discrimination and its proximal term (Wu et al. 2018; SqrtKL Eqs. 2, 3, 11)."""

    def __init__(self, config: NPIDConfig, online: Encoder, bank: MemoryBank | ShardedBank) -> None:
        super().__init__(config, online, bank)
        self.config = config

    @classmethod
    def of(cls, recipe: PretrainConfig, online: Encoder, facts: DataFacts) -> "NPID":
        assert isinstance(recipe.method, NPIDConfig)
        return cls(recipe.method, online, bank_of(recipe, recipe.method, facts))

    def objective(
        self, embeddings: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch, moment: Moment
    ) -> Outcome:
        (z,) = unit(embeddings)
        terms = self.bank.loss(z, batch.index, self.config.tau, 0.0)
        loss = terms.loss
        if self.config.proximal:
            # The sharded bank's rows are a collective of the whole batch.
            rows = own_slice(self.bank.rows(gather(batch.index)))
            loss = loss + self.config.proximal * proximal_loss(z, rows)
        self.move_bank(z, batch.index, terms.log_partition, corrected=False)
        numbers = {
            "instance_accuracy": terms.accuracy.detach(),
        }
        return Outcome(loss, numbers, queries=z)
