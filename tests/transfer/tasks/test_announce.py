"""What will be done is said before training, in numbers that are those of the run."""

import re

import pytest

from carryover.configs import load
from carryover.core.data.masks.splits import read_splits as read_mask_splits
from carryover.core.data.objects.splits import read_splits
from carryover.transfer.tasks.detection.announce import announce
from carryover.transfer.tasks.segmentation.announce import announce as announce_segmentation
from tests.transfer.tasks.detection.layouts import write_voc
from tests.transfer.tasks.segmentation.scenes import recipe, write_folders

KEEP = ("data.defects.test_in_train=keep", "data.defects.absent_class=keep")
DOG, CAT = ("dog", (5, 6, 20, 25)), ("cat", (1, 2, 9, 9))


@pytest.fixture
def splits(tmp_path):
    write_voc(tmp_path / "VOC2007", {"a": [DOG, CAT], "b": [DOG, ("dog", (7, 8, 7, 20))]}, "trainval")
    write_voc(tmp_path / "VOC2012", {"c": [CAT]}, "trainval")
    write_voc(tmp_path / "VOC2007", {"d": [DOG]}, "test")

    def read(*more):
        config = load("transfer", "voc0712_c4_24k", [f"data.root={tmp_path}", *more])
        return config, read_splits(config.data, needs_masks=False)

    return read


def test_a_detection_is_announced(splits):
    said = announce(*splits(*KEEP))
    assert "3 images, 4 objects" in said and re.search(r"dog 2, .*", said) and "cat 2" in said
    assert "VOC2007 test: 1 image, 1 object" in said
    assert "16 images a step, rate 0.02, 24,000 iterations\n" in said
    assert "left out: zero_area 1" in said
    assert "short edge 480, 512, " in said and "800 in testing" in said


def test_who_scales_by_hand_is_told_that_it_scales_by_itself(splits):
    habit = ("solver.ims_per_batch=8", "solver.base_lr=0.01", "solver.max_iter=48000", "solver.lr=null")
    said = announce(*splits(*KEEP, *habit))
    assert (
        "8 images a step, rate 0.005, 96,000 iterations (solver.base_lr 0.01 and solver.max_iter 48,000"
        in said
    )
    assert "stated for 16 images a step, and scale with solver.ims_per_batch by themselves" in said


@pytest.mark.parametrize(
    ("metric", "rule"), [("11point", "11-point AP (VOC 2007)"), ("area", "area under the curve")]
)
def test_the_rule_of_the_metric_is_said(splits, metric, rule):
    assert rule in announce(*splits(*KEEP, f"data.metric={metric}"))


def test_a_segmentation_is_announced(tmp_path):
    config = recipe(write_folders(tmp_path))
    said = announce_segmentation(config, read_mask_splits(config.data))
    assert said.count(": 5 images") == 2 and "2 images a step, rate 0.05, 6 iterations" in said
    assert "all test images, over 5 classes" in said and "crops of 48 x 48" in said
