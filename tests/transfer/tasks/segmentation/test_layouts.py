"""Images and masks in the layouts people have them in, and what is wrong with them, by file."""

import logging
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from carryover.configs import UserError, load
from carryover.core.data.masks.dataset import IGNORED, MaskCode, index_code, load_labels
from carryover.core.data.masks.layouts import code_of, pairs_of
from carryover.core.data.masks.splits import read_splits
from carryover.transfer.cli.commands import check_data
from tests.transfer.tasks.segmentation.scenes import CLASSES, recipe, write_folders, write_pair


def _mask(*rows):
    return np.array(rows, dtype=np.uint8)


class TestLayouts:
    def test_voc_joins_lists_with_masks_of_their_own(self, tmp_path):
        lists = tmp_path / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text("a\n")
        (lists / "aug.txt").write_text("b\nc\n")
        (lists / "val.txt").write_text("d\n")
        data = load("transfer", "fcn_r50_voc2012aug", [f"data.root={tmp_path}"]).data
        train = [(p.id, p.mask.parent.name) for p in pairs_of(data, "train")]
        assert train == [("a", "SegmentationClass"), *((i, "SegmentationClassAug") for i in "bc")]
        assert [p.image.relative_to(tmp_path).as_posix() for p in pairs_of(data, "test")] == [
            "JPEGImages/d.jpg"
        ]

    def test_a_list_that_is_missing_is_named(self, tmp_path):
        data = load("transfer", "fcn_r50_voc2012aug", [f"data.root={tmp_path}"]).data
        with pytest.raises(UserError, match=r"ImageSets/Segmentation/train\.txt"):
            pairs_of(data, "train")

    def test_cityscapes_masks_lie_in_another_tree(self, tmp_path):
        folder = tmp_path / "leftImg8bit" / "val" / "ulm"
        folder.mkdir(parents=True)
        (folder / "ulm_000000_000019_leftImg8bit.png").touch()
        data = load("transfer", "fcn_r50_cityscapes", [f"data.root={tmp_path}"]).data
        (pair,) = pairs_of(data, "test")
        assert pair.mask == tmp_path / "gtFine" / "val" / "ulm" / "ulm_000000_000019_gtFine_labelIds.png"

    def test_cityscapes_ids_become_train_ids_and_the_rest_is_ignored(self, tmp_path):
        data = load("transfer", "fcn_r50_cityscapes", [f"data.root={tmp_path}"]).data
        Image.fromarray(_mask([7, 8, 26, 33, 0, 34, 255])).save(tmp_path / "ids.png")
        assert load_labels(tmp_path / "ids.png", code_of(data)).tolist() == [
            [0, 1, data.classes.index("car"), data.classes.index("bicycle"), *[IGNORED] * 3]
        ]

    def test_ade20k_counts_from_one_and_ignores_zero(self, tmp_path):
        data = load("transfer", "fcn_r50_ade20k", [f"data.root={tmp_path}"]).data
        Image.fromarray(_mask([0, 1, 13, 150])).save(tmp_path / "m.png")
        found = load_labels(tmp_path / "m.png", code_of(data))
        assert found.tolist() == [[IGNORED, 0, data.classes.index("person"), 149]]

    def test_painted_masks(self, tmp_path):
        keys = ["data.palette=[[0, 0, 0], [200, 0, 0]]", "data.ignore=[255, 255, 255]"]
        data = load("transfer", "fcn_folders", [f"data.root={tmp_path}", *keys]).data
        pixels = np.array([[[0, 0, 0], [200, 0, 0], [255, 255, 255]]], dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "m.png")
        # A palette image of the same colors is the same mask.
        Image.fromarray(pixels).quantize(4).save(tmp_path / "p.png")
        for name in ("m.png", "p.png"):
            assert load_labels(tmp_path / name, code_of(data)).tolist() == [[0, 1, IGNORED]]

    def test_palette_images_hold_indices_unless_the_recipe_has_a_palette(self, tmp_path):
        image = Image.fromarray(_mask([0, 1, 1, 255]))
        image.putpalette(np.random.default_rng(0).integers(256, size=768).tolist())
        assert image.mode == "P"
        image.save(tmp_path / "m.png")
        assert load_labels(tmp_path / "m.png", index_code(2)).tolist() == [[0, 1, 1, IGNORED]]

    def test_masks_of_sixteen_bits(self, tmp_path):
        Image.fromarray(np.array([[0, 1, 255]], dtype=np.uint16)).save(tmp_path / "m.png")
        assert load_labels(tmp_path / "m.png", index_code(2)).tolist() == [[0, 1, IGNORED]]


