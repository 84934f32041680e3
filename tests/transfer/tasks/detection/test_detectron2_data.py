"""Our data sets as Detectron2's: registered for a while, augmented as its own mapper does, repeatable."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from carryover.configs import WorkError, load
from carryover.core.data.objects.dataset import to_rle
from carryover.core.data.objects.splits import read_splits
from carryover.core.data.shapes.write import write_shapes
from carryover.core.data.steps import Draw
from carryover.core.formats.backbone import BackboneConfig
from carryover.transfer.tasks.detection.data import annotated_images
from carryover.transfer.tasks.detection.detectron2.config import Surroundings, build_cfg

pytestmark = pytest.mark.detectron2


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shapes") / "data"
    return write_shapes(out, n_train=10, n_val=10, n_detection=12).detection


@pytest.fixture(scope="module")
def coco(shapes):
    return read_splits(_recipe("demo_mask_fpn", shapes).data, needs_masks=True)


def _recipe(name, shapes, *more):
    sizes = ("input.min_sizes_train=[64, 96]", "input.min_size_test=64")
    # So few images do not show every class.
    keep = "data.defects.absent_class=keep"
    return load("transfer", name, [f"data.root={shapes}", "backend=detectron2", keep, *sizes, *more])


def _cfg(recipe, mask_format="polygon"):
    weights, out = Path("backbone.pkl"), Path("run")
    around = Surroundings(4, "a_train", "a_test", mask_format, weights, out, "cpu", 1)
    return build_cfg(recipe, BackboneConfig(arch="resnet18"), around)


class TestRegistered:
    def test_for_the_time_of_a_run(self, coco):
        from detectron2.data import DatasetCatalog, MetadataCatalog

        from carryover.transfer.tasks.detection.detectron2.data import registered

        with registered("carryover_0_train", coco.train, coco.train.images, True):
            dicts = DatasetCatalog.get("carryover_0_train")
            assert [d["image_id"] for d in dicts] == [i.id for i in coco.train.images]
            assert MetadataCatalog.get("carryover_0_train").thing_classes == list(coco.train.classes)
        assert "carryover_0_train" not in DatasetCatalog.list()
        assert "carryover_0_train" not in MetadataCatalog.list()

    def test_taken_out_again_after_an_error(self, coco):
        from detectron2.data import DatasetCatalog

        from carryover.transfer.tasks.detection.detectron2.data import registered

        with pytest.raises(WorkError), registered("carryover_1_train", coco.train, (), False):
            raise WorkError("stop")
        assert "carryover_1_train" not in DatasetCatalog.list()

    def test_the_same_objects_as_detectron2s_own_reader_finds(self, shapes, coco):
        from detectron2.data.datasets import load_coco_json
        from detectron2.structures import BoxMode

        from carryover.transfer.tasks.detection.detectron2.data import image_dict

        recipe = _recipe("demo_mask_fpn", shapes)
        split = recipe.data.train
        theirs = load_coco_json(shapes / split.annotations, shapes / split.images, "shapes_as_they_read_it")
        ours = [image_dict(image, with_masks=True) for image in coco.train.images]
        assert len(ours) == len(theirs)
        for found, expected in zip(ours, theirs, strict=True):
            for key in ("file_name", "image_id", "height", "width"):
                assert found[key] == expected[key]
            assert len(found["annotations"]) == len(expected["annotations"])
            for a, b in zip(found["annotations"], expected["annotations"], strict=True):
                assert (a["category_id"], a["iscrowd"]) == (b["category_id"], b["iscrowd"])
                box = BoxMode.convert(b["bbox"], b["bbox_mode"], BoxMode.XYXY_ABS)
                assert a["bbox"] == pytest.approx(box, abs=1e-4)
                assert a["iscrowd"] or a["segmentation"] == b["segmentation"]

    def test_voc_objects_as_detectron2s_own_reader_finds(self, shapes):
        from detectron2.data.datasets.pascal_voc import load_voc_instances

        from carryover.transfer.tasks.detection.detectron2.data import image_dict

        splits = read_splits(_recipe("demo_faster_fpn", shapes).data, needs_masks=False)
        theirs = load_voc_instances(str(shapes / "VOC2007"), "trainval", list(splits.train.classes))
        ours = [image_dict(image, with_masks=False) for image in splits.train.images]
        assert sum(len(d["annotations"]) for d in ours) > 5
        for found, expected in zip(ours, theirs, strict=True):
            assert (found["file_name"], found["image_id"]) == (expected["file_name"], expected["image_id"])
            boxes = [(a["category_id"], a["bbox"]) for a in found["annotations"]]
            assert boxes == [(a["category_id"], a["bbox"]) for a in expected["annotations"]]


class TestTrainInputs:
    @pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
    def test_what_detectron2s_mapper_makes_of_the_same_random_numbers(self, shapes, coco, mask_format):
        from detectron2.data import DatasetMapper

        from carryover.transfer.tasks.detection.detectron2.data import TrainInputs, image_dict

        cfg = _cfg(_recipe("demo_mask_fpn", shapes, "seed=3"), mask_format)
        images = annotated_images(coco.train)
        mapper = DatasetMapper(cfg, is_train=True)
        for index in range(len(images)):
            found = TrainInputs(images, cfg)[Draw(index, iteration=5, position=2)]
            np.random.seed(np.random.SeedSequence((3, 5, 2)).generate_state(4))  # noqa: NPY002
            expected = mapper(image_dict(images[index], with_masks=True))
            assert torch.equal(found["image"], expected["image"])
            ours, theirs = found["instances"], expected["instances"]
            assert torch.equal(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
            assert torch.equal(ours.gt_classes, theirs.gt_classes)
            assert torch.equal(
                ours.gt_masks.crop_and_resize(ours.gt_boxes.tensor, 14),
                theirs.gt_masks.crop_and_resize(theirs.gt_boxes.tensor, 14),
            )

    def test_a_draw_decides_everything(self, shapes, coco):
        from carryover.transfer.tasks.detection.detectron2.data import TrainInputs

        inputs = TrainInputs(annotated_images(coco.train), _cfg(_recipe("demo_mask_fpn", shapes)))
        draws = [Draw(0, iteration, position) for iteration in range(4) for position in range(4)]
        state = np.random.get_state()[1].copy()  # noqa: NPY002
        once, again = ([inputs[draw]["image"] for draw in draws] for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
        # Two sizes, mirrored or not.
        assert len({image.numpy().tobytes() for image in once}) == 4
        assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002

    def test_crowds_teach_nothing(self, shapes, coco):
        from carryover.transfer.tasks.detection.detectron2.data import TrainInputs

        images = [i for i in annotated_images(coco.train) if i.annotation.iscrowd.any()]
        assert images
        content = TrainInputs(images, _cfg(_recipe("demo_mask_fpn", shapes)))[Draw(0, 0, 0)]
        assert len(content["instances"]) == int((~images[0].annotation.iscrowd).sum())

    def test_run_lengths_make_masks_of_bits(self, coco):
        from carryover.transfer.tasks.detection.detectron2.data import mask_format

        images = annotated_images(coco.train)
        assert mask_format(images) == "polygon"
        image = next(i for i in images if not i.annotation.iscrowd.any())
        masks = tuple(to_rle(m, image.height, image.width) for m in image.annotation.masks)
        coded = replace(image, annotation=replace(image.annotation, masks=masks))
        assert mask_format([*images, coded]) == "bitmask"

    def test_an_object_with_an_empty_mask_is_left_out(self, coco):
        from carryover.transfer.tasks.detection.detectron2.data import image_dict

        image = next(i for i in annotated_images(coco.train) if len(i.annotation) > 1)
        masks = ([], *image.annotation.masks[1:])
        emptied = replace(image, annotation=replace(image.annotation, masks=masks))
        assert len(image_dict(emptied, with_masks=True)["annotations"]) == len(image.annotation) - 1
        assert len(image_dict(emptied, with_masks=False)["annotations"]) == len(image.annotation)

    @pytest.mark.parametrize(("orientation", "size"), [("stored", (64, 128)), ("exif", (128, 64))])
    def test_the_orientation_is_the_data_sets(self, shapes, coco, tmp_path, orientation, size):
        from carryover.transfer.tasks.detection.detectron2.data import TestInputs

        image = coco.test.images[0]
        turned = Image.Exif()
        turned[0x0112] = 6  # "rotate by 90 degrees to see it"
        path = tmp_path / "turned.png"
        Image.open(image.path).crop((0, 0, 128, 64)).save(path, exif=turned)
        height, width = size
        source = replace(image, path=path, width=width, height=height, orientation=orientation)
        found = TestInputs([source], _cfg(_recipe("demo_mask_fpn", shapes)))[0]
        assert found["image"].shape == (3, *size)
        assert (found["height"], found["width"]) == size
        with Image.open(path) as file:
            expected = ImageOps.exif_transpose(file) if orientation == "exif" else file
            assert np.array_equal(found["image"].permute(1, 2, 0).numpy(), np.asarray(expected))
