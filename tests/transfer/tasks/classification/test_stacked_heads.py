"""Heads trained together are the heads trained one by one with the reference optimizer."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from carryover.pretrain.optim import LARS
from carryover.transfer.tasks.linear.model import StackedHeads, StackedSGD, head_losses

DIMS = {"layer3": 6, "layer4": 9}
RATES, DECAYS = (0.5, 0.1), (0.0, 0.01)


def batches(steps: int = 6) -> list[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            {d: torch.randn(8, n, generator=generator, dtype=torch.float64) for d, n in DIMS.items()},
            torch.randint(0, 4, (8,), generator=generator),
        )
        for _ in range(steps)
    ]


def trained_together(**options: object) -> StackedHeads:
    torch.manual_seed(1)
    heads = StackedHeads(DIMS, RATES, DECAYS, classes=4).double()
    optimizer = StackedSGD(heads, **options)  # type: ignore[arg-type]
    for step, (features, labels) in enumerate(batches()):
        optimizer.set_factor(1.0 / (1 + step))
        heads.zero_grad()
        head_losses(heads(features), labels).sum().backward()
        optimizer.step()
    return heads


def trained_alone(index: int, lars: bool, nesterov: bool) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    start = StackedHeads(DIMS, RATES, DECAYS, classes=4).double()
    spec, per_depth = start.specs[index], len(RATES) * len(DECAYS)
    weight = start.weights[index // per_depth][0].detach().clone().requires_grad_()
    bias = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer: torch.optim.Optimizer
    if lars:
        optimizer = LARS([{"params": [weight, bias], "weight_decay": spec.weight_decay}], lr=1.0)
    else:
        optimizer = torch.optim.SGD(
            [weight, bias], lr=1.0, momentum=0.9, nesterov=nesterov, weight_decay=spec.weight_decay
        )
    for step, (features, labels) in enumerate(batches()):
        optimizer.param_groups[0]["lr"] = spec.lr / (1 + step)
        optimizer.zero_grad()
        cross_entropy(features[spec.depth] @ weight.T + bias, labels).backward()
        optimizer.step()
    return weight.detach(), bias.detach()


@pytest.mark.parametrize("how", ["sgd", "nesterov", "lars"])
def test_every_head_ends_where_it_would_alone(how: str) -> None:
    heads = trained_together(nesterov=how == "nesterov", trust_coefficient=1e-3 if how == "lars" else None)
    per_depth = len(RATES) * len(DECAYS)
    assert len(heads.specs) == 2 * per_depth
    for index in range(len(heads.specs)):
        weight, bias = trained_alone(index, how == "lars", how == "nesterov")
        together = heads.weights[index // per_depth][index % per_depth]
        torch.testing.assert_close(together.detach(), weight, atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(
            heads.biases[index // per_depth][index % per_depth].detach(), bias, atol=1e-12, rtol=1e-9
        )


def test_losses_are_each_heads_mean_cross_entropy() -> None:
    logits, labels = torch.randn(5, 3, 4), torch.tensor([0, 1, 2, 3, 0])
    expected = torch.stack([cross_entropy(logits[:, h], labels) for h in range(3)])
    torch.testing.assert_close(head_losses(logits, labels), expected)
