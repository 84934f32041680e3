"""Every frozen-feature recipe states its protocol's numbers and its source, and runs."""

import json
from pathlib import Path

import pytest

from carryover.configs import UserError, load, recipe_names
from carryover.core.data.config import DataConfig
from carryover.core.data.prepared import open_dataset
from carryover.transfer.tasks.evaluate import evaluate
from carryover.transfer.tasks.linear.config import LinearConfig, ProtocolMode

TASKS = ("knn", "linear", "svm", "tsne")
RECIPES = [n for n in recipe_names("transfer") if n.split("_")[0] in TASKS]
PROTOCOLS = [n for n in RECIPES if n.startswith("linear_") and "cached" not in n]


def mode_of(name: str) -> ProtocolMode:
    config = load("transfer", name)
    assert isinstance(config, LinearConfig)
    assert isinstance(config.mode, ProtocolMode)
    return config.mode


def test_every_recipe_names_its_source() -> None:
    assert all(load("transfer", name).source for name in RECIPES)


# Optimizer, epochs, batch, scaled rate and weight decay as the papers state them.
def test_the_numbers_are_the_protocols() -> None:
    for name, optimizer, epochs, batch, lr, decay in (
        ("linear_unigrad_800ep", "lars", 90, 4096, 0.32, 0.0),
        ("linear_unigrad_100ep", "lars", 90, 4096, 1.6, 0.0),
        ("linear_moco", "sgd", 100, 256, 30.0, 0.0),
        ("linear_places205_msbreg", "sgd", 28, 256, 0.2, 1e-4),
        ("linear_inat18_msbreg", "sgd", 84, 256, 0.2, 1e-4),
    ):
        mode = mode_of(name)
        assert (mode.optimizer.name, mode.schedule.epochs, mode.batch_size) == (optimizer, epochs, batch), (
            name
        )
        assert mode.scaled_lrs == pytest.approx((lr,)), name
        assert mode.weight_decays == (decay,), name


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_linear_recipe_takes_a_step(name: str, images: Path, checkpoint: Path, tmp_path: Path) -> None:
    layout = "kind: imagefolder, split: train, test_split: val, list_file: null, test_list_file: null"
    data = f"data={{name: tiny, root: {images}, {layout}}}"
    epochs = 1
    shrunk = ["image.size=32", "image.resize=32", "precision=fp32", "workers=0", "mode.batch_size=12"]
    shrunk += ["mode.lrs=null", "labels={name: per_class, images: 4}"]
    if mode_of(name).schedule.name == "multistep":
        shrunk.append("mode.schedule.milestones=[1]")
        epochs = 2
    if mode_of(name).held_out is not None:
        shrunk.append("mode.held_out=0.5")
    config = load("transfer", name, [data, *shrunk, f"mode.schedule.epochs={epochs}"])
    record = evaluate(config, checkpoint, tmp_path)
    assert record.recipe == name


def test_a_stated_rate_that_disagrees_with_the_batch_is_refused() -> None:
    with pytest.raises(UserError, match=r"mode.*lrs are stated as \[30\.0\]"):
        load("transfer", "linear_moco", ["mode.batch_size=128"])


def write_inaturalist(root: Path) -> Path:
    images, annotations = [], []
    for i, category in enumerate([7, 3, 7, 11]):
        name = f"train_val2018/Birds/{category}/{i}.jpg"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
        images.append({"id": 100 + i, "file_name": name, "width": 1, "height": 1})
        annotations.append({"id": i, "image_id": 100 + i, "category_id": category})
    categories = [{"id": c, "name": str(c), "supercategory": "Birds"} for c in (11, 3, 7)]
    split = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (root / "train2018.json").write_text(json.dumps(split))
    return root


def test_inaturalists_layout_is_read_by_its_annotations(tmp_path: Path) -> None:
    dataset = open_dataset(
        DataConfig(kind="inaturalist", root=write_inaturalist(tmp_path), split="train2018")
    )
    assert dataset.classes == ["3:3", "7:7", "11:11"]
    assert dataset.labels == [1, 0, 1, 2]
    assert [p.name for p in dataset.paths] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]


def test_inaturalists_absent_images_and_broken_files_are_named(tmp_path: Path) -> None:
    root = write_inaturalist(tmp_path)
    (root / "train_val2018/Birds/3/1.jpg").unlink()
    with pytest.raises(UserError, match=r"1 image is not there: train_val2018/Birds/3/1\.jpg"):
        open_dataset(DataConfig(kind="inaturalist", root=root, split="train2018"))
    (root / "train2018.json").write_text('{"images": []}')
    with pytest.raises(UserError, match=r"train2018\.json: not iNaturalist's annotations: annotations"):
        open_dataset(DataConfig(kind="inaturalist", root=root, split="train2018"))
    with pytest.raises(UserError, match=r"val2018\.json"):
        open_dataset(DataConfig(kind="inaturalist", root=root, split="val2018"))
