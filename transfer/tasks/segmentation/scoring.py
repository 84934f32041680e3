"""Testing a segmenter of either backend: what it finds in every test image, against the masks."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from carryover.configs.files import write_atomic
from carryover.configs.formats import Format
from carryover.core.data.masks.dataset import SegmentationDataset, SegmentationImage
from carryover.core.training.distributed import Ranks, sum_over_ranks
from carryover.core.training.progress import progress
from carryover.transfer.tasks.pictures import evenly
from carryover.transfer.tasks.segmentation.metrics import confusion, scores
from carryover.transfer.tasks.segmentation.samples import draw_sample
from carryover.transfer.tasks.segmentation.transforms import load_truth

FORMAT = Format("confusion matrix", 2)
CONFUSION_NAME = "confusion.json"
SAMPLES_NAME = "samples"

Segment = Callable[[SegmentationImage], np.ndarray]
"""Gives the (height, width) labels that a trained segmenter finds in an image."""


def test(dataset: SegmentationDataset, segment: Segment, ranks: Ranks, out: Path, samples: int) -> np.ndarray:
    """Return the confusion matrix (C, C) of a whole split; every rank segments its share of it.

    Leaves `samples` painted images in `out`/samples, and the matrix with every class's IoU in
    `out`/confusion.json.
    """
    classes = len(dataset.classes)
    matrix = np.zeros((classes, classes), dtype=np.int64)
    drawn = frozenset(evenly(len(dataset.images), samples))
    mine = range(ranks.rank, len(dataset.images), ranks.world)
    with progress(f"test on {dataset.name}", len(mine)) as bar:
        for index in mine:
            source = dataset.images[index]
            found, truth = segment(source), load_truth(source, dataset.code)
            matrix += confusion(truth, found, classes)
            if index in drawn:
                draw_sample(source, found, truth, out / SAMPLES_NAME)
            bar.advance(1)
    total = sum_over_ranks(torch.from_numpy(matrix).to(ranks.device)).cpu().numpy()
    if ranks.first:
        _write(out / CONFUSION_NAME, dataset, total)
    return total


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
