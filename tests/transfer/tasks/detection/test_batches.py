"""Which images make up which step."""

from collections import Counter
from itertools import islice

import numpy as np

from carryover.core.data.objects.dataset import Annotation, DetectionDataset, DetectionImage
from carryover.core.data.steps import Draw
from carryover.transfer.tasks.detection.data import Steps, annotated_images, batches

WIDE = [True, False, True, True, False, True, False, True, True, False]


def test_steps_hold_images_of_one_shape():
    for step in islice(batches(WIDE, 4, seed=0), 50):
        assert len(step) == 4
        assert len({WIDE[i] for i in step}) == 1


def test_every_image_is_seen_equally_often():
    seen = Counter(i for step in islice(batches(WIDE, 2, seed=0), 500) for i in step)
    assert set(seen) == set(range(10))
    assert max(seen.values()) - min(seen.values()) <= 2


def test_a_batch_larger_than_the_data_set_is_filled_over_passes():
    assert sorted(next(batches([True, True, True], 6, seed=0))) == [0, 0, 1, 1, 2, 2]


def test_order_depends_on_the_seed_alone():
    def first(seed):
        return list(islice(batches(WIDE, 2, seed), 20))

    assert first(0) == first(0)
    assert first(0) != first(1)


def test_a_resumed_run_draws_what_an_uninterrupted_one_draws():
    images = [_image(i, wide) for i, wide in enumerate(WIDE)]
    whole = list(Steps(images, 2, 7, 0, 12))
    assert list(Steps(images, 2, 7, 5, 12)) == whole[5:]
    assert whole[5][1] == Draw(whole[5][1].index, 5, 1)


def test_ranks_share_every_step():
    images = [_image(i, wide) for i, wide in enumerate(WIDE)]
    whole = list(Steps(images, 4, 7, 0, 6))
    parts = [list(Steps(images, 4, 7, 0, 6, rank, 2)) for rank in range(2)]
    for step, one, two in zip(whole, *parts, strict=True):
        assert sorted([*one, *two], key=lambda d: d.position) == step
        assert len(one) == len(two) == 2


def test_images_with_nothing_but_crowds_are_left_out():
    images = (_image(0, True, crowd=[False]), _image(1, True, crowd=[]), _image(2, True, crowd=[True]))
    dataset = DetectionDataset("d", ("a",), images, "coco")
    assert [i.id for i in annotated_images(dataset)] == [0]


def _image(number, wide, crowd=(False,)) -> DetectionImage:
    n = len(crowd)
    annotation = Annotation(
        np.tile(np.float32([0, 0, 5, 5]), (n, 1)),
        np.zeros(n, int),
        np.zeros(n, bool),
        np.array(crowd, bool),
        np.full(n, 25, np.float32),
    )
    return DetectionImage(number, None, *((20, 10) if wide else (10, 20)), annotation)
