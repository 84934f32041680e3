"""Predictions on disk, from which any program can compute the scores again."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic_core import from_json

from carryover.configs import UserError
from carryover.configs.files import write_atomic
from carryover.configs.formats import Format
from carryover.configs.garbage import without_garbage_collection
from carryover.transfer.tasks.detection.predictions import ImagePrediction

FILE_NAME = "predictions.json.gz"
FORMAT: Final = Format("predictions file", 2)


def write_predictions(path: Path, predictions: Sequence[ImagePrediction]) -> None:
    """Write predictions as gzipped JSON, atomically: one object per image, exact in float32."""
    images = [
        {
            "image_id": p.image_id,
            "boxes": [_shortest(box) for box in p.boxes],
            "scores": _shortest(p.scores),
            "labels": p.labels.tolist(),
        }
        | ({} if p.masks is None else {"masks": [_text_rle(m) for m in p.masks]})
        for p in predictions
    ]
    # Without a time stamp inside, two equal predictions are equal files.
    text = json.dumps(FORMAT.stamped({"images": images}))
    write_atomic(path, gzip.compress(text.encode(), mtime=0))


@without_garbage_collection()
def read_predictions(path: Path) -> list[ImagePrediction]:
    """Read what `write_predictions` wrote; raises UserError when the file is missing or is none."""
    try:
        plain = from_json(gzip.decompress(path.read_bytes()))
        # Version 1 was the bare list.
        content = FORMAT.current({"images": plain} if isinstance(plain, list) else plain, path)
        return [_prediction(p) for p in content["images"]]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a predictions file of carryover ({error})") from None


def _prediction(plain: dict[str, Any]) -> ImagePrediction:
    masks = plain.get("masks")
    return ImagePrediction(
        image_id=plain["image_id"],
        boxes=np.array(plain["boxes"], dtype=np.float32).reshape(-1, 4),
        scores=np.array(plain["scores"], dtype=np.float32),
        labels=np.array(plain["labels"], dtype=np.int64),
        masks=None if masks is None else tuple({**m, "counts": m["counts"].encode()} for m in masks),
    )


def _shortest(values: np.ndarray) -> list[float]:
    # A float32 has a decimal form of at most nine digits that reads back to it exactly.
    return [float(str(v)) for v in values.astype(np.float32)]


def _text_rle(rle: dict[str, Any]) -> dict[str, Any]:
    counts = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}
