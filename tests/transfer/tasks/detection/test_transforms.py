"""Resizing and mirroring of images with their boxes and masks."""

import numpy as np
import pytest
from PIL import Image

from carryover.configs import WorkError
from carryover.core.data.objects.dataset import Annotation, DetectionImage
from carryover.transfer.tasks.detection.config import InputConfig
from carryover.transfer.tasks.detection.transforms import resize_for_test, resized, train_example


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((640, 480), 800, 1333, (1067, 800)),
        ((480, 640), 800, 1333, (800, 1067)),
        ((1000, 200), 800, 1333, (1333, 267)),  # the long edge decides
        ((500, 375), 480, 1333, (640, 480)),
    ],
)
def test_short_edge_unless_the_long_one_would_be_too_long(size, short, longest, expected):
    assert resized(size, short, longest) == expected


def test_boxes_and_masks_follow_the_image(tmp_path):
    source = _source(tmp_path)
    for seed in range(8):
        example = train_example(source, _input(), True, np.random.default_rng(seed))
        assert example.image.shape == (3, 60, 80)
        x0, y0, x1, y1 = example.target["boxes"][0].round().int().tolist()
        # The box is the white rectangle of the picture, mirrored or not.
        inside = example.image[:, y0 + 2 : y1 - 2, x0 + 2 : x1 - 2]
        assert inside.min() > 200
        assert example.image[:, :, : max(0, x0 - 2)].float().mean() < 20
        mask = example.target["masks"][0]
        assert mask.shape == (30, 40)
        columns = mask.any(dim=0).nonzero().flatten()
        assert (columns[0] * 2, (columns[-1] + 1) * 2) == (x0, x1)


def test_half_of_the_images_are_mirrored(tmp_path):
    source = _source(tmp_path)
    lefts = [
        train_example(source, _input(), False, np.random.default_rng(seed)).target["boxes"][0, 0].item()
        for seed in range(40)
    ]
    assert set(lefts) == {8.0, 52.0}
    assert 10 < lefts.count(8.0) < 30


def test_one_seed_gives_one_example(tmp_path):
    source = _source(tmp_path)
    settings = InputConfig(min_sizes_train=(40, 50, 60), max_size_train=100)
    shapes = set()
    for seed in range(20):
        one, two = (train_example(source, settings, False, np.random.default_rng(seed)) for _ in range(2))
        assert (one.image == two.image).all()
        shapes.add(tuple(one.image.shape[1:]))
    assert shapes == {(40, 53), (50, 67), (60, 80)}


def test_sizes_from_a_range_include_both_ends(tmp_path):
    source = _source(tmp_path)
    settings = InputConfig(min_sizes_train=(40, 42), min_size_sampling="range", max_size_train=100)
    found = {
        train_example(source, settings, False, np.random.default_rng(seed)).image.shape[1]
        for seed in range(40)
    }
    assert found == {40, 41, 42}


def test_crowds_are_no_objects_but_difficult_ones_are(tmp_path):
    source = _source(tmp_path, difficult=[True, False], iscrowd=[False, True])
    example = train_example(source, _input(), False, np.random.default_rng(0))
    assert example.target["labels"].tolist() == [3]


def test_an_object_with_an_empty_mask_is_left_out(tmp_path):
    source = _source(tmp_path, masks=([[4.0, 5.0, 14.0, 5.0, 14.0, 20.0, 4.0, 20.0]], []))
    example = train_example(source, _input(), True, np.random.default_rng(0))
    assert example.target["labels"].tolist() == [3]
    assert len(example.target["masks"]) == 1


def test_test_images_have_the_test_size_and_are_not_mirrored(tmp_path):
    image = resize_for_test(_source(tmp_path), InputConfig(min_size_test=60, max_size_test=70))
    assert image.shape == (3, 53, 70)
    assert image[:, 20:30, 10:20].min() > 200


def test_an_image_that_broke_since_the_check_is_named(tmp_path):
    source = _source(tmp_path)
    source.path.write_bytes(b"not an image")
    with pytest.raises(WorkError, match=r"picture\.png"):
        resize_for_test(source, _input())


def _input() -> InputConfig:
    return InputConfig(min_sizes_train=(60,), max_size_train=100)


def _source(folder, difficult=(False, False), iscrowd=(False, False), masks=None) -> DetectionImage:
    """A white rectangle on black, 40 x 30; a second object lies in the corner."""
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[5:20, 4:14] = 255
    path = folder / "picture.png"
    Image.fromarray(pixels).save(path)
    annotation = Annotation(
        boxes=np.float32([[4, 5, 14, 20], [30, 22, 38, 29]]),
        labels=np.array([2, 0]),
        difficult=np.array(difficult),
        iscrowd=np.array(iscrowd),
        area=np.float32([150, 56]),
        masks=masks
        or (
            [[4.0, 5.0, 14.0, 5.0, 14.0, 20.0, 4.0, 20.0]],
            [[30.0, 22.0, 38.0, 22.0, 38.0, 29.0, 30.0, 29.0]],
        ),
    )
    return DetectionImage("picture", path, 40, 30, annotation)