class TestDefects:
    """Folders in which every kind of defect occurs once."""

    @pytest.fixture
    def root(self, tmp_path):
        good = _mask([0, 1], [1, 0])
        for split in ("train", "val"):
            write_pair(tmp_path / split, "fine", good)
        train = tmp_path / "train"
        write_pair(train, "no_mask", good)
        (train / "masks" / "no_mask.png").unlink()
        write_pair(train, "other_size", good, size=(5, 2))
        write_pair(train, "out_of_range", _mask([0, 7], [9, 0]))
        write_pair(train, "broken_mask", good)
        (train / "masks" / "broken_mask.png").write_bytes(b"\x89PNG nothing")
        write_pair(train, "painted", np.full((2, 2, 3), [9, 0, 0], dtype=np.uint8))
        write_pair(train, "broken_image", good)
        (train / "images" / "broken_image.jpg").write_bytes(b"\xff\xd8 nothing")
        return tmp_path

    def _data(self, root, *more):
        return load("transfer", "fcn_folders", [f"data.root={root}", *more]).data

    def test_all_are_listed_by_file_before_training(self, root):
        with pytest.raises(UserError) as refused:
            read_splits(self._data(root))
        said = str(refused.value)
        for line in (
            "masks/no_mask.png: no such mask of no_mask.jpg [missing_mask: fatal]",
            "masks/other_size.png: is 2 x 2, but other_size.jpg is 5 x 2 [size_mismatch: fatal]",
            "masks/out_of_range.png: has values that are no class and not ignored: 7, 9 [out_of_range",
            "masks/painted.png: not readable as a mask (is an image of mode RGB, not a mask of indices",
        ):
            assert line in said
        assert "masks/broken_mask.png: not readable as a mask" in said
        assert "images/broken_image.jpg: not readable as an image" in said
        assert "6 defects that the recipe does not forgive" in said
        assert "fine" not in said

    def test_data_check_lists_them_and_says_how_common_each_class_is(self, root, caplog):
        noise = np.random.default_rng(0).integers(2, size=(64, 64), dtype=np.uint8)
        write_pair(root / "val", "torn", noise)
        torn = root / "val" / "images" / "torn.jpg"
        torn.write_bytes(torn.read_bytes()[:-200])
        recipe = root / "mine.yaml"
        classes = "[ground, crop, weed]"
        recipe.write_text(f"# Mine.\nbase: fcn_folders\ndata: {{title: mine, classes: {classes}}}\n")
        with caplog.at_level(logging.INFO):
            defects = check_data("masks", root, str(recipe))
        assert Counter(defect.kind for defect in defects) == {
            "missing_mask": 1,
            "size_mismatch": 1,
            "out_of_range": 1,
            "unreadable_mask": 2,
            "unreadable_image": 2,
            "absent_class": 1,
            "untested_class": 1,
        }
        assert "train/images: 1 usable pairs; of all pixels: ground 50.0 %, crop 50.0 %" in caplog.text
        assert any("'weed' (2)" in defect.message for defect in defects)

    def test_data_check_needs_a_segmentation_recipe(self, root):
        with pytest.raises(UserError, match="--recipe is needed for the layout"):
            check_data("masks", root, None)
        with pytest.raises(UserError, match="task 'knn', not a segmentation"):
            check_data("masks", root, "knn_cifar10")
        with pytest.raises(UserError, match="need a recipe, not voc"):
            check_data("voc", root, "fcn_folders")

    def test_what_the_recipe_forgives_is_dropped_and_counted(self, root, caplog):
        kinds = ("missing_mask", "unreadable_image", "unreadable_mask", "size_mismatch", "out_of_range")
        forgiving = [f"data.defects.{kind}=drop" for kind in kinds]
        with caplog.at_level(logging.INFO):
            splits = read_splits(self._data(root, *forgiving))
        assert [i.id for i in splits.train.images] == ["fine"]
        assert len(splits.defects) == 6
        assert "out_of_range.png" in caplog.text

    def test_unknown_values_can_be_ignored(self, root):
        kinds = ("missing_mask", "unreadable_image", "unreadable_mask", "size_mismatch")
        forgiving = [f"data.defects.{kind}=drop" for kind in kinds]
        splits = read_splits(self._data(root, *forgiving, "data.defects.out_of_range=keep"))
        kept = next(i for i in splits.train.images if i.id == "out_of_range")
        assert load_labels(kept.mask, splits.train.code).tolist() == [[0, IGNORED], [IGNORED, 0]]

    def test_colors_outside_the_palette_are_told_as_colors(self, tmp_path):
        pixels = np.zeros((2, 2, 3), dtype=np.uint8)
        pixels[0, 0] = (1, 2, 3)
        for split in ("train", "val"):
            write_pair(tmp_path / split, "a", pixels)
        keys = ("data.palette=[[0, 0, 0], [200, 0, 0]]", "data.ignore=null")
        with pytest.raises(UserError, match="not ignored: #010203"):
            read_splits(self._data(tmp_path, *keys))

    def test_missing_images_of_a_list(self, tmp_path):
        lists = tmp_path / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        for name in ("train", "aug", "val"):
            (lists / f"{name}.txt").write_text("ghost\n")
        data = load("transfer", "fcn_r50_voc2012aug", [f"data.root={tmp_path}"]).data
        with pytest.raises(UserError, match=r"JPEGImages/ghost\.jpg: no such image \[missing_image: fatal\]"):
            read_splits(data)

    def test_a_split_of_which_nothing_is_left_is_fatal_whatever_is_forgiven(self, tmp_path):
        for split in ("train", "val"):
            write_pair(tmp_path / split, "a", _mask([0, 9]))
        with pytest.raises(UserError, match="no usable pair"):
            read_splits(self._data(tmp_path, "data.defects.out_of_range=drop"))

    @pytest.mark.parametrize("part", ["images", "masks"])
    def test_missing_folders_are_named(self, tmp_path, part):
        write_pair(tmp_path / "train", "a", _mask([0, 1]))
        for file in (tmp_path / "train" / part).iterdir():
            file.unlink()
        (tmp_path / "train" / part).rmdir()
        with pytest.raises(UserError, match=f"train/{part}: no such folder"):
            read_splits(self._data(tmp_path))

    def test_missing_root(self):
        with pytest.raises(UserError, match=r"data\.root: /no/such/place: no such directory"):
            read_splits(self._data("/no/such/place"))


