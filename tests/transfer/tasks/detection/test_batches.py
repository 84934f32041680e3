"""Which images make up which step."""

from collections import Counter
from itertools import count, islice

import numpy as np
import pytest

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


def test_ranks_group_wide_and_tall_images_on_their_own():
    is_wide = (np.random.default_rng(1).random(1000) > 0.25).tolist()
    images = [_image(i, wide) for i, wide in enumerate(is_wide)]
    parts = [list(Steps(images, 16, 7, 0, 300, rank, 8)) for rank in range(8)]
    for rank, part in enumerate(parts):
        assert [[d.index for d in step] for step in part] == _grouped(is_wide, 2, 7, rank, 8)[:300]
        assert list(Steps(images, 16, 7, 123, 300, rank, 8)) == part[123:], "resumed"
    steps = [[d for part in of_ranks for d in part] for of_ranks in zip(*parts, strict=True)]
    assert all(sorted(d.position for d in step) == list(range(16)) for step in steps)
    alike = np.mean([len({is_wide[d.index] for d in step}) == 1 for step in steps])
    # By chance alone 0.75^8 of the steps are wide only; one process has steps of one orientation only.
    assert 0.04 < alike < 0.2
    assert all(len({is_wide[d.index] for d in step}) == 1 for step in Steps(images, 16, 7, 0, 300))


def _grouped(is_wide: list[bool], size: int, seed: int, rank: int, world: int) -> list[list[int]]:
    """What Detectron2 does, written out over twenty passes: sample, take this rank's, fill two buckets."""
    passes = [np.random.default_rng([seed, e]).permutation(len(is_wide)) for e in range(20)]
    own = np.concatenate(passes)[rank::world].tolist()
    full, wide, tall = [], [], []
    for index in own:
        bucket = wide if is_wide[index] else tall
        bucket.append(index)
        if len(bucket) == size:
            full.append(bucket[:])
            bucket.clear()
    return full


@pytest.mark.detectron2
def test_steps_are_those_of_detectron2s_aspect_ratio_grouping():
    from detectron2.data.common import AspectRatioGroupedDataset

    sizes = [(30, 20), (20, 30), (20, 20)]
    drawn = [sizes[i] for i in np.random.default_rng(2).integers(0, 3, 90)]
    images = [DetectionImage(i, None, *size, _image(0, True).annotation) for i, size in enumerate(drawn)]
    for world in (1, 2, 4):
        for rank in range(world):
            stream = (i for e in count() for i in np.random.default_rng([3, e]).permutation(90).tolist())
            seen = ({"index": i, "width": drawn[i][0], "height": drawn[i][1]} for i in stream)
            theirs = AspectRatioGroupedDataset(islice(seen, rank, None, world), 8 // world)
            expected = [[d["index"] for d in batch] for batch in islice(theirs, 200)]
            ours = Steps(images, 8, 3, 0, 200, rank, world)
            assert [[draw.index for draw in step] for step in ours] == expected


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
