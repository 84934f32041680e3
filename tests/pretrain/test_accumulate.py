"""A batch taken in parts has the loss and gradient of the undivided one, for every method."""

import pytest
import torch

import carryover.pretrain.methods
from carryover.core.data.prepared import Batch
from carryover.pretrain.accumulate import backward
from carryover.pretrain.methods import DataFacts, Method, Moment, build_method
from tests.pretrain.test_ranks import CASES
from tests.pretrain.tiny import build_plain, recipe

B, N = 6, 20


def _stepped(case: str, parts: int) -> tuple[Method, list[torch.Tensor]]:
    """Two steps' losses and the second one's gradients: the second meets what the first left in memory."""
    name, *own = CASES[case]
    # Without batch norm, which sees the parts.
    plain = [] if case == "supervised" else ["projector={norm: none, norm_last: false}"]
    plain += ["method.predictor.norm=none"] if case in ("byol", "simsiam", "msbreg") else []
    config = recipe(name, None, [*own, *plain, "batch_size=6", "precision=fp32"])
    method = build_method(config, DataFacts(N, 4)).double()
    losses = []
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        shapes = [(B, 3, v.size, v.size) for v in config.augment.view_list]
        views = [torch.randn(shape, generator=generator).double() for shape in shapes]
        batch = Batch(torch.randperm(N, generator=generator)[:B], views, torch.arange(B) % 4)
        method.zero_grad()
        moment = Moment(step, 10, torch.Generator().manual_seed(step))
        method.advance(moment)
        losses.append(backward(method, method, batch, moment, parts).loss.detach())
    return method, losses


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_parts_add_up_to_the_undivided_batch(case: str, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carryover.pretrain.methods, "build_backbone", build_plain)
    (whole, losses), (divided, losses_in_parts) = _stepped(case, 1), _stepped(case, parts)
    torch.testing.assert_close(losses_in_parts, losses, rtol=1e-9, atol=1e-11)
    gradients = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    assert gradients
    for name, p in divided.named_parameters():
        if name in gradients:
            assert p.grad is not None
            torch.testing.assert_close(p.grad, gradients[name], rtol=1e-7, atol=1e-9, msg=name)
    state = whole.state_dict()
    for name, value in divided.state_dict().items():
        if isinstance(value, dict):
            torch.testing.assert_close(value["rows"], state[name]["rows"], rtol=1e-7, atol=1e-9)
        else:
            torch.testing.assert_close(value, state[name], rtol=1e-7, atol=1e-9)
