"""Test images that are training images too."""

import pytest

from carryover.core.data.leakage import test_in_train


@pytest.fixture
def files(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    return write


def test_the_same_content_under_another_name_is_found(files):
    train = [files("train/a", b"one"), files("train/b", b"two")]
    test = [files("test/x", b"two"), files("test/y", b"six"), files("test/z", b"three")]
    (found,) = test_in_train(train, test, "fatal")
    assert (found.file, found.kind, found.action) == (test[0], "test_in_train", "fatal")
    assert str(train[1]) in found.message


def test_the_first_of_several_training_images_is_named(files):
    train = [files("train/a", b"one"), files("train/b", b"one")]
    (found,) = test_in_train(train, [files("test/x", b"one")], "keep")
    assert str(train[0]) in found.message and found.action == "keep"


def test_the_same_list_twice_is_every_image(files):
    images = [files(f"train/{name}", name.encode()) for name in "abc"]
    assert [d.file for d in test_in_train(images, images, "fatal")] == images


def test_splits_that_share_nothing(files):
    assert test_in_train([files("train/a", b"1")], [files("test/a", b"2")], "fatal") == []
    assert test_in_train([], [files("test/b", b"2")], "fatal") == []
