"""Bad input to an objective is named before the first step."""

import pytest
import torch

from carryover.configs.errors import UserError
from carryover.pretrain.objectives.preconditions import (
    check_batch_statistics,
    check_directions,
    check_normalized,
)


def test_unit_rows_pass_even_when_rounded_to_bfloat16() -> None:
    z = torch.nn.functional.normalize(torch.randn(4, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    check_normalized("z", z)
    check_normalized("z", z.bfloat16())


@pytest.mark.parametrize("row", [[2.0, 0.0], [0.0, 0.0], [float("nan"), 0.0]])
def test_one_row_off_the_sphere_is_refused(row: list[float]) -> None:
    with pytest.raises(UserError, match="momentum keys must be l2-normalized"):
        check_normalized("momentum keys", torch.tensor([[1.0, 0.0], row]))


def test_a_batch_of_one_has_no_statistics() -> None:
    check_batch_statistics("z", torch.zeros(2, 3))
    with pytest.raises(UserError, match=r"z is a batch of 1: batch statistics .* need at least 2"):
        check_batch_statistics("z", torch.zeros(1, 3))


@pytest.mark.parametrize("row", [[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_a_row_without_a_direction_is_refused(row: list[float]) -> None:
    check_directions("an embedding", torch.tensor([[3.0, 4.0], [1e-3, 0.0]]))
    with pytest.raises(UserError, match="an embedding cannot be l2-normalized"):
        check_directions("an embedding", torch.tensor([[3.0, 4.0], row]))
