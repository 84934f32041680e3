"""Ranks: joining a process group from the environment, and the few collectives the methods need.

Every helper is the identity in a single process. The rule they share: DistributedDataParallel averages the
ranks' gradients, so a rank may return its own mean loss, or the global loss computed on gathered rows; the
gradients of `gather` and `sum_over_ranks` are such that both give the single process's gradient.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from carryover.configs import UserError
from carryover.core.training.device import (
    AUTO,
    choose_device,
    copied_to,
    device_ids,
    has_own_sync_bn,
    process_group_backend,
)


@dataclass(frozen=True)
class Ranks:
    """This process among the others: its rank of `world`, and the device it computes on."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Return whether this process writes the files."""
        return self.rank == 0

    def share_of(self, batch_size: int, key: str = "batch_size") -> int:
        """Return this rank's part of a global batch; raises UserError when the ranks' parts would differ.

        `key` is what the recipe calls the batch's size.
        """
        if batch_size % self.world:
            raise UserError(f"{key} {batch_size} cannot be divided evenly among {self.world} processes")
        return batch_size // self.world


@contextmanager
def joined(device: str = AUTO) -> Iterator[Ranks]:
    """Join the process group that RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT describe.

    NCCL on CUDA devices, gloo on CPUs; a single process when WORLD_SIZE is unset or 1. A group that exists
    already is used and left as it is. `device` is a recipe's key of that name; see `choose_device`.

    Raises UserError when a variable is missing or is no number, or when there is no such device.
    """
    if dist.is_initialized():
        found = choose_device(device, _number("LOCAL_RANK", dist.get_rank()))
        yield Ranks(dist.get_rank(), dist.get_world_size(), found)
        return
    world = _number("WORLD_SIZE", 1)
    if world == 1:
        yield Ranks(0, 1, choose_device(device))
        return
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UserError(f"WORLD_SIZE is {world}, but {name} is not set: start the ranks with torchrun")
    rank = _number("RANK", 0)
    own = choose_device(device, _number("LOCAL_RANK", rank))
    dist.init_process_group(process_group_backend(own), rank=rank, world_size=world)
    try:
        yield Ranks(rank, world, own)
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Return whether this process writes the files; it need not have joined the group yet."""
    return (rank() if dist.is_initialized() else _number("RANK", 0)) == 0


def gather(x: Tensor) -> Tensor:
    """Return every rank's rows (b, ...) in rank order, (world * b, ...); gradients flow back to each rank."""
    return cast(Tensor, _Gather.apply(x)) if world_size() > 1 else x


def sum_over_ranks(x: Tensor) -> Tensor:
    """Return the sum of every rank's `x`; gradients flow back to each rank."""
    return cast(Tensor, _Sum.apply(x)) if world_size() > 1 else x


def mean_over_ranks(x: Tensor) -> Tensor:
    """Return the mean of every rank's `x`; gradients flow back to each rank."""
    return sum_over_ranks(x) / world_size() if world_size() > 1 else x


def joined_rows(parts: list[np.ndarray]) -> np.ndarray:
    """Return every rank's arrays (n, ...) one below the other, in the order of the ranks, on every rank.

    A rank may have none.
    """
    everyone: list[list[np.ndarray]] = [parts]
    if world_size() > 1:
        everyone = [[] for _ in range(world_size())]
        dist.all_gather_object(everyone, parts)
    return np.concatenate([part for own in everyone for part in own])


def part_of(count: int, rank: int, world: int) -> slice:
    """Return the items, of `count` in their order, that are a rank's; the first ranks may have one more."""
    each, more = divmod(count, world)
    start = rank * each + min(rank, more)
    return slice(start, start + each + (rank < more))


def own_slice(x: Tensor) -> Tensor:
    """Return this rank's rows of a tensor (world * b, ...) that holds every rank's."""
    return x.chunk(world_size())[rank()]


def rows_of_batch(x: Tensor, wanted: Tensor) -> Tensor:
    """Return, for this rank's part of `wanted`, the global batch's rows of those numbers.

    x: this rank's rows (b, ...); wanted: (world * b,) row numbers in rank order, on the CPU and the same on
    every rank. Only the rows asked for travel; gradients do not.
    """
    if world_size() == 1:
        return x[copied_to(wanted, x.device)]
    b, me = len(x), rank()
    asked = wanted.view(world_size(), b)
    from_me = [row[row // b == me] - me * b for row in asked]
    mine = asked[me] // b
    received = x.new_empty(x.shape)
    dist.all_to_all_single(
        received,
        x[copied_to(torch.cat(from_me), x.device)].contiguous(),
        output_split_sizes=torch.bincount(mine, minlength=world_size()).tolist(),
        input_split_sizes=[len(rows) for rows in from_me],
    )
    # They come owner by owner, each owner's in the order asked for.
    return received[copied_to(mine.argsort(stable=True).argsort(), x.device)]


def from_first(x: Tensor) -> Tensor:
    """Return rank 0's `x` on every rank; the others' may have any values, but the same shape."""
    if world_size() > 1:
        dist.broadcast(x, src=0)
    return x


def barrier() -> None:
    """Wait until every rank has come here."""
    if world_size() > 1:
        dist.barrier()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return own_slice(total)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization with the statistics of all ranks, on any device and backend.

    torch.nn.SyncBatchNorm does not accept CPU tensors; this one is made of differentiable sums over the
    ranks, in the precision of its parameters. Parameters and buffers have nn.BatchNorm2d's names. Every
    rank must have equally many rows.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        x = input.to(self.running_mean.dtype)
        over = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = world_size() * x.numel() // x.shape[1]
        if count == 1:
            raise ValueError("batch normalization needs more than one value per channel")
        mean = sum_over_ranks(x.sum(over)) / count
        centered = x - mean.view(shape)
        variance = sum_over_ranks((centered * centered).sum(over)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        scale = torch.rsqrt(variance + self.eps)
        if not self.affine:
            return (centered * scale.view(shape)).to(input.dtype)
        return (centered * (self.weight * scale).view(shape) + self.bias.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        # self.momentum is a number in every network here; None would ask for a cumulative average.
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, found {input.dim()}")


def with_sync_bn(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace every batch norm in `module` by a synchronized one: torch's where it runs, else ours."""
    if has_own_sync_bn(device):
        return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(module))
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        synced = SyncBatchNorm(module.num_features, module.eps, module.momentum, affine=module.affine)
        synced = synced.to(module.running_mean)
        synced.load_state_dict(module.state_dict())
        for name, parameter in module.named_parameters():
            getattr(synced, name).requires_grad_(parameter.requires_grad)
        return synced
    for name, child in module.named_children():
        setattr(module, name, with_sync_bn(child, device))
    return module


def share_buffers(module: nn.Module) -> None:
    """Give every rank the first one's running statistics: each kept its own, and all test with the same."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def data_parallel(module: nn.Module, ranks: Ranks) -> nn.Module:
    """Average the gradients of all ranks in backward; a single process is returned as it is.

    Running statistics are not broadcast at every step: training never reads them, and rank 0's are saved.
    """
    if ranks.world == 1:
        return module
    with warnings.catch_warnings():
        # torch 2.15 calls this forward_sync_buffers, a name that 2.14 does not know.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(
            module,
            device_ids=device_ids(ranks.device),
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdigit():
        raise UserError(f"environment variable {variable} is {text!r}; expected a number")
    return int(text)
