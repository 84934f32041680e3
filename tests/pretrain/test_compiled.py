"""Compiled networks: they really are, train as the others do, and leave the same names behind."""

from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from carryover.configs import UserError, recipe_hash
from carryover.core.data.prepared import Batch
from carryover.core.formats.canonical import load_canonical
from carryover.core.formats.state import load_state
from carryover.pretrain.compiled import compile_encoders, missing_to_compile
from carryover.pretrain.methods import DataFacts, Moment, build_method
from carryover.pretrain.trainer import train
from tests.pretrain.tiny import recipe, tiny_backbone, write_images

__all__ = ["tiny_backbone"]

missing = missing_to_compile()
can_compile = pytest.mark.skipif(missing is not None, reason=f"torch.compile lacks {missing}")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@can_compile
@pytest.mark.usefixtures("tiny_backbone")
def test_a_compiled_method_has_the_loss_and_the_gradient_of_an_eager_one() -> None:
    config = recipe("unigrad", overrides=["precision=fp32"])
    random = torch.Generator().manual_seed(0)
    views = [torch.randn(8, 3, 10, 10, generator=random, dtype=torch.float64) for _ in range(2)]
    losses, gradients = [], []
    for compiled in (False, True):
        method = build_method(config, DataFacts(8, None)).double()
        if compiled:
            compile_encoders(method)
        outcome = method(Batch(torch.arange(8), views, None), Moment(0, 10, torch.Generator()))
        outcome.loss.backward()
        losses.append(outcome.loss.detach())
        gradients.append({name: p.grad for name, p in method.online.named_parameters()})
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-10, atol=0)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-8, atol=1e-10)


@can_compile
@pytest.mark.usefixtures("tiny_backbone")
def test_a_compiled_run_is_compiled_and_leaves_the_same_names(images: Path, tmp_path: Path) -> None:
    states = []
    for compiled in ("false", "true"):
        torch.compiler.reset()
        counters.clear()
        out = tmp_path / compiled
        config = recipe("unigrad", images, [f"compile={compiled}"])
        backbone, metadata = load_canonical(train(config, out))
        # The online and the momentum encoder.
        assert counters["stats"]["unique_graphs"] == (2 if compiled == "true" else 0)
        state = load_state(out / "checkpoint.pt")
        assert state is not None
        states.append((backbone.keys(), state["method"].keys(), metadata.recipe_hash))
    assert states[0] == states[1]


@pytest.mark.usefixtures("tiny_backbone")
def test_what_is_missing_to_compile_is_said(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    config = recipe("unigrad", images, ["compile=true"])
    assert recipe_hash(config) == recipe_hash(recipe("unigrad", images))
    with pytest.raises(UserError, match=r"compile: true needs a C\+\+ compiler: 'no-such-compiler'"):
        train(config, tmp_path / "out")
