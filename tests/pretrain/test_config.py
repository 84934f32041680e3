"""A pretraining recipe is checked before anything runs, and says which key is wrong."""

import subprocess
import sys

import pytest

from carryover.configs import UserError, load, recipe_hash
from tests.pretrain.tiny import RECIPES

UNIGRAD = RECIPES / "unigrad.yaml"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimzer.base_lr=1", "unknown key 'optimzer'; did you mean 'optimizer'?"),
        ("optimizer.base_lr=-1", "optimizer.*base_lr.*greater than 0"),
        ("optimizer.lr=0.7", r"optimizer.lr is stated as 0.7.*= 0.001875"),
        ("schedule.warmup_epochs=2", "the warm-up must end before the training does"),
        ("schedule.epochs=0", "schedule"),
        ("schedule.floor=1", "schedule.floor"),
        ("schedule.milestones=[1, 1]", "milestones must ascend"),
        ("schedule.milestones=[2]", "milestones: 2 is not before the end, 2 epochs"),
        ("batch_size=1", "batch_size"),
        ("precision=fp16", "precision"),
        ("projector=null", "method unigrad needs a projector"),
        ("method.name=sqrtkl", "method sqrtkl needs augment.views: single, not two"),
        ("method.rho=1", "rho"),
        ("method.target.start=1.5", "start"),
        ("method.target.name=stop_gradient", "use correlation_source: online"),
        ("projector.depth=6", "projector.depth"),
        ("backbone.arch=vgg", "backbone.arch"),
    ],
)
def test_a_wrong_value_is_answered_with_its_key(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load("pretrain", UNIGRAD, [override])


def test_a_momentum_that_falls_is_refused() -> None:
    with pytest.raises(UserError, match="the momentum never falls"):
        load("pretrain", UNIGRAD, ["method.target.end=0.5"])


def test_simo_cannot_draw_more_negatives_than_the_batch_has() -> None:
    with pytest.raises(UserError, match="at most 7 at batch_size 8"):
        load("pretrain", RECIPES / "simo.yaml", ["method.negatives=8"])


def test_baselines_take_no_projector_and_the_random_one_no_epochs() -> None:
    with pytest.raises(UserError, match="supervised has no projector"):
        load("pretrain", RECIPES / "supervised.yaml", ["projector.depth=2"])
    with pytest.raises(UserError, match="random does not train"):
        load("pretrain", RECIPES / "random.yaml", ["schedule.epochs=3"])


def test_cutmix_is_refused_where_a_method_has_no_form_of_it() -> None:
    with pytest.raises(UserError, match="simo has no CutMix form"):
        load("pretrain", RECIPES / "simo.yaml", ["augment.cutmix.alpha=1"])


def test_the_rate_follows_the_linear_scaling_rule() -> None:
    recipe = load("pretrain", UNIGRAD, ["optimizer.base_lr=0.05", "batch_size=1024", "optimizer.lr=0.2"])
    assert recipe.peak_lr == pytest.approx(0.2)
    recipe = load("pretrain", UNIGRAD, ["optimizer.base_lr=0.1", "optimizer.lr_per=512", "batch_size=256"])
    assert recipe.peak_lr == pytest.approx(0.05)


def test_where_and_how_fast_a_recipe_runs_is_not_in_its_hash() -> None:
    recipe = load("pretrain", UNIGRAD)
    elsewhere = load("pretrain", UNIGRAD, ["data.root=/elsewhere", "workers=3", "log_every=7", "seed=5"])
    other = load("pretrain", UNIGRAD, ["method.lam=50"])
    assert recipe_hash(recipe) == recipe_hash(elsewhere) != recipe_hash(other)


def test_recipes_load_without_torch() -> None:
    code = (
        "import sys, carryover.configs, carryover.pretrain.config;"
        f"carryover.configs.load('pretrain', '{UNIGRAD}');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
