"""Both splits of a labeled data set, compared before anything is trained."""

import shutil
import zlib

import numpy as np
import pytest
from scipy.io import savemat

from carryover.configs import UserError, load, recipe_hash
from carryover.core.data.check import check
from carryover.core.data.labelled.config import ClassifyData
from carryover.core.data.labelled.images import LabeledImages
from tests.core.data.folders import draw, image_folder


@pytest.fixture
def root(tmp_path):
    image_folder(tmp_path, per_class=4)
    for label in range(3):
        draw(tmp_path / "val" / f"c{label}" / "x.png", seed=1000 + label)
    return tmp_path


def open_images(root, **keys):
    return LabeledImages(ClassifyData(root=root, name="mine", **keys))


def test_sound_splits(root):
    images = open_images(root)
    assert (len(images.train.indices), len(images.test), images.classes) == (12, 3, ["c0", "c1", "c2"])


def test_a_test_image_that_is_a_training_image_is_fatal_unless_it_is_kept(root):
    shutil.copy(root / "train" / "c1" / "02.png", root / "val" / "c1" / "renamed.png")
    with pytest.raises(UserError, match=r"renamed\.png: is the training image .*c1/02\.png too"):
        _ = open_images(root).splits
    assert len(open_images(root, test_in_train="keep").test) == 4


def test_a_flat_folder_is_refused_in_one_way(root):
    shutil.rmtree(root / "val")
    draw(root / "val" / "ILSVRC2012_val_00000001.png")
    with pytest.raises(UserError) as evaluated:
        _ = open_images(root).splits
    with pytest.raises(UserError) as checked:
        check("imagefolder", root)
    assert str(evaluated.value) == str(checked.value)
    assert "expected one folder a class, or a list" in str(checked.value)


def test_a_flat_folder_may_have_a_list_of_its_classes(root):
    """Every form that ImageNet's validation labels are handed on in."""
    shutil.rmtree(root / "val")
    names = [f"ILSVRC2012_val_0000000{number}.png" for number in (1, 2, 3)]
    for name in names:
        draw(root / "val" / name, seed=zlib.crc32(name.encode()))
    stems = [name.removesuffix(".png") for name in names]
    ids = np.array([2, 3, 1, 4], dtype=np.uint16)
    synsets = np.zeros(4, dtype=[("ILSVRC2012_ID", "u2"), ("WNID", "O"), ("num_children", "u1")])
    synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["num_children"] = (
        ids,
        ["c1", "c2", "c0", "c3"],
        [0, 0, 0, 2],
    )
    devkit = root / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    savemat(devkit / "meta.mat", {"synsets": synsets})
    forms = {
        devkit / "ILSVRC2012_validation_ground_truth.txt": "3\n1\n2\n",
        root / "val.csv": "filename,label\n"
        + "".join(f"{n},c{k}\n" for n, k in zip(names, (2, 0, 1), strict=True)),
        root / "val.txt": "".join(f"{n} {k}\n" for n, k in zip(names, (2, 0, 1), strict=True)),
        root / "LOC_val_solution.csv": "ImageId,PredictionString\n"
        + "".join(f"{n},c{k} 1 2 3 4 c{k} 5 6 7 8\n" for n, k in zip(stems, (2, 0, 1), strict=True)),
    }
    digests = set()
    for file, text in forms.items():
        file.write_text(text)
        images = open_images(root)
        assert images.test.labels == [2, 0, 1], file
        assert not [d for d in check("imagefolder", root) if d.kind != "duplicate_image"], file
        digests.add(ClassifyData(root=root, name="mine").contents().digest())
    assert len(digests) == len(forms), "the list is part of the data"
    (root / "LOC_val_solution.csv").write_text(f"{stems[0]},c9\n")
    with pytest.raises(
        UserError, match=r"LOC_val_solution\.csv, line 1: class 'c9' is no folder of the training"
    ):
        _ = open_images(root).splits


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX"])
def test_hidden_folders_hold_no_images(root, hidden):
    draw(root / "train" / "c0" / hidden / "copy.png")
    draw(root / "train" / hidden / "copy.png")
    images = open_images(root)
    assert (len(images.train.indices), images.classes) == (12, ["c0", "c1", "c2"])
    assert not [d for d in check("imagefolder", root) if d.kind != "duplicate_image"]


