"""The memory bank: how it begins, what an update touches, what resuming needs."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from carryover.configs.errors import UserError
from carryover.pretrain.bank import MemoryBank


def unit(*shape: int, seed: int) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_a_random_bank_lies_on_the_sphere_and_follows_its_seed() -> None:
    banks = [MemoryBank.random(50, 8, torch.Generator().manual_seed(seed)).tensor for seed in (0, 0, 1)]
    torch.testing.assert_close(banks[0].norm(dim=1), torch.ones(50))
    assert torch.equal(banks[0], banks[1])
    assert not torch.equal(banks[0], banks[2])


def test_an_update_touches_the_named_rows_only() -> None:
    bank = MemoryBank(unit(6, 4, seed=0))
    before, rows = bank.tensor.clone(), unit(2, 4, seed=1)
    bank.update(torch.tensor([4, 1]), rows)
    assert torch.equal(bank.rows(torch.tensor([4, 1])), rows)
    kept = torch.tensor([0, 2, 3, 5])
    assert torch.equal(bank.rows(kept), before[kept])


def test_an_image_named_twice_keeps_its_last_row() -> None:
    rows = unit(4, 4, seed=1)
    bank = MemoryBank(unit(6, 4, seed=0))
    bank.update(torch.tensor([2, 5, 2, 0]), rows)
    assert torch.equal(bank.rows(torch.tensor([2, 5, 0])), rows[[2, 1, 3]])


def test_a_bfloat16_bank_stores_rounded_rows() -> None:
    bank = MemoryBank.random(6, 4, torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    rows = unit(2, 4, seed=1)
    bank.update(torch.tensor([0, 3]), rows)
    assert torch.equal(bank.rows(torch.tensor([0, 3])), rows.bfloat16())


def test_a_saved_bank_comes_back() -> None:
    saved = MemoryBank(unit(6, 4, seed=0)).state_dict()
    resumed = MemoryBank(unit(6, 4, seed=1))
    resumed.load_state_dict(saved)
    assert torch.equal(resumed.tensor, unit(6, 4, seed=0))


def test_a_saved_bank_of_another_data_set_is_refused() -> None:
    with pytest.raises(UserError, match=r"shape \(6, 4\), this run's is \(7, 4\)"):
        MemoryBank(unit(7, 4, seed=1)).load_state_dict(MemoryBank(unit(6, 4, seed=0)).state_dict())


@pytest.mark.parametrize(("images", "width"), [(7, 4), (6, 5)])
def test_a_bank_that_does_not_fit_the_data_or_the_head_is_refused(images: int, width: int) -> None:
    bank = MemoryBank(unit(6, 4, seed=0))
    bank.check(6, 4)
    with pytest.raises(UserError, match=rf"6 rows of 4 numbers.*{images} images.*{width} numbers"):
        bank.check(images, width)
