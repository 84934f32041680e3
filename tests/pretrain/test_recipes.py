"""Shipped pretraining recipes resolve, and one of every kind of them builds and takes a training step.

Two recipes are of one kind where their methods, views, heads and optimizers differ only in numbers that are
not zero (a rate, a temperature, a width, a count). A number that switches a part off, a name or a flag makes
another kind.
"""

from typing import Any, get_args

import pytest
import torch
import torchvision
import yaml
from torch.nn.functional import mse_loss

from carryover.configs import UserError, dump, load, recipe_names
from carryover.core.backbones.build import build_backbone
from carryover.core.data.prepared import Batch
from carryover.pretrain.config import PretrainConfig
from carryover.pretrain.method_config import METHODS
from carryover.pretrain.methods import DataFacts, Moment, build_method
from carryover.pretrain.objectives.decorrelation import vicreg_loss
from carryover.pretrain.optim import build_optimizer
from tests.pretrain.tiny import tiny_backbone

__all__ = ["tiny_backbone"]

RECIPES: dict[str, PretrainConfig] = {name: load("pretrain", name) for name in recipe_names("pretrain")}
IMAGES, CLASSES, IN_BATCH = 12, 3, 6
SHRUNK = ("batch_size=6", "optimizer.lr=null", "augment.view.size=12", "precision=fp32")


def _shape(value: Any) -> Any:
    """Return a section without its sizes: numbers become whether they are zero."""
    if isinstance(value, dict):
        return tuple((k, _shape(v)) for k, v in sorted(value.items()))
    return bool(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _kind(config: PretrainConfig) -> Any:
    head = config.projector and (config.projector.depth, config.projector.norm, config.projector.norm_last)
    augment = config.augment
    views = augment.views, augment.cutmix is None, augment.local is None
    return (
        _shape(config.method.model_dump()),
        head,
        views,
        _shape(config.optimizer.model_dump(exclude={"lr"})),
    )


REPRESENTATIVES = sorted({_kind(config): name for name, config in reversed(RECIPES.items())}.values())
BACKBONES = {config.backbone.model_dump_json(): config.backbone for config in RECIPES.values()}


def _shrunk(name: str) -> PretrainConfig:
    full = RECIPES[name]
    overrides = list(SHRUNK)
    if full.projector is not None:
        overrides += ["projector.hidden=10", "projector.out=6"]
    if full.backbone.family == "timm":
        # The tiny network that takes their place is a convolutional one.
        overrides += ["backbone.arch=resnet18", "backbone.patch_size=null", "transformer=null"]
    if full.augment.second is not None:
        overrides += ["augment.second.size=12"]
    if full.augment.local is not None:
        overrides += ["augment.local.count=2", "augment.local.view.size=10"]
    if full.method.name == "simo":
        overrides += ["method.negatives=4"]
    if full.method.name == "moco":
        overrides += ["method.queue=10"]
    if full.method.name in ("byol", "simsiam", "msbreg", "moco_v3"):
        overrides += ["method.predictor.hidden=10"]
    shrunk = load("pretrain", name, overrides)
    assert isinstance(shrunk, PretrainConfig)
    return shrunk


def _batch(config: PretrainConfig) -> Batch:
    torch.manual_seed(0)
    views = [torch.randn(IN_BATCH, 3, v.size, v.size) for v in config.augment.view_list]
    return Batch(torch.arange(IN_BATCH), views, torch.arange(IN_BATCH) % CLASSES)


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_every_kind_of_recipe_takes_a_training_step(name: str) -> None:
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


def test_residual_blocks_start_at_zero_where_the_public_codes_have_it_so() -> None:
    for arch in ("resnet18", "resnet50"):
        config = load("pretrain", "simsiam_r50_100ep", [f"backbone.arch={arch}"])
        ours = build_method(config, DataFacts(8, None)).online.backbone
        theirs = getattr(torchvision.models, arch)(zero_init_residual=True)
        zeros = [
            {n for n, p in net.named_parameters() if "weight" in n and not p.any()} for net in (ours, theirs)
        ]
        assert zeros[0] == zeros[1] and len(zeros[0]) == {"resnet18": 8, "resnet50": 16}[arch]
    methods = ("unigrad_r50", "unigrad_table", "simsiam_")
    expected = {n for n, c in RECIPES.items() if n.startswith(methods) and c.backbone.is_resnet}
    assert {name for name, config in RECIPES.items() if config.zero_init_residual} == expected
    with pytest.raises(UserError, match="zero_init_residual is defined for ResNets only"):
        load("pretrain", "simsiam_r50_100ep", ["backbone.arch=mobilenet_v2"])


def test_both_weights_of_vicregs_row_are_vicregs_own() -> None:
    recipe: Any = RECIPES["unigrad_table2i_vicreg"]
    method, width = recipe.method, recipe.projector.out
    z1, z2 = (torch.randn(16, width, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    ours = [vicreg_loss(a, b, method.lam1, method.lam2, method.gamma) for a, b in ((z1, z2), (z2, z1))]
    # facebookresearch/vicreg, main_vicreg.py, at its coefficients 25, 25 and 1.
    variance = sum(torch.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() / 2 for z in (z1, z2))
    covariances = [torch.cov(z.T).fill_diagonal_(0) for z in (z1, z2)]
    theirs = 25 * mse_loss(z1, z2) + 25 * variance + sum(c.square().sum() / width for c in covariances)
    torch.testing.assert_close(25 / width * sum(ours) / 2, theirs, rtol=1e-4, atol=0)


def test_every_method_has_a_recipe() -> None:
    sections = list(METHODS.values())
    methods = {get_args(section.model_fields["name"].annotation)[0] for section in sections}
    assert methods == {config.method.name for config in RECIPES.values()}


def test_every_recipe_says_its_source_and_reads_back_equal() -> None:
    for name, config in RECIPES.items():
        assert config.source, name
        assert PretrainConfig.model_validate({**yaml.safe_load(dump(config)), "name": name}) == config, name


def test_every_backbone_that_a_recipe_names_exists() -> None:
    for name, backbone in BACKBONES.items():
        with torch.device("meta"):
            assert build_backbone(backbone).feature_dim >= 192, name
