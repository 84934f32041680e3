"""`carryover data check`: every defect of a data set of any kind, before anybody trains on it."""

import json
import logging
import shutil
from collections import Counter

import pytest
from PIL import Image

from carryover.configs import load
from carryover.configs.errors import UserError
from carryover.configs.identity import without_defaults
from carryover.core.data.check import check
from carryover.core.data.defects import summarize
from carryover.core.data.objects.config import CocoData, VocData
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
        ("empty_class", "bird", "fatal"),
        ("test_in_train", "copy.png", "fatal"),
        ("unreadable_image", "0.png", "fatal"),
    ]


def test_class_folders_without_splits_and_a_test_split_without_labels(class_folders):
    assert check("imagefolder", class_folders / "train") == []
    write_image(class_folders / "test" / "unlabeled.png", (9, 9))
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
        ("test_in_train", "1.jpg", "fatal"),
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

    def test_a_picture_saved_again_is_the_same_picture(self, tmp_path):
        objects = [("dog", (5, 6, 20, 25)), ("cat", (1, 2, 9, 9))]
        for year, quality in (("VOC2007", 95), ("VOC2012", 30)):
            write_voc(tmp_path / year, {"a": objects}, "train")
            Image.effect_noise((40, 30), 60).convert("RGB").save(
                tmp_path / year / "JPEGImages" / "a.jpg", quality=quality
            )
        keys = ["data.classes=[dog, cat]", "data.train=[2007/train]", "data.test=2012/train"]
        recipe = load("transfer", "voc07_c4", [f"data.root={tmp_path}", *keys])
        with pytest.raises(UserError, match=r"VOC2012/JPEGImages/a\.jpg: has the name, size and boxes of"):
            read_splits(recipe.data, needs_masks=False)

    def test_lists_and_splits_that_share_images_are_found_by_data_check(self, tmp_path):
        write_voc(tmp_path / "voc", {"a": [DOG], "b": [DOG]}, "train")
        write_voc_split(tmp_path / "voc", "val", ["b"])
        # Flags behind the names do not make lists of a single class of them.
        write_voc_split(tmp_path / "voc", "test", ["a.jpg 1", "b.jpg 1"])
        write_voc_split(tmp_path / "voc", "dog_train", ["a -1"])
        (defect, other) = (d for d in check("voc", tmp_path / "voc") if d.action == "fatal")
        assert other.file.name == "test.txt" and "2 of its images are in train.txt" in other.message
        assert defect.kind == "test_in_train" and "1 of its images are in train.txt too" in defect.message
        for split in ("train", "valid"):
            write_coco(tmp_path / "coco" / split, [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 9]}])
            for image in (tmp_path / "coco" / split / "images").iterdir():
                image.rename(image.parent.parent / image.name)
            file = tmp_path / "coco" / split / "instances.json"
            file.rename(file.with_name("_annotations.coco.json"))
        kinds = Counter(d.kind for d in check("coco", tmp_path / "coco"))
        assert kinds == {"test_in_train": 2}

    def test_images_and_xml_side_by_side(self, tmp_path):
        for split, box in (("train", (5, 6, 20, 25)), ("valid", (5, 6, 21, 25))):
            write_voc(tmp_path / split, {f"{split}1": [("dog", box)], f"{split}2": [("dog", box)]})
            write_image(tmp_path / split / "JPEGImages" / f"{split}2.jpg", (41, 30))
            xml = tmp_path / split / "Annotations" / f"{split}2.xml"
            xml.write_text(xml.read_text().replace("<width>40", "<width>41"))
            for file in [*(tmp_path / split).glob("*/*.jpg"), *(tmp_path / split).glob("*/*.xml")]:
                file.rename(tmp_path / split / file.name)
            for folder in ("JPEGImages", "Annotations", "ImageSets"):
                shutil.rmtree(tmp_path / split / folder)
        keys = [
            "data.classes=[dog]",
            "data.train=[train]",
            "data.test=valid",
            "data.defects.test_in_train=keep",
        ]
        data = load("transfer", "voc07_c4", [f"data.root={tmp_path}", *keys]).data
        splits = read_splits(data, needs_masks=False)
        assert [image.id for image in splits.test.images] == ["valid1", "valid2"]
        assert splits.train.images[0].annotation.boxes.tolist() == [[4, 5, 20, 25]]
        assert {d.kind for d in check("voc", tmp_path)} == {"test_in_train"}
        before = data.contents().digest()
        (tmp_path / "valid" / "valid1.xml").unlink()
        assert data.contents().digest() != before
        with pytest.raises(UserError, match=r"valid1\.xml: no XML for image valid1"):
            read_splits(data, needs_masks=False)

    def test_the_rule_of_the_metric_is_that_of_the_data(self, tmp_path):
        own = {"root": tmp_path, "train": ["train"], "test": "val"}
        for more, rule in (
            ({"classes": ["dog"]}, "area"),
            ({"classes": ["dog"], "metric": "11point"}, "11point"),
            ({}, "11point"),
            ({"test": "2007/test"}, "11point"),
            ({"test": "2012/val"}, "area"),
        ):
            data = VocData.model_validate(own | more)
            assert data.metric == rule, more
            assert ("metric" in without_defaults(data)) == (rule == "area")

    def test_a_recipes_class_is_wanted_and_a_difficult_object_is_none(self, tmp_path):
        with pytest.raises(
            UserError, match=r"1 of 2 classes has no object to train on: 'cat' \[absent_class"
        ):
            self._voc(tmp_path)
        kept = self._voc(tmp_path, "data.defects.absent_class=keep").defects
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
