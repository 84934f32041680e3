"""Every fine-tuning recipe states its protocol's numbers and its source, and runs."""

from pathlib import Path

import pytest

from carryover.configs import UserError, load, recipe_names
from carryover.core.data.labelled.labels import ListedImages
from carryover.transfer.tasks.evaluate import evaluate
from carryover.transfer.tasks.finetune.config import FinetuneConfig, GridOfRates
from carryover.transfer.tasks.schedules import CosineSchedule, MultiStepSchedule

PROTOCOLS = ("simclr", "barlow_twins", "vicreg", "swav", "mmselfsup_grid", "msbreg")
RECIPES = [f"{protocol}_{percent}percent" for protocol in PROTOCOLS for percent in (1, 10)]
CIFAR = ["cifar10_finetune_1percent", "cifar10_finetune_10percent"]


def recipe(name: str, *overrides: str) -> FinetuneConfig:
    config = load("transfer", name, overrides)
    assert isinstance(config, FinetuneConfig)
    return config


# Epochs, batch, and the rates of backbone and head, as the sources state them.
@pytest.mark.parametrize(
    ("name", "epochs", "batch", "backbone", "head"),
    [
        ("simclr_1percent", 60, 1024, 0.2, 0.2),
        ("simclr_10percent", 30, 1024, 0.2, 0.2),
        ("barlow_twins_1percent", 20, 256, 0.002, 0.5),
        ("barlow_twins_10percent", 20, 256, 0.002, 0.5),
        ("vicreg_1percent", 20, 256, 0.03, 0.08),
        ("vicreg_10percent", 20, 256, 0.01, 0.1),
        ("swav_1percent", 20, 256, 0.02, 5.0),
        ("swav_10percent", 20, 256, 0.01, 0.2),
        ("msbreg_1percent", 60, 1024, 0.0, 2.0),
        ("msbreg_10percent", 30, 1024, 2.5e-4, 0.25),
    ],
)
def test_the_numbers_are_the_protocols(
    name: str, epochs: int, batch: int, backbone: float, head: float
) -> None:
    config = recipe(name)
    assert (config.schedule.epochs, config.batch_size) == (epochs, batch)
    assert config.lr_backbone == pytest.approx(backbone)
    assert config.lr_head == pytest.approx(head)
    assert config.optimizer.weight_decay == 0
    assert config.selection.name == "last"


def test_the_protocols_differ_where_their_sources_do() -> None:
    assert recipe("simclr_1percent").optimizer.nesterov
    assert recipe("msbreg_1percent").freeze_backbone
    assert not recipe("msbreg_10percent").freeze_backbone
    for percent in (1, 10):
        stepped = [recipe(f"swav_{percent}percent"), recipe(f"mmselfsup_grid_{percent}percent")]
        for config in stepped:
            assert isinstance(config.schedule, MultiStepSchedule)
            assert (config.schedule.milestones, config.schedule.gamma) == ((12, 16), 0.2)
            assert config.sync_bn
        for name in ("barlow_twins", "vicreg"):
            schedule = recipe(f"{name}_{percent}percent").schedule
            assert isinstance(schedule, CosineSchedule)
            assert schedule.per == "epoch"
    assert recipe("mmselfsup_grid_1percent").optimizer.weight_decay == 5e-4
    assert recipe("mmselfsup_grid_10percent").optimizer.weight_decay == 1e-4


def test_the_grid_has_nine_points_decided_on_labeled_images() -> None:
    selection = recipe("mmselfsup_grid_1percent").selection
    assert isinstance(selection, GridOfRates)
    assert len(selection.points) == 9
    assert (0.01, 1.0) in selection.points


def test_every_recipe_names_its_source_and_the_official_list() -> None:
    for name in RECIPES:
        config = recipe(name)
        assert config.source
        assert isinstance(config.labels, ListedImages)
        assert config.labels.list == f"simclr_{name.rsplit('_', 1)[1]}"
        assert (config.image.size, config.image.resize, config.image.scale) == (224, 256, (0.08, 1.0))


@pytest.mark.parametrize("name", [*RECIPES, *CIFAR])
def test_a_recipe_takes_a_step(name: str, images: Path, checkpoint: Path, tmp_path: Path) -> None:
    shrunk = [
        f"data.root={images}",
        "data.test_split=val",
        "labels={name: per_class, images: 2}",
        "image.size=32",
        "image.resize=32",
        "batch_size=12",
        "optimizer.lr_backbone=null",
        "optimizer.lr_head=null",
        "precision=fp32",
        "workers=0",
        "keep_weights=false",
    ]
    if "grid" in name:
        shrunk += [
            "selection.held_out=0.5",
            "selection.base_lr_backbone=[0.01]",
            "selection.head_multiples=[10]",
        ]
    epochs = 1
    if isinstance(recipe(name).schedule, MultiStepSchedule):
        shrunk.append("schedule.milestones=[1]")
        epochs = 2
    record = evaluate(recipe(name, *shrunk, f"schedule.epochs={epochs}"), checkpoint, tmp_path)
    assert record.recipe == name
    assert record.train_images == 12


def test_every_finetuning_recipe_is_tested_here() -> None:
    # MAE's, on transformers, are tested in test_transformer_recipes.py.
    elsewhere = ("demo", "mae_finetune_vits_", "mae_finetune_vitb_", "mae_finetune_vitl_")
    names = recipe_names("transfer")
    finetuning = [n for n in names if n.endswith("percent") and not n.startswith(elsewhere)]
    assert sorted(finetuning) == sorted([*RECIPES, *CIFAR])


def test_an_official_list_on_other_data_is_refused_with_its_first_names(
    images: Path, checkpoint: Path, tmp_path: Path
) -> None:
    small = recipe("simclr_1percent", f"data.root={images}", "image.size=32", "image.resize=32")
    with pytest.raises(
        UserError, match=r"simclr_1percent: 12,811 of 12,811 listed images.*n04235860_14959\.JPEG"
    ):
        evaluate(small, checkpoint, tmp_path)
