"""Shipped recipes of DINO, DINOv2, MAE and the attentive probe: what their sources say, and that they run."""

from pathlib import Path

import pytest

from carryover.configs import load
from carryover.transfer.tasks.evaluate import evaluate
from tests.transfer.convert.timm_backbones import write_timm

SHRUNK = ("image.size=32", "image.resize=32", "precision=fp32", "workers=0")
FEW = ("labels={name: per_class, images: 4}", "batch_size=10")
LINEAR = ("mode.batch_size=10", "labels={name: per_class, images: 4}", "mode.schedule.epochs=1")
RECIPES: dict[str, tuple[tuple[str, ...], str]] = {
    "dino_knn": (("k=[2, 4]",), "knn"),
    "dino_linear_vits": (LINEAR, "linear"),
    "dino_linear_vitb": (LINEAR, "linear"),
    "dinov2_linear": ((*LINEAR, "mode.held_out=0.5"), "linear"),
    "mae_finetune_vitb": ((*FEW, "schedule={name: cosine, epochs: 2, rise: 1}"), "finetune"),
    "mae_finetune_vits_10percent": ((*FEW, "schedule={name: cosine, epochs: 2, rise: 1}"), "finetune"),
    "attentive_aim": (
        (*FEW, "schedule={name: cosine, epochs: 2, rise: 1}", "attentive.heads=3"),
        "attentive",
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_on_a_transformer(name: str, images: Path, tmp_path: Path) -> None:
    keys, task = RECIPES[name]
    data = f"data={{name: tiny, kind: imagefolder, root: {images}, split: train, test_split: val}}"
    source = write_timm(tmp_path / "b.safetensors", "vit_tiny_patch16_224", input_size=32)
    record = evaluate(load("transfer", name, [data, *SHRUNK, *keys]), source, tmp_path / "out")
    assert record.task == task and record.metrics[0].name == "top1"


def test_the_features_and_rates_are_the_authors() -> None:
    knn = load("transfer", "dino_knn")
    assert (knn.feature, knn.k, knn.temperatures) == ("cls", (10, 20, 100, 200), (0.07,))
    small, base = load("transfer", "dino_linear_vits").mode, load("transfer", "dino_linear_vitb").mode
    assert (small.depths, base.depths) == (("cls@4",), ("cls+mean",))
    assert small.scaled_lrs == base.scaled_lrs == pytest.approx((0.004,))
    grid = load("transfer", "dinov2_linear").mode
    assert grid.heads == 13 * 4 and grid.base_lrs[0] == 1e-5 and grid.base_lrs[-1] == 0.1
    for name, rate, decay, path, epochs in (
        ("vits", 2e-3, 0.65, 0.1, 100),
        ("vitb", 2e-3, 0.65, 0.1, 100),
        ("vitl", 4e-3, 0.75, 0.2, 50),
    ):
        config = load("transfer", f"mae_finetune_{name}")
        assert config.lr_backbone == config.lr_head == pytest.approx(rate)
        assert (config.optimizer.layer_decay, config.drop_path) == (decay, path)
        assert (config.schedule.epochs, config.schedule.rise, config.smoothing) == (epochs, 5, 0.1)
        assert config.lr_head * config.schedule.end == pytest.approx(1e-6)
        mix, image = config.mix, config.image
        assert (mix.mixup, mix.cutmix, mix.prob, mix.switch, mix.group) == (0.8, 1.0, 1.0, 0.5, 32)
        assert (image.rand_augment, image.interpolation) == ("rand-m9-mstd0.5-inc1", "bicubic")
        assert (image.erase.p, image.erase.mode, image.erase.count) == (0.25, "pixel", 1)
        assert (config.drop_last, config.batch_size) == (True, 1024)
        for percent in (1, 10):
            labels = load("transfer", f"mae_finetune_{name}_{percent}percent").labels
            assert labels.list == f"simclr_{percent}percent"
