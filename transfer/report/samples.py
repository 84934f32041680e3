"""Detections to look at: the same test images, side by side for every pretraining."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from carryover.transfer.report.artifacts import artifact
from carryover.transfer.report.collection import Collection, Numbered

_MOST_IMAGES = 2
_MOST_PRETRAININGS = 8
_LONGEST_SIDE = 320
_QUALITY = 82


@dataclass(frozen=True)
class Sample:
    """One picture, inlined."""

    label: str
    alternative: str
    data_uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Strip:
    """One test image under one evaluation, once for each pretraining."""

    caption: str
    image: str
    samples: tuple[Sample, ...]


def sample_strips(collection: Collection) -> list[Strip]:
    """Find images that every pretraining of an evaluation left a sample of, and inline a few of them."""
    strips = []
    for evaluation, caption in collection.captions.items():
        first = {
            pretraining: min(runs, key=lambda r: (r.record.seed, r.number))
            for (pretraining, e), runs in collection.runs.items()
            if e == evaluation
        }
        found = {p: names for p in collection.pretrainings if p in first if (names := _samples(first[p]))}
        shown = dict(list(found.items())[:_MOST_PRETRAININGS])
        if not shown:
            continue
        common = set.intersection(*(set(names) for names in shown.values()))
        for image in sorted(common)[:_MOST_IMAGES]:
            samples = [
                sample
                for p, names in shown.items()
                if (sample := _inlined(names[image], collection.labels[p], caption, image)) is not None
            ]
            if samples:
                strips.append(Strip(caption, image, tuple(samples)))
    return strips


def _samples(run: Numbered) -> dict[str, Path]:
    """Return the pictures in the record's directory of samples, by name, and none from outside it."""
    directory = artifact(run, "samples")
    if directory is None or not directory.is_dir():
        return {}
    return {p.stem: p for p in sorted(directory.iterdir()) if p.suffix.lower() in (".png", ".jpg")}


def _inlined(path: Path, label: str, caption: str, image: str) -> Sample | None:
    from PIL import Image, UnidentifiedImageError

    encoded = io.BytesIO()
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return None
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    picture.save(encoded, "WEBP", quality=_QUALITY)
    uri = f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}"
    words = f"What {caption} finds in test image {image} when it starts from: {label}"
    return Sample(label, words, uri, picture.width, picture.height)
