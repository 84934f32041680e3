"""Collectives and synchronized batch norm give ranks what one process computes, gradients included."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from carryover.configs import UserError
from carryover.core.training.distributed import (
    Ranks,
    gather,
    joined,
    own_slice,
    part_of,
    rows_of_batch,
    sum_over_ranks,
    with_sync_bn,
)
from carryover.pretrain.target import MomentumEncoder
from tests.pretrain.ranks import on_ranks

WORLD = 2
PERMUTATION, WITH_REPEATS = torch.tensor([3, 0, 5, 1, 2, 4]), torch.tensor([4, 4, 0, 0, 5, 4])


def _rows() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _images() -> Tensor:
    return 3 + 2 * torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _network() -> nn.Module:
    torch.manual_seed(2)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
    return nn.Sequential(network, nn.BatchNorm1d(5)).double()


def _loss_across_the_batch(z: Tensor) -> Tensor:
    return (z @ z.T).exp().sum() + (z.mean(0) ** 3).sum()


def _gathered_gradient(rank: int) -> tuple[Tensor, Tensor]:
    mine = own_slice(_rows()).clone().requires_grad_()
    everything = gather(mine)
    _loss_across_the_batch(everything).backward()
    assert mine.grad is not None
    return everything.detach(), mine.grad


def _summed_gradient(rank: int) -> tuple[Tensor, Tensor]:
    mine = own_slice(_rows()).clone().requires_grad_()
    total = sum_over_ranks(mine.sum(0))
    ((rank + 1) * total.pow(3).sum()).backward()
    assert mine.grad is not None
    return total.detach(), mine.grad


def _through(network: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    output = network(images)
    output.pow(3).mean().backward()
    gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    return output.detach(), gradients, dict(network.named_buffers())


def _synchronized(rank: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    network = with_sync_bn(_network(), torch.device("cpu"))
    assert not any(type(m) in (nn.BatchNorm1d, nn.BatchNorm2d) for m in network.modules())
    return _through(network, own_slice(_images()))


def _fetched(rank: int) -> tuple[Tensor, Tensor]:
    mine = own_slice(_rows())
    return rows_of_batch(mine, PERMUTATION), rows_of_batch(mine, WITH_REPEATS)


def _shuffled(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    images = own_slice(_images())
    torch.manual_seed(rank)
    plain = nn.Flatten()
    normalized = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(75, affine=False).double())
    return (
        MomentumEncoder(plain, 1.0, 1.0, shuffle_bn=True)([images], [])[0],
        MomentumEncoder(normalized, 1.0, 1.0, shuffle_bn=True)([images], [])[0],
        MomentumEncoder(normalized, 1.0, 1.0)([images], [])[0],
    )


def _everything(rank: int) -> tuple[Any, ...]:
    return (
        _gathered_gradient(rank),
        _summed_gradient(rank),
        _synchronized(rank),
        _fetched(rank),
        _shuffled(rank),
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each rank computed, rank by rank: starting processes is the slow part, so all at once."""
    return on_ranks(WORLD, _everything, tmp_path_factory.mktemp("ranks"))


def test_gather_gives_every_rank_the_batch_and_every_row_its_gradient(found: list[Any]) -> None:
    whole = _rows().requires_grad_()
    _loss_across_the_batch(whole).backward()
    assert whole.grad is not None
    results = [f[0] for f in found]
    for everything, _ in results:
        torch.testing.assert_close(everything, whole.detach())
    # Each rank computes the whole loss, so the gradients of both add up; data parallelism then halves them.
    torch.testing.assert_close(torch.cat([g for _, g in results]) / WORLD, whole.grad)


def test_a_sum_over_ranks_sends_every_ranks_gradient_back(found: list[Any]) -> None:
    whole = _rows().requires_grad_()
    (3 * whole.sum(0).pow(3).sum()).backward()
    assert whole.grad is not None
    results = [f[1] for f in found]
    torch.testing.assert_close(results[0][0], whole.detach().sum(0))
    torch.testing.assert_close(torch.cat([g for _, g in results]), whole.grad)


def test_synchronized_batch_norm_equals_batch_norm_over_the_whole_batch(found: list[Any]) -> None:
    output, gradients, buffers = _through(_network(), _images())
    results = [f[2] for f in found]
    torch.testing.assert_close(torch.cat([r[0] for r in results]), output)
    for name, wanted in gradients.items():
        torch.testing.assert_close(sum(r[1][name] for r in results) / WORLD, wanted)
    for _, _, buffers_there in results:
        for name, wanted in buffers.items():
            torch.testing.assert_close(buffers_there[name], wanted)


def test_rows_of_the_batch_are_fetched_from_the_ranks_that_hold_them(found: list[Any]) -> None:
    for number, wanted in enumerate((PERMUTATION, WITH_REPEATS)):
        fetched = torch.cat([f[3][number] for f in found])
        assert fetched.equal(_rows()[wanted])
        assert rows_of_batch(_rows(), wanted).equal(_rows()[wanted])


def test_shuffled_keys_come_home_but_were_normalized_among_others(found: list[Any]) -> None:
    plain, shuffled, unshuffled = (torch.cat([f[4][i] for f in found]) for i in range(3))
    assert plain.equal(_images().flatten(1))
    assert not shuffled.allclose(unshuffled)
    # Whatever the shuffle, each rank normalized half of the images: over both, mean 0 and variance about 1.
    torch.testing.assert_close(shuffled.mean(0), torch.zeros(75, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(
        shuffled.var(0, correction=0), torch.ones(75, dtype=torch.float64), rtol=0, atol=1e-3
    )


def test_synchronized_batch_norm_keeps_names_weights_and_frozen_parameters() -> None:
    network = _network()
    network[0][1].requires_grad_(False)  # type: ignore[index]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    synced = with_sync_bn(network, torch.device("cpu"))
    assert {n: v.tolist() for n, v in synced.state_dict().items()} == {
        n: v.tolist() for n, v in state.items()
    }
    assert {n for n, p in synced.named_parameters() if not p.requires_grad} == {"0.1.weight", "0.1.bias"}


def test_a_single_process_is_its_own_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    rows = _rows()
    with joined() as ranks:
        assert (ranks.rank, ranks.world, ranks.first) == (0, 1, True)
        assert gather(rows) is rows
        assert own_slice(rows).equal(rows)


def test_a_batch_that_the_ranks_cannot_share_is_refused() -> None:
    ranks = Ranks(0, 3, torch.device("cpu"))
    assert ranks.share_of(12) == 4
    with pytest.raises(UserError, match=r"batch_size 10 .* 3 processes"):
        ranks.share_of(10)


def test_a_half_set_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="MASTER_ADDR is not set"), joined():
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="WORLD_SIZE is 'two'"), joined():
        pass


def test_the_parts_of_all_ranks_are_numpys() -> None:
    for count in (0, 1, 5, 12, 13):
        for world in (1, 2, 5, 7):
            expected = np.array_split(np.arange(count), world)
            for rank, own in enumerate(expected):
                assert np.array_equal(np.arange(count)[part_of(count, rank, world)], own)
