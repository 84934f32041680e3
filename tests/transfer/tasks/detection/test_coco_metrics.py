"""The COCO metric is pycocotools', for boxes and masks, to the last bit."""

import contextlib
import copy
import dataclasses
import io
import json
import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from carryover.configs.errors import UserError, WorkError
from carryover.core.data.objects.coco import read_coco
from carryover.core.data.objects.config import CocoData
from carryover.transfer.tasks.detection.coco_metrics import coco_ap
from carryover.transfer.tasks.detection.metrics import score
from carryover.transfer.tasks.detection.predictions import ImagePrediction, encode_masks
from tests.transfer.tasks.detection.coco_scenes import random_coco, results, uncompressed
from tests.transfer.tasks.detection.layouts import write_coco
from tests.transfer.tasks.detection.voc_scenes import prediction, voc_annotation, voc_dataset

IOU_TYPES = ("bbox", "segm")


def pycocotools_ap(file, predictions, category_ids, iou_type):
    """AP, AP50, AP75, APs, APm, APl and the AP of every class in percent; NaN for pycocotools' -1."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        evaluation = COCOeval(truth, truth.loadRes(results(predictions, category_ids, iou_type)), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    classes = [p[p > -1].mean() if (p > -1).any() else -1 for p in np.moveaxis(precision, 2, 0)]
    numbers = np.array([*evaluation.stats[:6], *classes])
    return np.where(numbers == -1, np.nan, 100 * numbers)


def numbers(result):
    """A result as an array."""
    head = [result.ap, result.ap50, result.ap75, result.aps, result.apm, result.apl]
    return np.array([*head, *result.per_class.values()])


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_pycocotools(tmp_path, seed, iou_type):
    file, dataset, predictions = random_coco(tmp_path, seed)
    expected = pycocotools_ap(file, predictions, dataset.category_ids, iou_type)
    assert expected[0] > 10
    for truth in (file, dataset):
        np.testing.assert_array_equal(numbers(coco_ap(truth, predictions, iou_type)), expected)


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_sizes_and_classes_without_objects_are_undefined(tmp_path, iou_type):
    file, dataset, predictions = random_coco(tmp_path, 0, sizes=("medium",))
    result = coco_ap(dataset, predictions, iou_type)
    assert math.isnan(result.aps) and math.isnan(result.apl)
    assert math.isnan(result.per_class["never seen"])
    expected = pycocotools_ap(file, predictions, dataset.category_ids, iou_type)
    np.testing.assert_array_equal(numbers(result), expected)


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_no_detections_score_zero(tmp_path, iou_type):
    file, dataset, predictions = random_coco(tmp_path, 0)
    empty = [
        dataclasses.replace(p, boxes=p.boxes[:0], scores=p.scores[:0], labels=p.labels[:0], masks=())
        for p in predictions
    ]
    for truth in (file, dataset):
        for nothing in ([], empty):
            result = coco_ap(truth, nothing, iou_type)
            assert (result.ap, result.ap50, result.ap75) == (0, 0, 0)
            assert math.isnan(result.per_class.pop("never seen"))
            assert result.per_class == {"cat": 0, "dog": 0, "person": 0}


def test_nothing_to_find_is_undefined_not_an_error():
    dataset = voc_dataset([voc_annotation([], [])], 1)
    assert math.isnan(coco_ap(dataset, [prediction("000000", [[0, 0, 9, 9]], [1], [0])], "bbox").ap)
    assert math.isnan(coco_ap(dataset, [], "bbox").ap)


def test_detections_of_a_crowd_are_not_false(tmp_path):
    _, dataset, _ = random_coco(tmp_path, 0)
    perfect = [
        prediction(i.id, i.annotation.boxes[keep], np.full(keep.sum(), 0.5), i.annotation.labels[keep])
        for i in dataset.images
        for keep in [~i.annotation.iscrowd]
    ]
    on_crowds = []
    for image, p in zip(dataset.images, perfect, strict=True):
        crowds = image.annotation.boxes[image.annotation.iscrowd]
        labels = image.annotation.labels[image.annotation.iscrowd]
        boxes = np.concatenate([crowds, p.boxes])
        scores = np.concatenate([np.ones(len(crowds)), p.scores])
        on_crowds.append(prediction(image.id, boxes, scores, np.concatenate([labels, p.labels])))
    assert sum(len(p.scores) for p in on_crowds) > sum(len(p.scores) for p in perfect)
    assert coco_ap(dataset, perfect, "bbox").ap == pytest.approx(100)
    assert coco_ap(dataset, on_crowds, "bbox").ap == pytest.approx(100)


def test_scores_a_voc_data_set_by_cocos_rules():
    box = [10, 10, 30, 40]
    dataset = voc_dataset([voc_annotation([box], [0])] * 2, 1)
    result = coco_ap(dataset, [prediction("000001", [box], [1], [0])], "bbox")
    # 51 of the 101 recall levels are reached.
    assert result.ap == pytest.approx(100 * 51 / 101)


def test_annotation_ids_may_start_at_zero(tmp_path):
    file, dataset, predictions = random_coco(tmp_path, 0)
    expected = numbers(coco_ap(dataset, predictions, "bbox"))
    content = json.loads(file.read_text())
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = number
    file.write_text(json.dumps(content))
    np.testing.assert_array_equal(numbers(coco_ap(file, predictions, "bbox")), expected)


def test_refuses_what_cannot_be_scored(tmp_path):
    file, dataset, predictions = random_coco(tmp_path, 0)
    boxes_only = [dataclasses.replace(p, masks=None) for p in predictions]
    with pytest.raises(UserError, match="holds no masks to score"):
        coco_ap(dataset, boxes_only, "segm")
    with pytest.raises(UserError, match=r"image 99: not in .*instances\.json"):
        coco_ap(file, [dataclasses.replace(predictions[0], image_id=99)], "bbox")
    with pytest.raises(WorkError, match="not finite"):
        broken = dataclasses.replace(predictions[1], scores=predictions[1].scores * np.nan)
        coco_ap(dataset, [broken], "bbox")
    with pytest.raises(UserError, match="scenes: its annotations hold no masks"):
        coco_ap(voc_dataset([voc_annotation([[0, 0, 5, 5]], [0])], 1), [], "segm")


def test_an_object_without_a_mask_is_no_object_of_the_metric_of_masks(tmp_path):
    """It ended a finished run with no result: one annotation of the test split with `segmentation: []`."""
    file, _, predictions = random_coco(tmp_path / "whole", 1)
    content = json.loads(file.read_text())
    unmasked = [a for a in content["annotations"] if not a["iscrowd"]][:3]
    boxes = coco_ap(file, predictions, "bbox")
    for spelled in ([], None):
        for annotation in unmasked:
            annotation["segmentation"] = spelled
        if spelled is None:
            del annotation["segmentation"]
        file.write_text(json.dumps(content))
        with_rest = numbers(coco_ap(file, predictions, "segm"))
        # As pycocotools has it when crowds stand over their boxes.
        as_crowds = copy.deepcopy(content)
        for annotation in as_crowds["annotations"]:
            if annotation["id"] in {a["id"] for a in unmasked}:
                x, y, w, h = annotation["bbox"]
                outline = [x, y, x + w, y, x + w, y + h, x, y + h]
                rle = coco_mask.merge(coco_mask.frPyObjects([outline], 120, 160))
                annotation |= {"iscrowd": 1, "segmentation": uncompressed(coco_mask.decode(rle))}
        (tmp_path / "crowds.json").write_text(json.dumps(as_crowds))
        expected = pycocotools_ap(tmp_path / "crowds.json", predictions, (3, 11, 40, 90), "segm")
        np.testing.assert_array_equal(with_rest, expected)
        assert np.array_equal(numbers(coco_ap(file, predictions, "bbox")), numbers(boxes), equal_nan=True)


@pytest.mark.detectron2
@pytest.mark.parametrize("seed", range(2))
def test_agrees_with_detectron2(tmp_path, seed):
    pytest.importorskip(
        "detectron2.evaluation",
        reason="Detectron2 is not importable (install it or put its source on PYTHONPATH)",
    )
    import torch
    from detectron2.data import DatasetCatalog
    from detectron2.data.datasets import register_coco_instances
    from detectron2.evaluation import COCOEvaluator
    from detectron2.structures import Boxes, Instances
    from pycocotools import mask as coco_mask

    file, _, predictions = random_coco(tmp_path, seed)
    name = f"scene_{tmp_path}"
    register_coco_instances(name, {}, str(file), str(tmp_path / "images"))
    DatasetCatalog.get(name)
    evaluator = COCOEvaluator(name, ("bbox", "segm"), distributed=False, use_fast_impl=False)
    evaluator.reset()
    for p in predictions:
        instances = Instances((120, 160))
        instances.pred_boxes = Boxes(torch.from_numpy(p.boxes))
        instances.scores = torch.from_numpy(p.scores)
        instances.pred_classes = torch.from_numpy(p.labels)
        masks = [torch.from_numpy(coco_mask.decode(m)).bool() for m in p.masks]
        instances.pred_masks = torch.stack(masks) if masks else torch.zeros(0, 120, 160, dtype=torch.bool)
        evaluator.process([{"image_id": p.image_id}], [{"instances": instances}])
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = evaluator.evaluate()
    for iou_type in IOU_TYPES:
        expected = [theirs[iou_type][key] for key in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
        ours = numbers(coco_ap(file, predictions, iou_type))[:6]
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


def test_an_object_without_a_mask_counts_for_boxes_alone(tmp_path):
    boxes = np.array([[1, 2, 10, 11], [15, 5, 25, 15]], dtype=np.float32)
    outlines = ([[1, 2, 10, 2, 10, 11, 1, 11]], [])
    annotations = [
        {"image_id": 1, "category_id": 1, "bbox": [x, y, x2 - x, y2 - y], "segmentation": outline}
        for (x, y, x2, y2), outline in zip(boxes.tolist(), outlines, strict=True)
    ]
    file, images = write_coco(tmp_path, annotations, images=1)
    split = {"annotations": file.relative_to(tmp_path), "images": images.relative_to(tmp_path)}
    data = CocoData.model_validate({"kind": "coco", "root": tmp_path, "train": split, "test": split})
    dataset, _ = read_coco(file, images)
    masks = np.zeros((2, 30, 40), dtype=np.uint8)
    for mask, (x, y, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y:y2, x:x2] = 1
    found = ImagePrediction(1, boxes, np.array([0.9, 0.8]), np.zeros(2, dtype=np.int64), encode_masks(masks))
    values = {
        (m.name, m.params.get("of")): m.value for m in score(data, dataset, [found], masks=True).metrics
    }
    assert [values["AP", None], values["AP", "mask"]] == pytest.approx([100, 100])
    # The second box, without the first, finds half of the boxes and none of the masks.
    alone = ImagePrediction(
        1, boxes[1:], np.array([0.9]), np.zeros(1, dtype=np.int64), encode_masks(masks[1:])
    )
    values = {
        (m.name, m.params.get("of")): m.value for m in score(data, dataset, [alone], masks=True).metrics
    }
    assert 0 < values["AP50", None] < 60 and values["AP50", "mask"] == 0
