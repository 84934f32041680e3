"""Objectives work in float32 at least."""

import torch
from torch import Tensor

from carryover.pretrain.objectives.precision import at_least_float32


@at_least_float32
def product(x: Tensor, y: Tensor, scale: float) -> Tensor:
    return scale * x @ y


def test_half_precision_is_promoted_and_more_is_kept() -> None:
    for given, used in [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        x = torch.ones(2, 2, dtype=given)
        assert product(x, y=x, scale=2.0).dtype == used


def test_autocast_does_not_reach_inside() -> None:
    x = torch.full((1, 4), 1 + 2**-12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = product(x, x.T, 1.0)
        assert torch.mm(x, x.T).dtype == torch.bfloat16
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, product(x, x.T, 1.0), rtol=0, atol=0)


def test_gradients_return_in_the_embeddings_own_precision() -> None:
    x = torch.ones(2, 2, dtype=torch.bfloat16, requires_grad=True)
    product(x, x.detach(), 1.0).sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
