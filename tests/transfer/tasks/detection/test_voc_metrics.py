"""The VOC metric: equal to the plain loop over detections, and to Detectron2 where that is importable."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carryover.configs.errors import UserError, WorkError
from carryover.transfer.tasks.detection.voc_metrics import COCO_IOUS, _round, voc_ap
from tests.transfer.tasks.detection.voc_oracle import as_written_down, voc_ap_oracle
from tests.transfer.tasks.detection.voc_scenes import prediction, random_scene, voc_annotation, voc_dataset

METRICS = ("11point", "area")
BOX = [10, 10, 30, 40]
ELSEWHERE = [60, 50, 90, 80]


def one_image(detections, scores, objects=(BOX,), difficult=None, metric="area", ious=(0.5,)):
    """AP of one image of one class."""
    dataset = voc_dataset([voc_annotation(objects, [0] * len(objects), difficult)], 1)
    found = [prediction("000000", detections, scores, [0] * len(scores))]
    return voc_ap(dataset, found, metric, ious).ap


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("tied_scores", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_plain_loop(seed, metric, tied_scores):
    dataset, predictions = random_scene(seed, tied_scores=tied_scores)
    expected = voc_ap_oracle(dataset, predictions, metric, COCO_IOUS)
    result = voc_ap(dataset, predictions, metric)
    ours = np.array([r.aps for r in result.per_class.values()]).T
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)
    assert np.nanmax(expected) > 10
    np.testing.assert_allclose(
        [result.ap, result.ap50, result.ap75],
        [np.nanmean(expected), np.nanmean(expected[0]), np.nanmean(expected[5])],
        rtol=0,
        atol=1e-9,
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 4),
    classes=st.integers(1, 4),
    objects=st.integers(0, 4),
    detections=st.integers(0, 12),
    difficult=st.sampled_from([0.0, 0.5, 1.0]),
    tied_scores=st.booleans(),
    metric=st.sampled_from(METRICS),
)
def test_equals_the_plain_loop_whatever_the_scene(metric, **scene):
    dataset, predictions = random_scene(**scene)
    ious = (0.5, 0.75)
    ours = voc_ap(dataset, predictions, metric, ious)
    expected = voc_ap_oracle(dataset, predictions, metric, ious)
    aps = np.array([r.aps for r in ours.per_class.values()])
    np.testing.assert_allclose(aps, expected.T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_perfect_detections_score_one_hundred(metric):
    assert one_image([BOX, ELSEWHERE], [0.9, 0.8], [BOX, ELSEWHERE], metric=metric) == pytest.approx(100)


@pytest.mark.parametrize("metric", METRICS)
def test_no_detections_score_zero(metric):
    assert one_image([], [], metric=metric) == 0


def test_images_without_a_prediction_count_as_missed():
    dataset = voc_dataset([voc_annotation([BOX], [0])] * 2, 1)
    assert voc_ap(dataset, [prediction("000001", [BOX], [1], [0])], "area", (0.5,)).ap == pytest.approx(50)
    assert voc_ap(dataset, [], "area", (0.5,)).ap == 0


def test_a_second_detection_of_an_object_is_false():
    # Ranked true, false, true: precision 1 at recall 1/2 and 2/3 at recall 1.
    ap = one_image([BOX, BOX, ELSEWHERE], [0.9, 0.8, 0.7], [BOX, ELSEWHERE])
    assert ap == pytest.approx(100 * (0.5 * 1 + 0.5 * 2 / 3))


def test_difficult_objects_are_neither_found_nor_missed():
    ap = one_image([ELSEWHERE, ELSEWHERE, BOX], [0.9, 0.8, 0.7], [BOX, ELSEWHERE], [False, True])
    assert ap == pytest.approx(100)


def test_an_iou_of_exactly_the_threshold_is_a_miss():
    # 10 x 10 inclusive pixels against their upper half: IoU 0.5.
    assert one_image([[0, 0, 10, 5]], [1], [[0, 0, 10, 10]]) == 0
    assert one_image([[0, 0, 10, 6]], [1], [[0, 0, 10, 10]]) == pytest.approx(100)


def test_a_class_without_objects_is_in_no_mean():
    dataset = voc_dataset([voc_annotation([BOX], [0])], 2)
    found = [prediction("000000", [BOX], [1], [0])]
    for metric in METRICS:
        with_false_alarm = [prediction("000000", [BOX, BOX], [1, 1], [0, 1])]
        for predictions in (found, with_false_alarm):
            result = voc_ap(dataset, predictions, metric)
            assert result.ap == result.ap50 == pytest.approx(100) and result.outcomes.measured() == 1
            assert math.isnan(result.per_class["class1"].ap)
            assert [m.value for m in result.outcomes.metrics()] == [pytest.approx(100)] * 3
    nothing = voc_dataset([voc_annotation([], [])], 2)
    assert math.isnan(voc_ap(nothing, found, "area").ap)
    assert {m.value for m in voc_ap(nothing, found, "area").outcomes.metrics()} == {None}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.floats(0, 4000, width=32) | st.integers(0, 8000).map(lambda n: n / 20), min_size=4, max_size=4
    ),
    st.floats(0, 1, width=32) | st.integers(0, 2000).map(lambda n: n / 2000),
)
def test_rounding_equals_a_trip_through_text(box, score):
    [(text_score, *text_box)] = as_written_down([box], [score])
    shifted = np.float32(box) + np.float32([1, 1, 0, 0])
    assert _round(np.float32([score]), 3).tolist() == [text_score]
    assert _round(shifted, 1).tolist() == text_box


def test_thresholds_other_than_coco_leave_ap50_and_ap75_unknown():
    dataset, predictions = random_scene(0)
    result = voc_ap(dataset, predictions, "11point", (0.3,))
    assert math.isnan(result.ap50) and math.isnan(result.ap75)
    assert result.ap > 0


def test_refuses_predictions_of_another_data_set():
    dataset = voc_dataset([voc_annotation([BOX], [0])], 1)
    good = prediction("000000", [BOX], [1], [0])
    with pytest.raises(UserError, match="'000007'"):
        voc_ap(dataset, [dataclasses.replace(good, image_id="000007")], "area")
    with pytest.raises(UserError, match="image '000000': there are two"):
        voc_ap(dataset, [good, good], "area")
    with pytest.raises(UserError, match=r"labels 3\.\.3, but scenes has 1 classes"):
        voc_ap(dataset, [prediction("000000", [BOX], [1], [3])], "area")
    with pytest.raises(WorkError, match="not finite"):
        voc_ap(dataset, [prediction("000000", [BOX], [math.nan], [0])], "area")
