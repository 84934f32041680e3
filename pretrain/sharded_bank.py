"""A memory bank cut over the ranks: each holds N / world rows, and every loss is over all N of them.

The interface is `bank.MemoryBank`'s. Every method that looks at rows is a collective: all ranks call it, and
`index` and `rows` are those of the whole batch, gathered, except in `loss`, which gathers its own.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Generator, Tensor

from carryover.configs.errors import UserError
from carryover.core.training.distributed import gather, own_slice, rank, sum_over_ranks, world_size
from carryover.pretrain.bank import check_saved, check_size, last_of_each, random_rows
from carryover.pretrain.objectives.instance import InstanceTerms, own_logits, terms_of_sums
from carryover.pretrain.objectives.precision import promote
from carryover.pretrain.objectives.streaming import ClassSums, class_sums


def shard_bounds(num_rows: int, world: int) -> list[int]:
    """First row of every rank's shard, and the end: sizes differ by one where `world` does not divide N."""
    return [num_rows * r // world for r in range(world + 1)]


class ShardedBank:
    """This rank's rows of a bank of N.

    `tensor` (n, d) holds rows `first` to `first + n`.
    """

    def __init__(self, rows: Tensor, num_rows: int) -> None:
        """Takes this rank's shard, as `shard_bounds` cuts a bank of `num_rows`; see `random`.

        Raises UserError where the shard has another size.
        """
        bounds = shard_bounds(num_rows, world_size())
        self.first = bounds[rank()]
        self.num_rows = num_rows
        self.tensor = rows
        expected = bounds[rank() + 1] - self.first
        if len(rows) != expected:
            raise UserError(
                f"Rank {rank()} of {world_size()} was given {len(rows)} rows of a memory bank of {num_rows}, "
                f"but its shard is {expected} rows."
            )

    @classmethod
    def random(
        cls,
        num_rows: int,
        width: int,
        generator: Generator,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "ShardedBank":
        """This rank's part of the rows `MemoryBank.random` would draw; all ranks pass the same seed."""
        first, end = shard_bounds(num_rows, world_size())[rank() :][:2]
        shard = torch.empty(end - first, width, device=device, dtype=dtype)
        for start, block in random_rows(num_rows, width, generator):
            low, high = max(first, start), min(end, start + len(block))
            if low < high:
                shard[low - first : high - first] = block[low - start : high - start].to(shard)
        return cls(shard, num_rows)

    def __len__(self) -> int:
        return self.num_rows

    def rows(self, index: Tensor) -> Tensor:
        """Return the rows (B, d) of the images `index` (B,), the same on every rank."""
        place, here = self._places(index)
        found = torch.zeros(len(place), self.tensor.shape[1], device=self.tensor.device)
        if len(self.tensor):
            found = torch.where(here, self.tensor[place].float(), found)
        # Every row has one owner, so the sum adds zeros to it: exact.
        return sum_over_ranks(found).to(self.tensor.dtype)

    def loss(
        self, z: Tensor, index: Tensor, tau: float, lam: float, l1: float = 1.0, l2: float = 1.0
    ) -> InstanceTerms:
        """`MemoryBank.loss` of this rank's part z (B, d), index (B,) of the batch, against all N rows.

        Every rank sums over its shard for the queries of all ranks; the sums are added up.
        `batch_probabilities` are those of this rank's part.
        """
        with torch.autocast(z.device.type, enabled=False):
            z = promote(z)
            all_z, all_index = gather(z.detach()), gather(index.to(self.tensor.device))
            own_rows = self.rows(all_index)
            own = own_logits(all_z, own_rows, tau)
            sums = class_sums(all_z, self.tensor, all_index - self.first, own, tau)
            mine = _part(_over_ranks(sums))
            return terms_of_sums(z, own_slice(own_rows), own_slice(own), mine, tau, lam, l1, l2)

    def update(self, index: Tensor, rows: Tensor) -> None:
        """Replace the rows of the images `index` (B,) by `rows` (B, d); a repeated one keeps its last."""
        if len(self.tensor) == 0:
            return
        place, here = self._places(index)
        rows = rows.to(self.tensor)[last_of_each(index.to(self.tensor.device))]
        # Rows of other shards repeat one that is here, or rewrite what is there where none is: to leave them
        # out by a mask, the host would have to wait for their number.
        some = here[:, 0].int().argmax(dim=0, keepdim=True)
        place = torch.where(here[:, 0], place, place[some])
        rows = torch.where(here, rows, torch.where(here[some], rows[some], self.tensor[place]))
        self.tensor[place] = rows

    def _places(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images' rows in this shard (B,) and whether they are in it (B, 1)."""
        local = index.to(self.tensor.device) - self.first
        here = (local >= 0) & (local < len(self.tensor))
        return local.clamp(0, max(len(self.tensor) - 1, 0)), here.unsqueeze(1)

    def check(self, num_images: int, width: int) -> None:
        """Raises UserError where the bank does not hold one row of this width for every image."""
        check_size(len(self), self.tensor.shape[1], num_images, width)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state that resuming needs on any number of ranks: all N rows, in main memory."""
        bounds = shard_bounds(self.num_rows, world_size())
        whole = torch.empty(self.num_rows, self.tensor.shape[1], dtype=self.tensor.dtype)
        for owner, (first, end) in enumerate(pairwise(bounds)):
            shard = self.tensor.contiguous()
            if owner != rank():
                shard = self.tensor.new_empty(end - first, self.tensor.shape[1])
            if world_size() > 1 and first < end:
                # As bytes: gloo does not know bfloat16.
                dist.broadcast(shard.view(torch.uint8), src=owner)
            whole[first:end] = shard.cpu()
        return {"rows": whole}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over this rank's part of saved rows. Raises UserError where their shape is not this bank's."""
        check_saved(state["rows"], self.num_rows, self.tensor.shape[1])
        self.tensor.copy_(state["rows"][self.first : self.first + len(self.tensor)])


def _over_ranks(sums: ClassSums) -> ClassSums:
    """Return the sums over all classes, from every rank's over its shard, for the same queries."""
    if world_size() == 1:
        return sums
    maximum = sums.maximum.clone()
    dist.all_reduce(maximum, dist.ReduceOp.MAX)
    sums = sums.relative_to(maximum)
    columns = [sums.half, sums.total, sums.tilt]
    packed = torch.cat([torch.stack(columns, dim=1), sums.mean, sums.tilted_mean], dim=1)
    dist.all_reduce(packed)
    half, total, tilt = packed[:, :3].unbind(1)
    mean, tilted_mean = packed[:, 3:].chunk(2, dim=1)
    return ClassSums(maximum, half, total, tilt, mean, tilted_mean)


def _part(sums: ClassSums) -> ClassSums:
    """Return this rank's queries' sums, from those of all ranks' queries."""
    return ClassSums(**{name: own_slice(value) for name, value in vars(sums).items()})
