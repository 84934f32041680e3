"""`carryover data check`: every defect of a data set of any kind, before anybody trains on it."""

import json
import logging
import shutil

import pytest

from carryover.configs import load
from carryover.configs.errors import UserError
from carryover.core.data.check import check
from carryover.core.data.defects import summarize
from carryover.core.data.objects.config import CocoData
from carryover.core.data.objects.splits import read_splits
from tests.transfer.tasks.detection.layouts import write_coco, write_image, write_voc, write_voc_split

DOG = ("dog", (5, 6, 20, 25))


def found(defects):
    return sorted((defect.kind, defect.file.name, defect.action) for defect in defects)


def cut(path):
    """Leave the header and lose the end."""
    path.write_bytes(path.read_bytes()[:-30])


@pytest.fixture
def class_folders(tmp_path):
    """Two classes of two images in train and in val, all different."""
    for number, (split, name, image) in enumerate(
        (s, c, i) for s in ("train", "val") for c in ("cat", "dog") for i in range(2)
    ):
        write_image(tmp_path / split / name / f"{image}.png", (40 + number, 30))
    return tmp_path


def test_sound_data_has_no_defects(tmp_path, class_folders):
    write_voc(tmp_path / "voc" / "VOC2007", {"a": [DOG], "b": []})
    write_coco(tmp_path / "coco", [])
    assert check("imagefolder", class_folders) == []
    assert check("voc", tmp_path / "voc") == []
    assert check("coco", tmp_path / "coco") == []
    assert summarize([], "data") == "data: no defects found"


def test_class_folders(class_folders):
    cut(class_folders / "train" / "cat" / "0.png")
    shutil.copy(class_folders / "train" / "dog" / "0.png", class_folders / "val" / "dog" / "copy.png")
    shutil.rmtree(class_folders / "val" / "cat")
    (class_folders / "val" / "bird").mkdir()
    assert found(check("imagefolder", class_folders)) == [
        ("class_mismatch", "train", "fatal"),
        ("class_mismatch", "val", "fatal"),
        ("duplicate_image", "copy.png", "keep"),
        ("empty_class", "bird", "fatal"),
        ("unreadable_image", "0.png", "drop"),
    ]


def test_class_folders_without_splits_and_a_test_split_without_labels(class_folders):
    assert check("imagefolder", class_folders / "train") == []
    write_image(class_folders / "test" / "unlabelled.png", (9, 9))
    assert check("imagefolder", class_folders) == []


def test_every_list_of_every_voc_folder_is_checked(tmp_path, caplog):
    old = write_voc(tmp_path / "VOC2007", {"a": [DOG], "b": [DOG]}, "train")
    write_voc_split(old, "trainval", ["a", "b"])
    write_voc_split(old, "val", [])
    (old / "ImageSets" / "Main" / "dog_train.txt").write_text("a  1\nb -1\n")
    new = write_voc(tmp_path / "VOC2012", {"c": [("dog", (5, 6, 5, 25)), DOG]}, "test")
    cut(new / "JPEGImages" / "c.jpg")
    (old / "JPEGImages" / "b.jpg").unlink()
    with caplog.at_level(logging.INFO):
        defects = check("voc", tmp_path)
    assert found(defects) == [
        ("empty_split", "val.txt", "fatal"),
        ("missing_image", "b.jpg", "fatal"),
        ("unreadable_image", "c.jpg", "fatal"),
        ("zero_area", "c.xml", "drop"),
    ]
    assert "VOC2012: 0 usable images (0 without objects), 0 objects (0 difficult or crowd)" in caplog.text
    kinds = [defect.kind for defect in check("voc", tmp_path, classes=["cat"])]
    assert kinds.count("unknown_class") == 3


def test_a_voc_folder_without_lists(tmp_path):
    shutil.rmtree(write_voc(tmp_path, {"a": [DOG]}) / "ImageSets")
    assert [defect.kind for defect in check("voc", tmp_path)] == ["empty_split"]


def test_coco_files_are_found_with_their_images(tmp_path):
    for split in ("train2017", "val2017"):
        file, images = write_coco(tmp_path, [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 0, 5]}])
        (tmp_path / "annotations").mkdir(exist_ok=True)
        file.rename(tmp_path / "annotations" / f"instances_{split}.json")
        images.rename(tmp_path / split)
    captions = {"images": [], "annotations": [], "categories": []}
    (tmp_path / "annotations" / "captions_val2017.json").write_text(json.dumps(captions))
    (tmp_path / "annotations" / "torn.json").write_text("{")
    (tmp_path / "val2017" / "2.jpg").unlink()
    assert found(check("coco", tmp_path)) == [
        ("missing_image", "2.jpg", "fatal"),
        ("unreadable_index", "torn.json", "fatal"),
        ("zero_area", "instances_train2017.json", "drop"),
        ("zero_area", "instances_val2017.json", "drop"),
    ]
    assert len(check("coco", tmp_path / "annotations" / "instances_val2017.json")) == 2


def test_what_is_no_data_set_of_the_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match="unknown kind; there are: imagefolder, voc, coco"):
        check("yolo", tmp_path)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        check("voc", tmp_path / "nowhere")
    for kind, expected in (
        ("voc", "JPEGImages"),
        ("coco", r"annotations/\*\.json"),
        ("imagefolder", "class"),
    ):
        with pytest.raises(UserError, match=expected):
            check(kind, tmp_path)


class TestClassesWithoutObjects:
    """Classes that nothing is trained on."""

    def _voc(self, root, *more):
        write_voc(root / "VOC2007", {"a": [("dog", (5, 6, 20, 25)), ("cat", (1, 2, 9, 9), True)]}, "trainval")
        write_voc(root / "VOC2007", {"b": [("dog", (5, 6, 21, 25))]}, "test")
        keys = [
            "data.classes=[dog, cat]",
            "data.train=[2007/trainval]",
            "data.test=2007/test",
            "data.defects.test_in_train=keep",
        ]
        recipe = load("transfer", "voc07_c4", [f"data.root={root}", *keys, *more])
        return read_splits(recipe.data, needs_masks=False)

    def test_a_recipes_class_is_wanted_and_a_difficult_object_is_none(self, tmp_path):
        with pytest.raises(
            UserError, match=r"1 of 2 classes have no object to train on: 'cat' \[absent_class"
        ):
            self._voc(tmp_path, "data.defects.absent_class=fatal")
        kept = self._voc(tmp_path).defects
        assert "absent_class" in {defect.kind for defect in kept}

    @pytest.mark.parametrize(("tested", "refused"), [(1, False), (2, True)])
    def test_of_cocos_those_that_are_tested(self, tmp_path, tested, refused):
        splits = {}
        for split, category in (("train", 1), ("test", tested)):
            box = {"image_id": 1, "category_id": category, "bbox": [1, 2, 9, 9]}
            write_coco(tmp_path / split, [box], categories={1: "cell", 2: "all of them"})
            splits[split] = {"annotations": f"{split}/instances.json", "images": f"{split}/images"}
        keep = {"test_in_train": "keep", "absent_class": "fatal"}
        data = CocoData.model_validate(
            {"kind": "coco", "title": "cells", "root": tmp_path, "defects": keep, **splits}
        )
        if refused:
            with pytest.raises(UserError, match="no object to train on: 'all of them'"):
                read_splits(data, needs_masks=False)
        else:
            assert read_splits(data, needs_masks=False).train.classes == ("cell", "all of them")