def test_folders_that_hold_other_things_are_named_alike_by_both(root, caplog):
    draw(root / "train" / "c0" / "camera.png").rename(root / "train" / "c0" / "camera.jfif")
    _ = open_images(root).splits
    assert "pictures that are not read: 1 .jfif" in caplog.text
    assert [d.kind for d in check("imagefolder", root)] == ["passed_over"]
    draw(root / "train" / "cover.png")
    with pytest.raises(UserError, match=r"holds images \(cover\.png\) beside folders \(c0\)"):
        _ = open_images(root).splits
    assert ("stray_image", "fatal") in {(d.kind, d.action) for d in check("imagefolder", root)}
    (root / "train" / "cover.png").unlink()
    (root / "val" / "c1" / "x.png").write_text("<html>")
    assert ("unreadable_image", "fatal") in {(d.kind, d.action) for d in check("imagefolder", root)}
    draw(root / "val" / "c1" / "x.png", seed=7)
    for split in ("train", "val"):
        (root / split).rename(root / "inner")
        (root / split).mkdir()
        (root / "inner").rename(root / split / "images")
    with pytest.raises(UserError, match=r"only one class \(images\).* do the class folders lie deeper\?"):
        _ = open_images(root).splits
    assert [d.kind for d in check("imagefolder", root)].count("single_class") == 2


def test_a_picture_under_two_classes_is_told_and_refused_where_the_recipe_says_so(root, caplog):
    shutil.copy(root / "train" / "c0" / "00.png", root / "train" / "c1" / "again.png")
    shutil.copy(root / "val" / "c2" / "x.png", root / "val" / "c2" / "y.png")
    images = open_images(root)
    assert len(images.train.indices) == 13
    assert "c1/again.png: the same file as" in caplog.text and "'c1' here, 'c0' there" in caplog.text
    assert "to decide otherwise: data: {two_labels: fatal}" in caplog.text
    assert "val/c2/y.png: the same file as" in caplog.text
    kinds = {d.kind: d.action for d in check("imagefolder", root)}
    assert kinds == {"two_labels": "keep", "duplicate_image": "keep"}
    for key, file in (("two_labels", "again"), ("duplicate_image", "y")):
        with pytest.raises(UserError, match=rf"{file}\.png: the same file as .*\[{key}: fatal\]"):
            open_images(root, **{key: "fatal"}).look()
    unlike = [load("transfer", "small_knn", [f"data.two_labels={word}"]) for word in ("keep", "fatal")]
    assert recipe_hash(unlike[0]) == recipe_hash(unlike[1])


def test_pictures_that_differ_in_their_suffix_alone_are_all_drawn_and_named_by_lists(root, tmp_path):
    folder = root / "train"
    number = sum(1 for _ in folder.rglob("*.png"))
    draw(folder / "c0" / "00.bmp")
    drawn = LabeledImages(ClassifyData(root=folder, splits={"test": 0.25}, split="train", test_split="test"))
    files = [*drawn.splits.train.paths, *drawn.splits.test.paths]
    assert len({str(file) for file in files}) == len(files) == number + 1
    lists = {name: tmp_path / f"{name}.txt" for name in ("train", "test")}
    lists["train"].write_text("c0/00.png\nc1/00.png\nc2/00.png\n")
    lists["test"].write_text("c0/00.bmp\nc1/01.png\nc2/01.png\n")
    named = LabeledImages(
        ClassifyData(
            root=folder, splits={k: str(v) for k, v in lists.items()}, split="train", test_split="test"
        )
    )
    assert [path.name for path in named.splits.test.paths] == ["00.bmp", "01.png", "01.png"]
    assert [path.name for path in named.splits.train.paths] == ["00.png"] * 3


@pytest.mark.parametrize("suffix", [".gif", ".heic", ".svg"])
def test_pictures_that_are_not_read_are_told_where_splits_are_drawn_from_class_folders(root, caplog, suffix):
    draw(root / "train" / "c0" / "moving.png").rename(root / "train" / "c0" / f"moving{suffix}")
    keys = {"splits": {"test": 0.25}, "test_split": "test"}
    images = LabeledImages(ClassifyData(root=root / "train", **keys))
    assert len(images.splits.train) == 9
    assert f"pictures that are not read: 1 {suffix}" in caplog.text
    draw(root / "train" / "cover.png")
    with pytest.raises(UserError, match=r"holds images \(cover\.png\) beside folders \(c0\)"):
        LabeledImages(ClassifyData(root=root / "train", **keys)).look()
