"""A bank cut over ranks computes what a whole one does."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from carryover.configs.errors import UserError
from carryover.core.training.distributed import gather, own_slice, rank, world_size
from carryover.pretrain.bank import MemoryBank
from carryover.pretrain.objectives.instance import class_probabilities, corrected_direction, updated_rows
from carryover.pretrain.sharded_bank import ShardedBank, shard_bounds
from tests.pretrain.ranks import on_ranks

# 23 rows divide neither by 2 nor by 3; 6 queries divide by both.
ROWS, WIDTH, BATCH, TAU, LAM = 23, 5, 6, 0.07, 20.0


def _batch(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    index = torch.randperm(ROWS, generator=generator)[:BATCH]
    return normalize(torch.randn(BATCH, WIDTH, generator=generator, dtype=dtype), dim=1), index


def _steps(bank: MemoryBank | ShardedBank) -> dict[str, Tensor]:
    """Three training steps' losses, gradients and updates on this rank's part of the batch."""
    seen: dict[str, Tensor] = {}
    for step in range(3):
        # Embeddings are as exact as the bank, and never less than float32.
        all_z, all_index = _batch(step, torch.promote_types(bank.tensor.dtype, torch.float32))
        z, index = own_slice(all_z).clone().requires_grad_(), own_slice(all_index)
        terms = bank.loss(z, index, TAU, LAM)
        terms.loss.backward()
        # DistributedDataParallel averages over ranks: the whole batch's mean has 1 / world of this gradient.
        assert z.grad is not None
        seen[f"loss {step}"] = gather(terms.loss.detach().unsqueeze(0)).mean()
        seen[f"gradient {step}"] = gather(z.grad) / world_size()
        rows = bank.rows(all_index)
        p = class_probabilities(rows, all_z, gather(terms.log_partition), TAU)
        bank.update(all_index, updated_rows(rows, corrected_direction(all_z, p), 0.5))
    return {**seen, **bank.state_dict()}


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _sharded(_: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], int]:
    bank = ShardedBank.random(ROWS, WIDTH, _generator(), dtype=dtype)
    bank.check(ROWS, WIDTH)
    first, end = shard_bounds(ROWS, world_size())[rank() :][:2]
    assert len(bank.tensor) == end - first
    before = bank.state_dict()["rows"]
    bank.load_state_dict({"rows": before.flip(0)})
    assert torch.equal(bank.state_dict()["rows"], before.flip(0))
    bank.load_state_dict({"rows": before})
    return _steps(bank), len(bank.tensor)


@pytest.mark.parametrize(("world", "dtype"), [(2, torch.float64), (3, torch.bfloat16)])
def test_shards_give_the_whole_banks_losses_gradients_and_updates(
    world: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    expected = _steps(MemoryBank.random(ROWS, WIDTH, _generator(), dtype=dtype))
    results = on_ranks(world, _sharded, tmp_path, dtype)
    assert sum(size for _, size in results) == ROWS
    for seen, _ in results:
        assert seen.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(seen[name], value, msg=lambda text, name=name: f"{name}: {text}")


def test_one_rank_holds_the_whole_bank() -> None:
    expected = _steps(MemoryBank.random(ROWS, WIDTH, _generator()))
    actual = _steps(ShardedBank.random(ROWS, WIDTH, _generator()))
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value)


@pytest.mark.parametrize(("rows", "world"), [(23, 3), (4, 4), (2, 5), (0, 2)])
def test_shards_cover_every_row_once_and_evenly(rows: int, world: int) -> None:
    bounds = shard_bounds(rows, world)
    sizes = [end - first for first, end in pairwise(bounds)]
    assert bounds[0] == 0 and sum(sizes) == rows
    assert max(sizes) - min(sizes) <= 1


def test_a_shard_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(UserError, match="22 rows of a memory bank of 23"):
        ShardedBank(torch.zeros(22, WIDTH), ROWS)


def test_a_saved_bank_of_another_size_is_refused() -> None:
    bank = ShardedBank.random(ROWS, WIDTH, _generator())
    with pytest.raises(UserError, match=r"shape \(24, 5\), this run's is \(23, 5\)"):
        bank.load_state_dict({"rows": torch.zeros(24, WIDTH)})
