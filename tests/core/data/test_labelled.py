"""Both splits of a labelled data set, compared before anything is trained."""

import shutil

import pytest

from carryover.configs import UserError
from carryover.core.data.check import check
from carryover.core.data.labelled.config import ClassifyData
from carryover.core.data.labelled.images import LabelledImages
from tests.core.data.folders import draw, image_folder


@pytest.fixture
def root(tmp_path):
    image_folder(tmp_path, per_class=4)
    for label in range(3):
        draw(tmp_path / "val" / f"c{label}" / "x.png", seed=1000 + label)
    return tmp_path


def open_images(root, **keys):
    return LabelledImages(ClassifyData(root=root, name="mine", **keys))


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


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX"])
def test_hidden_folders_hold_no_images(root, hidden):
    draw(root / "train" / "c0" / hidden / "copy.png")
    draw(root / "train" / hidden / "copy.png")
    images = open_images(root)
    assert (len(images.train.indices), images.classes) == (12, ["c0", "c1", "c2"])
    assert not [d for d in check("imagefolder", root) if d.kind != "duplicate_image"]
