"""Testing a segmenter of either backend: what it finds in every test image, against the masks."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from carryover.configs.files import write_atomic
from carryover.configs.formats import Format
from carryover.core.data.masks.dataset import SegmentationDataset, SegmentationImage
from carryover.core.training.distributed import Ranks, joined_rows
from carryover.core.training.progress import progress
from carryover.transfer.results.outcomes.pixels import Pixels, scores
from carryover.transfer.tasks.pictures import evenly
from carryover.transfer.tasks.segmentation.metrics import confusion
from carryover.transfer.tasks.segmentation.samples import draw_sample
from carryover.transfer.tasks.segmentation.transforms import load_truth

FORMAT = Format("confusion matrix", 2)
CONFUSION_NAME = "confusion.json"
SAMPLES_NAME = "samples"

Segment = Callable[[SegmentationImage], np.ndarray]
"""Gives the (height, width) labels that a trained segmenter finds in an image."""


def test(dataset: SegmentationDataset, segment: Segment, ranks: Ranks, out: Path, samples: int) -> Pixels:
    """Return how the pixels of every image of a split are confused; every rank segments its share of them.

    Leaves `samples` painted images in `out`/samples, and the confusion matrix of all images together with
    every class's IoU in `out`/confusion.json.
    """
    drawn = frozenset(evenly(len(dataset.images), samples))
    outcomes = confused(dataset, segment, ranks, out / SAMPLES_NAME, drawn)
    if ranks.first:
        _write(out / CONFUSION_NAME, dataset, outcomes.matrix())
    return outcomes


def confused(
    dataset: SegmentationDataset,
    segment: Segment,
    ranks: Ranks,
    samples: Path | None = None,
    drawn: frozenset[int] = frozenset(),
) -> Pixels:
    """Return how the pixels of every image are confused; images numbered in `drawn` are painted in `samples`.

    Every rank segments its share of them.
    """
    classes = len(dataset.classes)
    mine = range(ranks.rank, len(dataset.images), ranks.world)
    entries = []
    with progress(f"test on {dataset.name}", len(mine)) as bar:
        for index in mine:
            source = dataset.images[index]
            found, truth = segment(source), load_truth(source, dataset.code)
            label, prediction, pixels = confusion(truth, found, classes)
            entries.append(np.stack([np.full_like(label, index), label, prediction, pixels]))
            if samples is not None and index in drawn:
                draw_sample(source, found, truth, samples)
            bar.advance(1)
    image, label, prediction, pixels = joined_rows([of.T for of in entries]).T
    order = np.argsort(image, kind="stable")
    return Pixels(
        ids=tuple(image.id for image in dataset.images),
        names=dataset.classes,
        image=image[order].astype(np.int32),
        label=label[order].astype(np.uint8),
        prediction=prediction[order].astype(np.uint8),
        pixels=pixels[order],
    )


def _write(path: Path, dataset: SegmentationDataset, matrix: np.ndarray) -> None:
    found = scores(matrix)
    plain = {
        "split": dataset.name,
        "classes": list(dataset.classes),
        "iou": [None if np.isnan(v) else round(float(v), 4) for v in found.iou],
        "accuracy": [None if np.isnan(v) else round(float(v), 4) for v in found.accuracy],
        "pixels by label and prediction": matrix.tolist(),
    }
    write_atomic(path, json.dumps(FORMAT.stamped(plain)) + "\n")
