"""Gradient accumulation that keeps the global batch's loss, for objectives that look across the batch.

Averaging the losses of small batches would be another method for everything here but cross-entropy: SiMo and
SimCLR would have fewer negatives, UniGrad, Barlow Twins and VICReg other correlation matrices, SqrtKL another
bank update. Instead (as GradCache, Gao et al. 2021, does): embed every part without a graph, take the loss of
the whole batch and its gradient in the embeddings, then embed every part again and send that gradient
through. The loss, its gradient and every memory are the undivided batch's; the price is a second forward
pass. Batch norm alone sees the parts, as it does on ranks that do not synchronize it.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from carryover.core.data.prepared import Batch
from carryover.core.training.device import random_state, restore_random_state
from carryover.pretrain.methods import Method, Moment, Outcome


def backward(model: nn.Module, method: Method, batch: Batch, moment: Moment, parts: int) -> Outcome:
    """Compute a batch's loss and leave its gradient in the parameters, `parts` of the batch at a time.

    `model` is `method`, or data parallelism around it.
    """
    if parts == 1:
        outcome: Outcome = model(batch, moment)
        _backward(outcome)
        return outcome

    seen = Batch(batch.index, method.seen(batch, moment), batch.label)
    pieces, clean = _cut(seen, parts), _cut(batch, parts)
    device = batch.views[0].device
    randomness = random_state([device])
    with torch.no_grad():
        statistics = {name: value.clone() for name, value in method.named_buffers()}
        embedded = _joined([method.embed(piece.views) for piece in pieces])
        for name, value in method.named_buffers():
            value.copy_(statistics[name])
    leaves = [z.requires_grad_() for z in embedded]
    outcome = method.outcome(leaves, _targets(method, batch, clean, leaves), batch, moment)
    _backward(outcome)

    gradients = [torch.zeros_like(z) if z.grad is None else z.grad for z in leaves]
    restore_random_state(randomness)
    for number, piece in enumerate(pieces):
        upstream = [g.chunk(parts)[number] for g in gradients]
        last = number == parts - 1
        alone = isinstance(model, DistributedDataParallel) and not last
        with model.no_sync() if alone else nullcontext():  # type: ignore[operator]
            model(piece, moment, upstream).loss.backward()
    return outcome


def _backward(outcome: Outcome) -> None:
    if outcome.queries is not None:
        # Its norm is one of the diagnostics.
        outcome.queries.retain_grad()
    outcome.loss.backward()


def _targets(method: Method, batch: Batch, pieces: Sequence[Batch], leaves: Sequence[Tensor]) -> list[Tensor]:
    if method.target is None or not method.target.looks_at_views:
        return method.targets(batch.views, leaves)
    return _joined([method.targets(piece.views, []) for piece in pieces])


def _cut(batch: Batch, parts: int) -> list[Batch]:
    labels = [None] * parts if batch.label is None else batch.label.chunk(parts)
    views = zip(*(view.chunk(parts) for view in batch.views), strict=True)
    return [
        Batch(index, list(own), label)
        for index, own, label in zip(batch.index.chunk(parts), views, labels, strict=True)
    ]


def _joined(pieces: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.cat(rows) for rows in zip(*pieces, strict=True)]
