"""Sums over the bank in tiles: independent of how the bank is cut."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from carryover.pretrain.objectives.streaming import ClassSums, class_sums

TAU = 0.1


def unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


Z, BANK, INDEX = unit(5, 7, seed=0), unit(23, 7, seed=1), torch.tensor([0, 22, 11, 5, 6])
OWN = (Z * BANK[INDEX]).sum(1) / TAU


def assert_same(actual: ClassSums, expected: ClassSums) -> None:
    for field in fields(ClassSums):
        torch.testing.assert_close(getattr(actual, field.name), getattr(expected, field.name))


def by_definition() -> ClassSums:
    s = Z @ BANK.T / TAU
    maximum = s.amax(1)
    y = (s - maximum.unsqueeze(1)) / 2
    others = torch.ones_like(s).scatter_(1, INDEX.unsqueeze(1), 0.0)
    e = (2 * y).exp() * others
    return ClassSums(maximum, (y.exp() * others).sum(1), e.sum(1), (e * y).sum(1), e @ BANK, (e * y) @ BANK)


@pytest.mark.parametrize("tile", [1, 2, 5, 22, 23, 24, 1000])
def test_any_tile_size_gives_the_sums_of_their_definition(tile: int) -> None:
    assert_same(class_sums(Z, BANK, INDEX, OWN, TAU, tile), by_definition())


@pytest.mark.parametrize("cuts", [[23], [11, 12], [1, 7, 15], [10, 0, 13]])
def test_sums_over_shards_add_up_once_relative_to_one_maximum(cuts: list[int]) -> None:
    shards, start = [], 0
    for rows in BANK.split(cuts):
        shards.append(class_sums(Z, rows, INDEX - start, OWN, TAU, tile=4))
        start += len(rows)
    maximum = torch.stack([shard.maximum for shard in shards]).amax(0)
    aligned = [shard.relative_to(maximum) for shard in shards]
    added = {
        field.name: torch.stack([getattr(shard, field.name) for shard in aligned]).sum(0)
        for field in fields(ClassSums)
    }
    assert_same(ClassSums(**{**added, "maximum": maximum}), by_definition())


def test_a_far_larger_maximum_neither_overflows_nor_loses_the_rest() -> None:
    sums = class_sums(Z.float(), BANK.float(), INDEX, OWN, 1e-4, tile=4)
    for field in fields(ClassSums):
        assert torch.isfinite(getattr(sums, field.name)).all()