class TestComparison:
    """What is compared with the recipe, or the splits with each other."""

    def _read(self, root, classes, *more):
        keys = [f"data.root={root}", f"data.classes={classes}", *more]
        return read_splits(load("transfer", "fcn_folders", keys).data)

    def _write(self, root, *masks):
        for split in ("train", "val"):
            for number, mask in enumerate(masks):
                write_pair(root / split, f"{number}", mask)
        return root

    def test_masks_painted_for_a_viewer(self, tmp_path):
        root = self._write(tmp_path, _mask([0, 255], [0, 0]))
        remedy = ["ignore: null", "palette: [[0, 0, 0], [255, 255, 255]]"]
        with pytest.raises(
            UserError, match=r"1 of 2 classes has no pixel .*'target' \(1\); 25\.0 %"
        ) as refused:
            self._read(root, "[ground, target]")
        assert all(f"`{key}`" in str(refused.value) for key in remedy)
        keys = [f"data.{key.replace(': ', '=', 1)}" for key in remedy]
        splits = self._read(root, "[ground, target]", *keys)
        assert load_labels(splits.train.images[0].mask, splits.train.code).tolist() == [[0, 1], [0, 0]]

    def test_absent_classes_are_one_defect(self, tmp_path):
        root = self._write(tmp_path, _mask([0, 1], [0, 0]))
        with pytest.raises(UserError, match=r"2 of 4 classes have no pixel .*: 'c' \(2\), 'd' \(3\) \["):
            self._read(root, "[a, b, c, d]")
        splits = self._read(root, "[a, b, c, d]", "data.defects.absent_class=keep")
        assert [defect.kind for defect in splits.defects] == ["absent_class", "untested_class"]

    def test_masks_resized_with_interpolation(self, tmp_path):
        shape = np.zeros((32, 32), dtype=np.uint8)
        shape[8:24, 8:24] = 4
        shape[12:20, 2:6] = 1
        # A thin class of its own, which is no transition: 3 between 0 and 0.
        shape[28, 4:28] = 3
        root = self._write(tmp_path / "sound", shape)
        keep = "data.defects.absent_class=keep"
        assert "interpolated_class" not in {d.kind for d in self._read(root, "[a, b, c, d, e]", keep).defects}
        blurred = np.asarray(Image.fromarray(shape[:28]).resize((48, 42), Image.Resampling.BILINEAR))
        root = self._write(tmp_path / "resized", blurred)
        with pytest.raises(
            UserError, match=r"2 of 5 classes have pixels only where a lower .*'c' \(2\).*'d'"
        ):
            self._read(root, "[a, b, c, d, e]", keep)

    def test_palettes_in_the_order_of_a_quantizer(self, tmp_path):
        colors = np.array([[0, 0, 0], [200, 0, 0], [0, 200, 0]], dtype=np.uint8)
        both, green = (_mask([0] * 4, *[[2, 2, a, a]] * 2, [0] * 4) for a in (1, 2))
        for folder, reduce in (("quantized", True), ("one_palette", False)):
            root = self._write(tmp_path / folder, both, green)
            for path in root.glob("*/masks/*.png"):
                indices = Image.open(path)
                if reduce:
                    Image.fromarray(colors[np.asarray(indices)]).quantize(3).save(path)
                else:
                    indices.putpalette(colors.ravel().tolist())
                    indices.save(path)
        with pytest.raises(UserError, match=r"colors have different indices in different masks .*palette:"):
            self._read(tmp_path / "quantized", "[a, b, c]")
        assert self._read(tmp_path / "one_palette", "[a, b, c]").defects == ()
        painted = ["data.palette=[[0, 0, 0], [200, 0, 0], [0, 200, 0]]", "data.ignore=null"]
        assert self._read(tmp_path / "quantized", "[a, b, c]", *painted).defects == ()

    def test_zero_may_mean_no_label(self, tmp_path):
        root = self._write(tmp_path, _mask([0, 1, 2, 255]))
        with pytest.raises(UserError, match=r"ignore: 0 is the class 'a'; .* say first_index: 1"):
            self._read(root, "[a, b]", "data.ignore=0")
        splits = self._read(root, "[a, b]", "data.first_index=1")
        assert load_labels(splits.train.images[0].mask, splits.train.code).tolist() == [
            [IGNORED, 0, 1, IGNORED]
        ]
        assert splits.defects == ()

    def test_a_test_image_that_is_a_training_image(self, tmp_path):
        root = self._write(tmp_path, _mask([0, 1]))
        copied = (root / "train" / "images" / "0.jpg").read_bytes()
        (root / "val" / "images" / "0.jpg").write_bytes(copied)
        with pytest.raises(
            UserError, match=r"val/images/0\.jpg: is the training image .*train/images/0\.jpg too"
        ):
            self._read(root, "[a, b]")
        splits = self._read(root, "[a, b]", "data.defects.test_in_train=keep")
        assert [defect.kind for defect in splits.defects] == ["test_in_train"]


