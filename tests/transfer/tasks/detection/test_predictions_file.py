"""Predictions on disk."""

import numpy as np
import pytest

from carryover.configs import UserError
from carryover.transfer.tasks.detection.predictions import ImagePrediction, encode_masks
from carryover.transfer.tasks.detection.predictions_file import read_predictions, write_predictions


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    masks = encode_masks(rng.integers(0, 2, (3, 9, 7)).astype(np.uint8))
    written = [
        ImagePrediction(
            "000012",
            rng.random((3, 4), np.float32) * 500,
            rng.random(3, np.float32),
            np.array([0, 2, 1]),
            masks,
        ),
        ImagePrediction(7, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)),
    ]
    path = tmp_path / "predictions.json.gz"
    write_predictions(path, written)
    for a, b in zip(written, read_predictions(path), strict=True):
        assert a.image_id == b.image_id
        assert all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("boxes", "scores", "labels"))
        assert a.masks == b.masks


def test_equal_predictions_make_equal_files(tmp_path):
    prediction = [ImagePrediction(1, np.float32([[0.1, 0.2, 3, 4]]), np.float32([0.3]), np.array([0]))]
    for name in ("a", "b"):
        write_predictions(tmp_path / name, prediction)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b half", b"[]"])
def test_something_else_is_refused_by_name(tmp_path, content):
    path = tmp_path / "predictions.json.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"predictions\.json\.gz"):
        read_predictions(path)
