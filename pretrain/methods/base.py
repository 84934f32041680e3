"""Interface of a method: views in; embeddings, targets and an objective make a loss."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import normalize

from carryover.core.data.prepared import Batch
from carryover.pretrain.config import PretrainConfig
from carryover.pretrain.heads import Encoder
from carryover.pretrain.objectives.preconditions import (
    check_batch_statistics,
    check_directions,
    check_normalized,
)
from carryover.pretrain.target import TargetBranch


@dataclass(frozen=True)
class DataFacts:
    """Facts about the data set: its size, and its number of classes if it has labels."""

    images: int
    classes: int | None


@dataclass(frozen=True)
class Moment:
    """Position of the training: `step` (0-based) of `total`, and randomness shared by all ranks."""

    step: int
    total: int
    generator: Generator


@dataclass(frozen=True)
class Outcome:
    """Result of a step on this rank. Numbers are scalar tensors, later averaged over ranks.

    Attributes
    ----------
    loss
        The loss of this rank's part of the batch, to be averaged over ranks.
    numbers
        What is logged of every step.
    queries, keys
        l2-normalized embeddings (b, d), and those that they are pulled to, for `pretrain.diagnostics`.
    details
        Further numbers, computed only where the training reports. May be a collective call.
    """

    loss: Tensor
    numbers: dict[str, Tensor] = field(default_factory=dict)
    queries: Tensor | None = None
    keys: Tensor | None = None
    details: Callable[[], dict[str, Tensor]] = dict


class Method(nn.Module):
    """A method: an online network, a target branch and an objective.

    A step is `advance`, then `forward`; the latter is `embed`, `targets` and `outcome`, which gradient
    accumulation calls one by one. Whatever must survive an interruption is in `state_dict`. Whatever looks
    across the batch looks across all ranks, so that n processes compute what one would on the global batch.

    Attributes
    ----------
    online
        The trained network; its backbone is what a finished run exports.
    target
        Where targets come from; None for methods that have none.
    directional
        Whether the objective works on the embeddings' directions.
    """

    directional = True

    def __init__(self, online: Encoder, target: TargetBranch | None = None) -> None:
        super().__init__()
        self._unchecked = True
        self.online = online
        self.target = target

    @classmethod
    def of(cls, recipe: PretrainConfig, online: Encoder, facts: DataFacts) -> Self:
        """Build the method of a recipe around an online network whose embeddings are `projector.out` wide.

        Here, from its own section and the network alone: ``cls(recipe.method, online)``.
        """
        build: Any = cls
        method: Self = build(recipe.method, online)
        return method

    def begin(self, batches: Iterable[Batch]) -> None:
        """Prepare before the first step of a fresh run; `batches` goes once over the whole data set."""

    def advance(self, moment: Moment) -> None:
        """Move what follows the online network, before the forward pass of this step."""
        if self.target is not None:
            self.target.advance(self.online, moment.step, moment.total)

    def seen(self, batch: Batch, moment: Moment) -> list[Tensor]:
        """Return the views that the online network sees; targets come from `batch.views` as they are."""
        return batch.views

    def embed(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Return what the trained networks make of the views: here, one embedding (B, d) a view.

        Each view is a forward pass, and so a batch-norm batch, of its own, as in MoCo's and UniGrad's codes.
        """
        return [self.online(view) for view in views]

    def targets(self, views: Sequence[Tensor], embeddings: Sequence[Tensor]) -> list[Tensor]:
        """Return the target (B, d) of each view; `embeddings` is what `embed` returned for them."""
        return [] if self.target is None else self.target(views, embeddings)

    def check(self, embeddings: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch) -> None:
        """Look at the input of this process's first `objective`: a collective call that waits for the device.

        Raises UserError where the objective cannot work with it.
        """
        if self.directional:
            for whose, rows in (("online network", embeddings), ("target branch", targets)):
                for z in rows:
                    check_directions(f"an embedding of the {whose}", z)

    def objective(
        self, embeddings: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch, moment: Moment
    ) -> Outcome:
        """Return the loss of this rank's part of the global batch, and update the method's memory."""
        raise TypeError(f"{type(self).__name__} does not train")

    def outcome(
        self, embeddings: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch, moment: Moment
    ) -> Outcome:
        """Return `objective`'s outcome; the first time, its input is checked, before any weight moves."""
        first, self._unchecked = self._unchecked, False
        if first:
            self.check(embeddings, targets, batch)
        outcome = self.objective(embeddings, targets, batch, moment)
        if first:
            for name, rows in (("queries", outcome.queries), ("keys", outcome.keys)):
                if rows is not None:
                    check_normalized(f"{type(self).__name__}'s {name}", rows)
        return outcome

    def forward(self, batch: Batch, moment: Moment, upstream: Sequence[Tensor] | None = None) -> Outcome:
        """Return the loss of this rank's part of a global batch.

        With `upstream`, the gradient of a loss in what `embed` returns for these very views, the loss is one
        that has this gradient: gradient accumulation's second pass.
        """
        if upstream is not None:
            products = [(z * g).sum() for z, g in zip(self.embed(batch.views), upstream, strict=True)]
            return Outcome(torch.stack(products).sum())
        check_batch_statistics("this process's part of the batch", batch.index)
        embeddings = self.embed(self.seen(batch, moment))
        return self.outcome(embeddings, self.targets(batch.views, embeddings), batch, moment)


def unit(rows: Sequence[Tensor]) -> list[Tensor]:
    """Return every (B, d) with its rows l2-normalized."""
    return [normalize(z, dim=1) for z in rows]
