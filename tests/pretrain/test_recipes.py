"""Every shipped pretraining recipe builds and takes a training step, and says what it reproduces."""

import pytest
import torch

from configs import header, load, recipe_names
from pretrain.backbones import build_backbone
from pretrain.config import PretrainConfig
from pretrain.data import Batch
from pretrain.methods import DataFacts, Moment, build_method
from pretrain.optim import build_optimizer
from tests.pretrain.tiny import tiny_backbone

__all__ = ["tiny_backbone"]

RECIPES = recipe_names("pretrain")
IMAGES, CLASSES, IN_BATCH = 12, 3, 6
SHRUNK = ("batch_size=6", "optimizer.lr=null", "augment.view.size=12", "precision=fp32")


def _shrunk(name: str) -> PretrainConfig:
    full = load("pretrain", name)
    assert isinstance(full, PretrainConfig)
    overrides = list(SHRUNK)
    if full.projector is not None:
        overrides += ["projector.hidden=10", "projector.out=6"]
    if full.augment.local is not None:
        overrides += ["augment.local.count=2", "augment.local.view.size=10"]
    if full.method.name == "simo":
        overrides += ["method.negatives=4"]
    if full.method.name == "moco":
        overrides += ["method.queue=10"]
    if full.method.name in ("byol", "simsiam", "msbreg"):
        overrides += ["method.predictor.hidden=10"]
    shrunk = load("pretrain", name, overrides)
    assert isinstance(shrunk, PretrainConfig)
    return shrunk


def _batch(config: PretrainConfig) -> Batch:
    torch.manual_seed(0)
    views = [torch.randn(IN_BATCH, 3, v.size, v.size) for v in config.augment.view_list]
    return Batch(torch.arange(IN_BATCH), views, torch.arange(IN_BATCH) % CLASSES)


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_takes_a_training_step(name: str) -> None:
    config = _shrunk(name)
    method = build_method(config, DataFacts(IMAGES, CLASSES))
    if not config.method.trains:
        assert config.schedule.epochs == 0
        return
    optimizer = build_optimizer(config.optimizer, method, config.peak_lr)
    before = {n: p.detach().clone() for n, p in method.online.named_parameters()}
    moment = Moment(0, 10, torch.Generator().manual_seed(0))
    method.advance(moment)
    outcome = method(_batch(config), moment)
    outcome.loss.backward()
    optimizer.step()
    assert torch.isfinite(outcome.loss)
    assert all(torch.isfinite(value) for value in outcome.numbers.values())
    after = dict(method.online.named_parameters())
    assert all(torch.isfinite(p).all() for p in after.values())
    assert any(not p.equal(before[n]) for n, p in after.items())


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_backbone_that_exists(name: str) -> None:
    config = load("pretrain", name)
    with torch.device("meta"):
        assert build_backbone(config.backbone).feature_dim >= 512


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipes_header_says_what_to_expect_and_what_it_cost(name: str) -> None:
    text = header("pretrain", name)
    assert "Expected:" in text
    assert "Hardware and cost:" in text
