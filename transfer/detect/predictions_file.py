"""Predictions on disk, so that scores can be computed again, by us or by anybody."""

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs import UserError
from transfer.detect.predictions import ImagePrediction

FILE_NAME = "predictions.json.gz"


def write_predictions(path: Path, predictions: Sequence[ImagePrediction]) -> None:
    """Write predictions as gzipped JSON, atomically: one object an image, exact in float32."""
    plain = [
        {
            "image_id": p.image_id,
            "boxes": [_shortest(box) for box in p.boxes],
            "scores": _shortest(p.scores),
            "labels": p.labels.tolist(),
        }
        | ({} if p.masks is None else {"masks": [_text_rle(m) for m in p.masks]})
        for p in predictions
    ]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # Without a time stamp inside, two equal predictions are equal files.
    with temporary.open("wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
        packed.write(json.dumps(plain).encode())
    temporary.replace(path)


def read_predictions(path: Path) -> list[ImagePrediction]:
    """Read what `write_predictions` wrote; raises UserError when the file is missing or is none."""
    try:
        plain = json.loads(gzip.decompress(path.read_bytes()))
        return [_prediction(p) for p in plain]
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
