"""Which object each detection matches: as pycocotools has it, detection by detection."""

import contextlib
import dataclasses
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from carryover.transfer.tasks.detection.coco_columns import columns_of, read_truth
from carryover.transfer.tasks.detection.coco_matching import AREAS, IOUS, coco_outcomes
from carryover.transfer.tasks.detection.predictions import encode_masks
from tests.transfer.tasks.detection.coco_scenes import random_coco, results
from tests.transfer.tasks.detection.voc_scenes import prediction


@pytest.mark.parametrize("iou_type", ("bbox", "segm"))
@pytest.mark.parametrize("seed", range(6))
def test_every_detection_matches_as_in_pycocotools(tmp_path, seed, iou_type):
    file, dataset, predictions = random_coco(tmp_path, seed)
    if seed % 2:
        # Scores that are equal, and every detection twice, so that overlaps are equal as well.
        predictions = [
            dataclasses.replace(
                p,
                boxes=np.repeat(p.boxes, 2, axis=0),
                scores=np.repeat(p.scores, 2).round(1),
                labels=np.repeat(p.labels, 2),
                masks=tuple(m for m in p.masks for _ in range(2)),
            )
            for p in predictions
        ]
    truth = read_truth(file, iou_type)
    found = coco_outcomes(truth, columns_of(truth, predictions, iou_type))
    evaluation = _pycocotools(file, predictions, dataset.category_ids, iou_type)
    numbers = {image_id: number for number, image_id in enumerate(truth.ids)}
    labels = {category_id: label for label, category_id in enumerate(truth.category_ids)}
    compared = matched = ignored = 0
    for cell in evaluation.evalImgs:
        if cell is None:
            continue
        (area,) = np.flatnonzero((cell["aRng"] == AREAS).all(axis=1))
        at = (found.image == numbers[cell["image_id"]]) & (found.label == labels[cell["category_id"]])
        expected_ignored = cell["dtIgnore"].astype(bool)
        expected_true = (cell["dtMatches"] > 0) & ~expected_ignored
        np.testing.assert_array_equal(found.score[at], cell["dtScores"])
        np.testing.assert_array_equal(_bits(found.true[at, area]), expected_true.T)
        np.testing.assert_array_equal(_bits(found.ignored[at, area]), expected_ignored.T)
        there = (found.object_image == numbers[cell["image_id"]]) & (
            found.object_label == labels[cell["category_id"]]
        )
        assert found.objects[there, area].sum() == (np.asarray(cell["gtIgnore"]) == 0).sum()
        compared, matched = compared + at.sum(), matched + expected_true.sum()
        ignored += expected_ignored.sum()
    assert min(compared, matched, ignored) > 100


def test_only_the_best_hundred_of_a_class_in_an_image_are_scored(tmp_path):
    file, _, _ = random_coco(tmp_path, 0)
    truth = read_truth(file, "bbox")
    many = prediction(truth.ids[0], [[0, 0, 5, 5]] * 300, np.linspace(0.1, 0.9, 300), [0, 1, 1] * 100)
    found = coco_outcomes(truth, columns_of(truth, [many], "bbox"))
    assert np.bincount(found.label).tolist() == [100, 100]
    assert found.score[found.label == 1].min() > 0.4


def test_more_masks_than_pycocotools_can_measure_at_once(tmp_path):
    """pycocotools 2.0.11 with numpy 2 refuses the areas of more than 255 masks."""
    file, dataset, predictions = random_coco(tmp_path, 0)
    height, width = dataset.images[0].height, dataset.images[0].width
    mask = np.zeros((1, height, width), dtype=np.uint8)
    mask[0, 3:9, 4:16] = 1
    many = dataclasses.replace(
        predictions[0],
        boxes=np.tile(np.float32([4, 3, 16, 9]), (300, 1)),
        scores=np.full(300, 0.5, dtype=np.float32),
        labels=np.zeros(300, dtype=np.int64),
        masks=encode_masks(mask) * 300,
    )
    assert columns_of(read_truth(file, "segm"), [many], "segm").area.tolist() == [72.0] * 300


def _bits(packed):
    return ((packed[:, None] >> np.arange(len(IOUS))) & 1).astype(bool)


def _pycocotools(file, predictions, category_ids, iou_type):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        evaluation = COCOeval(truth, truth.loadRes(results(predictions, category_ids, iou_type)), iou_type)
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
    return evaluation