def test_the_scenes_of_these_tests_are_whole(tmp_path):
    splits = read_splits(recipe(write_folders(tmp_path)).data)
    # So few masks do not show every class.
    assert {defect.kind for defect in splits.defects} <= {"absent_class", "untested_class"}
    assert (len(splits.train.images), len(splits.test.images)) == (5, 5)
    found = {int(v) for i in splits.train.images for v in np.unique(load_labels(i.mask, splits.train.code))}
    assert len(found) > 2
    assert found <= set(range(len(CLASSES)))


def test_a_code_without_an_ignored_index_knows_every_pixel(tmp_path):
    Image.fromarray(_mask([0, 1, 255])).save(tmp_path / "m.png")
    code = index_code(2, ignored=())
    assert isinstance(code, MaskCode)
    assert code.labels[255] == -1


def test_masks_saved_as_pictures(tmp_path):
    """Gray in three channels is read; JPEG, classes that count from 1 and other suffixes are named."""
    labels = np.zeros((24, 24), dtype=np.uint8)
    labels[4:20, 4:12], labels[4:20, 12:20] = 1, 2

    def root_with(name, save, suffix=".png"):
        for split in ("train", "val"):
            write_pair(tmp_path / name / split, "0", labels)
            (tmp_path / name / split / "masks" / "0.png").unlink()
            save(tmp_path / name / split / "masks" / f"0{suffix}")
        return f"data.root={tmp_path / name}"

    def read(root, classes="[a, b, c]"):
        return read_splits(load("transfer", "fcn_folders", [root, f"data.classes={classes}"]).data)

    equal = root_with("equal", lambda path: Image.fromarray(labels).convert("RGB").save(path))
    splits = read(equal)
    assert load_labels(splits.train.images[0].mask, splits.train.code).tolist() == labels.tolist()
    lossy = root_with("lossy", lambda path: Image.fromarray(labels * 9).save(path, format="JPEG"))
    with pytest.raises(UserError, match=r"2 masks are JPEG files \(0\.png\)"):
        read(lossy, f"[{', '.join(f'c{n}' for n in range(30))}]")
    from_one = root_with("one", lambda path: Image.fromarray(labels + 1).save(path))
    with pytest.raises(UserError, match=r"not ignored: 3; where classes count from 1, say `first_index: 1`"):
        read(from_one)
    named = root_with("named", lambda path: Image.fromarray(labels).save(path), ".jpg.png")
    with pytest.raises(UserError, match=r"there is 0\.jpg\.png: `mask_suffix: \.jpg\.png`\?"):
        read(named)
