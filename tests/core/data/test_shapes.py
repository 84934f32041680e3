"""The procedural data set is one for one seed, tells the truth in every layout, and is never half there."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carryover.configs import UserError
from carryover.core.data.objects.coco import read_coco
from carryover.core.data.objects.voc import read_voc
from carryover.core.data.shapes.write import (
    CATEGORY_IDS,
    CLASSES,
    DETECTION_CLASSES,
    ShapesPaths,
    write_shapes,
)

SIZES = {"n_train": 30, "n_val": 20, "n_detection": 24}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> ShapesPaths:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", seed=3, **SIZES)


def digest(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_one_seed_is_one_data_set(written: ShapesPaths, tmp_path: Path) -> None:
    again = write_shapes(tmp_path / "again", seed=3, **SIZES)
    other = write_shapes(tmp_path / "other", seed=4, **SIZES)
    assert digest(again.classification) == digest(written.classification)
    assert digest(again.detection) == digest(written.detection)
    assert not set(digest(other.classification).values()) & set(digest(written.classification).values())


def test_the_classes_take_turns(written: ShapesPaths) -> None:
    for split, count in (("train", 30), ("val", 20)):
        files = list((written.classification / split).glob("*/*.png"))
        assert Counter(f.parent.name for f in files) == dict.fromkeys(CLASSES, count // len(CLASSES))
        assert {size(f) for f in files} == {(64, 64)}


def test_training_and_validation_share_no_image(written: ShapesPaths) -> None:
    train = set(digest(written.classification / "train").values())
    assert not train & set(digest(written.classification / "val").values())


def test_voc_and_coco_tell_the_same_boxes(written: ShapesPaths) -> None:
    voc, voc_defects = read_voc(written.detection, splits=[(2007, "test")], classes=DETECTION_CLASSES)
    coco, coco_defects = read_coco(
        written.detection / "annotations" / "test.json", written.detection / "VOC2007" / "JPEGImages"
    )
    assert not voc_defects and not coco_defects
    assert coco.classes == DETECTION_CLASSES and tuple(coco.category_ids) == CATEGORY_IDS
    by_stem = {image.path.stem: image.annotation for image in voc.images}
    compared = 0
    for image in coco.images:
        theirs, ours = image.annotation, by_stem[image.path.stem]
        single = ~theirs.iscrowd
        n = int(single.sum())
        np.testing.assert_array_equal(theirs.labels[single], ours.labels[:n])
        # VOC's corners are whole pixels; COCO's are exact.
        np.testing.assert_allclose(theirs.boxes[single], ours.boxes[:n], atol=1.01)
        compared += n
    assert compared > 10


def test_what_real_data_has_is_there_as_well(written: ShapesPaths) -> None:
    coco = json.loads((written.detection / "annotations" / "train.json").read_text(encoding="utf-8"))
    annotated = {a["image_id"] for a in coco["annotations"]}
    assert {i["id"] for i in coco["images"]} - annotated, "an image without annotations"
    crowds = [a for a in coco["annotations"] if a["iscrowd"]]
    assert crowds and all(isinstance(c["segmentation"]["counts"], list) for c in crowds)
    assert len({a["id"] for a in coco["annotations"]}) == len(coco["annotations"])
    xml = "".join(p.read_text() for p in (written.detection / "VOC2007" / "Annotations").glob("*.xml"))
    assert "<difficult>1</difficult>" in xml and "<difficult>0</difficult>" in xml


def test_a_finished_set_is_recognized_and_another_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "data"
    before = write_shapes(out, **SIZES)
    stamp = (out / "shapes.json").stat().st_mtime_ns
    assert write_shapes(out, **SIZES) == before
    assert (out / "shapes.json").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="holds the shapes of"):
        write_shapes(out, seed=1, **SIZES)
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="is no shapes data set"):
        write_shapes(tmp_path / "mine", **SIZES)


def test_an_interrupted_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("carryover.core.data.shapes.write._write_detection", broken)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / "data", **SIZES)
    assert not list(tmp_path.iterdir())


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 10"):
        write_shapes(tmp_path / "data", n_train=9, n_val=20, n_detection=10)
