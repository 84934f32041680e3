"""What an objective cannot work with is refused at the first step, before any weight has moved."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from carryover.configs import UserError
from carryover.core.data.prepared import Batch
from carryover.pretrain.accumulate import backward
from carryover.pretrain.bank import MemoryBank
from carryover.pretrain.methods import DataFacts, Method, Moment, Outcome, build_method
from carryover.pretrain.methods.contrastive import SiMo
from carryover.pretrain.methods.instance import NPID, SqrtKL
from carryover.pretrain.trainer import train
from tests.pretrain.test_ranks import CASES
from tests.pretrain.tiny import recipe, tiny_backbone, write_images

__all__ = ["tiny_backbone"]

pytestmark = pytest.mark.usefixtures("tiny_backbone")
B, N = 6, 20
NORMALIZING = [case for case in CASES if case != "supervised"]


def _build(case: str, *overrides: str) -> tuple[Method, Batch]:
    name, *own = CASES[case]
    config = recipe(name, None, [*own, "batch_size=6", *overrides])
    torch.manual_seed(0)
    views = [torch.randn(B, 3, v.size, v.size) for v in config.augment.view_list]
    return build_method(config, DataFacts(N, 4)), Batch(torch.arange(B), views, torch.arange(B) % 4)


def _moment() -> Moment:
    return Moment(0, 10, torch.Generator().manual_seed(0))


def _silence(network: nn.Module) -> None:
    """Let the network's head give zeros for every image."""
    with torch.no_grad():
        for p in network.get_submodule("head").parameters():
            p.zero_()


@pytest.mark.parametrize("parts", [1, 2])
def test_embeddings_without_a_direction_are_refused(parts: int) -> None:
    for case in NORMALIZING:
        method, batch = _build(case)
        _silence(method.online)
        with pytest.raises(UserError, match=r"embedding of the online network cannot be l2-normalized"):
            backward(method, method, batch, _moment(), parts)
        assert all(p.grad is None for p in method.parameters())


def test_targets_that_are_not_finite_are_refused() -> None:
    method, batch = _build("byol")
    assert method.target is not None
    with torch.no_grad():
        next(method.target.parameters()).fill_(torch.inf)
    with pytest.raises(UserError, match=r"embedding of the target branch cannot be l2-normalized"):
        method(batch, _moment())


def test_an_objective_given_embeddings_that_are_not_normalized_is_refused() -> None:
    class Careless(SiMo):
        def objective(
            self, embeddings: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch, moment: Moment
        ) -> Outcome:
            (q,), (k,) = embeddings, targets
            return Outcome((q * k).sum(1).mean(), queries=q)

    method, batch = _build("simo")
    method.__class__ = Careless
    with pytest.raises(UserError, match=r"Careless's queries must be l2-normalized"):
        method(batch, _moment())


def test_a_batch_of_one_is_refused() -> None:
    for case in CASES:
        method, batch = _build(case)
        one = Batch(batch.index[:1], [v[:1] for v in batch.views], batch.label)
        with pytest.raises(UserError, match=r"batch is a batch of 1: batch statistics .* at least 2"):
            method(one, _moment())


@pytest.mark.parametrize("case", ["sqrtkl", "npid"])
def test_a_bank_that_does_not_fit_is_refused(case: str) -> None:
    method, batch = _build(case)
    assert isinstance(method, SqrtKL | NPID)
    rows = method.bank.tensor
    for wrong, words in (
        (rows[:4], r"holds 4 rows of \d+ numbers, but the data set has 6 images"),
        (rows[:, :-1], r"holds 20 rows of (\d+) numbers, but .* head gives (?!\1)\d+ numbers"),
        (2 * rows, r"the memory bank's rows must be l2-normalized"),
    ):
        method.bank = MemoryBank(wrong)
        method._unchecked = True
        with pytest.raises(UserError, match=words):
            method(batch, _moment())


def test_a_bank_without_a_row_for_every_image_is_not_calibrated() -> None:
    method, batch = _build("sqrtkl")
    assert isinstance(method, SqrtKL)
    method.bank = MemoryBank(method.bank.tensor[:4])
    with pytest.raises(UserError, match="4 rows"):
        method.begin([batch])


def test_simclr_cannot_draw_more_negatives_than_the_batch_has() -> None:
    _build("simclr", "method.negatives=10")
    with pytest.raises(UserError, match=r"method.negatives 11 .*: at most 10 at batch_size 6"):
        _build("simclr", "method.negatives=11")


def test_every_k_that_the_recipe_allows_can_be_drawn() -> None:
    for case, most in (("simo", 5), ("simclr", 10)):
        method, batch = _build(case, f"method.negatives={most}")
        assert method(batch, _moment()).loss.isfinite()


def test_processes_with_one_image_each_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_images(tmp_path / "images")
    monkeypatch.setattr("carryover.core.training.distributed.Ranks.share_of", lambda self, size: size // 2)
    with pytest.raises(UserError, match="batch_size 2 leaves each of 1 processes 1 image"):
        train(recipe("unigrad", images, ["batch_size=2"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_fine_is_looked_at_once() -> None:
    method, batch = _build("unigrad")
    method(batch, _moment())
    _silence(method.online)
    # No device is waited for after the first step: that a training collapses is the diagnostics' to say.
    assert method(batch, Moment(1, 10, torch.Generator())).loss.isfinite()
