"""Data sets are called by their titles, or by their folders where a recipe states none."""

from pathlib import Path

import pytest

from carryover.configs import load
from carryover.core.data.called import called
from carryover.core.data.config import DataConfig
from carryover.core.data.objects.config import VocData


@pytest.mark.parametrize("recipe", ["small_knn", "small_linear", "small_finetune", "small_detection"])
def test_recipes_for_data_of_ones_own_call_it_by_its_folder(recipe: str, tmp_path: Path) -> None:
    root = [f"data.root={tmp_path / 'plants'}"]
    assert called(load("transfer", recipe, root).data) == "plants"
    assert called(load("transfer", recipe, [*root, "data.title=leaves of 2026"]).data) == "leaves of 2026"
    assert load("transfer", recipe, root).data.title == "my data", "the recipe's identity stays"


def test_the_default_title_of_a_layout_is_no_name_and_a_stated_one_is(tmp_path: Path) -> None:
    section = {"kind": "voc", "root": tmp_path / "cells", "train": ["train"], "test": "val"}
    assert called(VocData.model_validate(section)) == "cells"
    assert called(VocData.model_validate({**section, "title": "VOC"})) == "VOC"
    assert called(DataConfig.model_validate({"root": tmp_path / "wild"})) == "wild"
    assert called(DataConfig.model_validate({"kind": "cifar10", "root": tmp_path / "wild"})) == "cifar10"


def test_a_folder_is_called_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plants" / "train").mkdir(parents=True)
    (tmp_path / "current").symlink_to(tmp_path / "plants")
    monkeypatch.chdir(tmp_path / "plants" / "train")
    for root, name in ((tmp_path / "current", "current"), (".", "train"), ("..", "plants")):
        assert called(load("transfer", "small_knn", [f"data.root={root}"]).data) == name
    assert called(load("transfer", "small_knn").data) == "my data"
