"""Every shipped pretraining recipe builds and takes a training step, and says what it reproduces."""

from typing import get_args

import pytest
import torch

from carryover.configs import header, load, recipe_names
from carryover.core.backbones.build import build_backbone
from carryover.core.data.prepared import Batch
from carryover.pretrain.config import PretrainConfig
from carryover.pretrain.method_config import MethodConfig
from carryover.pretrain.methods import DataFacts, Moment, build_method
from carryover.pretrain.optim import build_optimizer
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


def test_every_method_has_a_recipe() -> None:
    sections = get_args(get_args(MethodConfig)[0])
    methods = {get_args(section.model_fields["name"].annotation)[0] for section in sections}
    assert methods == {load("pretrain", name).method.name for name in RECIPES}


# What a paper's table compares, by the names of our recipes for its rows.
TABLES: dict[str, set[str]] = {
    "unigrad Table 2": {
        f"unigrad_table2{row}"
        for row in (
            *("a_moco", "b_simclr", "c_byol", "d_directpred", "e_unigrad", "f_barlow_twins"),
            *("g_barlow_twins_without_a", "h_barlow_twins_l2", "i_vicreg", "j_vicreg_simplified"),
        )
    },
    "unigrad Table 3": {
        f"unigrad_table3_{family}_{target}"
        for family in ("contrastive", "asymmetric", "decorrelation")
        for target in ("stop_gradient", "momentum", "momentum_positive")
    },
    "unigrad Table 4": {
        "unigrad_r50_100ep",
        *(f"unigrad_r50_100ep_{views}" for views in ("cutmix", "multicrop", "cutmix_multicrop")),
    },
    "eqco Tables 2 and 3": {
        "simo_r50_200ep_k16_a256",
        *(f"simo_r50_200ep_k256_a{alpha}" for alpha in (256, 1024, 4096, 16384, 65536)),
        *(f"simo_r50_800ep_k256_a{alpha}" for alpha in (256, 65536)),
    },
    "eqco Table 4": {f"moco_v2_r50_200ep_k{K}" for K in (256, 1024, 4096, 16384, 65536)},
    "eqco Tables 6 and 7": {"simo_r50_100ep", "simo_r50_100ep_momentum0", "simo_r50_100ep_shuffle_bn"},
    "eqco Table 8": {f"simo_r50x{width}_200ep_a{alpha}" for width in (2, 4) for alpha in (256, 65536)},
    "sqrtkl Table 1": {
        f"{method}_{data}_{backbone}"
        for method in ("byol", "simsiam", "simclr", "moco_v2", "sqrtkl")
        for data in ("cifar10", "cifar100", "tinyimagenet")
        for backbone in ("r18", "mobilenetv2", "r50")
    }
    | {f"npid_{data}_r18" for data in ("cifar10", "cifar100", "tinyimagenet")},
    "sqrtkl Table 2": {
        *(f"{m}_in10k_{b}" for m in ("moco_v2", "sqrtkl") for b in ("r18", "r18_800ep", "r50_800ep")),
        *(
            f"{m}_in100k_{b}{e}"
            for m in ("moco_v2", "sqrtkl")
            for b in ("r18", "r50")
            for e in ("", "_800ep")
        ),
        *(f"simsiam_in100k_{b}" for b in ("r18", "r50")),
    },
    "sqrtkl Table 3": {
        f"{method}_{data}_{backbone}"
        for method in ("moco_v2", "sqrtkl")
        for data in ("in10k", "in100k", "imagenet")
        for backbone in ("mobilenetv3s", "mobilenetv3l", "efficientnetb0", "r18")
    },
    "sqrtkl Table 6": {
        f"sqrtkl_table6_{data}_{parts}"
        for data in ("cifar10", "tinyimagenet")
        for parts in ("none", "calibrate", "calibrate_grad", "calibrate_sqrtkl", "all")
    },
    "sqrtkl Table 8": {
        "sqrtkl_table6_cifar10_none",
        *(f"sqrtkl_table8_{half}" for half in ("l1", "l2", "both")),
    },
    "sqrtkl Figure 4": {f"sqrtkl_figure4_m{m}" for m in ("0.0", "0.3", "0.7", "0.9")},
    "sqrtkl Figure 5": {f"sqrtkl_figure5_lam{lam}" for lam in (1, 5, 10, 50, 100)},
}


@pytest.mark.parametrize("table", TABLES)
def test_every_row_of_a_table_has_its_recipe(table: str) -> None:
    assert TABLES[table] <= set(RECIPES), TABLES[table] - set(RECIPES)


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
