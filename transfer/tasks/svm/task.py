"""VOC07's linear SVMs: a recipe and a checkpoint in, a result record out."""

import logging
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd

from carryover.configs import UserError
from carryover.configs.files import write_atomic
from carryover.core.backbones.source import Source
from carryover.core.data.datasets import FileImages, Paths
from carryover.core.data.objects.dataset import DetectionDataset
from carryover.core.data.objects.voc import VOC_CLASSES, read_voc
from carryover.core.data.prepared import Dataset
from carryover.core.formats.claims import Work
from carryover.core.training.distributed import Ranks, barrier, joined
from carryover.transfer.results.record import (
    RECORD_NAME,
    Metric,
    ResultRecord,
    load_record,
    make_record,
    write_record,
)
from carryover.transfer.tasks.frozen.backbone import Frozen, open_frozen
from carryover.transfer.tasks.identity import identify
from carryover.transfer.tasks.outputs import RECIPE_NAME, finished_record
from carryover.transfer.tasks.svm.config import SvmConfig, VocImages
from carryover.transfer.tasks.svm.model import ClassResult, Split, full, low_shot, normalise, presence

log = logging.getLogger(__name__)

CLASSES_NAME, LOW_SHOT_NAME = "classes.csv", "low_shot.csv"


def evaluate(config: SvmConfig, checkpoint: Path | Source, out: Path) -> ResultRecord:
    """Train one SVM a class on the training split's features and report mean AP on the test split.

    Features come from the store; over several ranks they are computed together, and the first rank trains.

    Raises
    ------
    UserError
        Data, checkpoint or recipe that cannot work together, or too few images of a class.
    WorkError
        Features that are not finite.
    """
    train_set, test_set = _read(config.data)
    frozen = open_frozen(config, checkpoint)
    work = Work(out, config, identify(config, frozen.source))
    if (finished := finished_record(out, work.identity, frozen.source.sha256)) is not None:
        log.info("%s: already evaluated, nothing to do", out)
        return finished
    began = time.monotonic()
    with joined() as ranks:
        if ranks.first:
            work.claim()
        barrier()
        train = _split(train_set, frozen, out, ranks)
        test = _split(test_set, frozen, out, ranks)
        record = None
        if ranks.first:
            record = _measure(work, frozen, train, test, began)
            write_record(record, out)
        barrier()
    return record or load_record(out / RECORD_NAME)


def _measure(work: Work, frozen: Frozen, train: Split, test: Split, began: float) -> ResultRecord:
    config, out = work.recipe, work.out
    assert isinstance(config, SvmConfig)
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    log.info("%d classes, %d costs, %d processes", len(train.classes), len(config.costs), jobs)
    results = full(train, test, config.costs, config.metric, config.seed, jobs)
    write_atomic(out / CLASSES_NAME, pd.DataFrame(results).to_csv(index=False))
    artifacts = {"recipe": RECIPE_NAME, "classes": CLASSES_NAME}
    n = len(test.features)
    metrics = [Metric(name="mAP", value=100 * float(np.mean([r.test_ap for r in results])), n=n)]
    if config.low_shot is not None:
        metrics += _low_shots(config, train, test, results, out, jobs)
        artifacts["low_shot"] = LOW_SHOT_NAME
    return make_record(
        recipe=config,
        task="svm",
        source=frozen.source,
        data_digest=work.identity.parts["data"],
        dataset=config.data.title,
        split=config.data.test,
        backend="scikit-learn",
        seed=config.seed,
        metrics=metrics,
        wall_seconds=time.monotonic() - began,
        train_images=len(train.features),
        facts={
            "average precision": config.metric,
            "costs": "each class's by 3-fold cross-validation on the training split",
            "classes": len(train.classes),
            "feature dimensions": train.features.shape[1],
        },
        artifacts=artifacts,
    )


def _low_shots(
    config: SvmConfig, train: Split, test: Split, results: list[ClassResult], out: Path, jobs: int
) -> list[Metric]:
    assert config.low_shot is not None
    costs = [r.cost for r in results]
    rows = [
        {
            "positives": k,
            "draw": draw,
            "mAP": 100 * low_shot(train, test, costs, k, config.metric, draw, jobs),
        }
        for k in config.low_shot.positives
        for draw in range(config.seed, config.seed + config.low_shot.draws)
    ]
    table = pd.DataFrame(rows)
    write_atomic(out / LOW_SHOT_NAME, table.to_csv(index=False))
    by_positives = table.groupby("positives")["mAP"].mean()
    return [
        Metric(name=f"mAP {k} positives", value=float(value), n=len(test.features))
        for k, value in by_positives.items()
    ]


def _read(data: VocImages) -> tuple[DetectionDataset, DetectionDataset]:
    if data.root is None:
        raise UserError(
            "data.root is not set: say where the VOC data set lies (data.root=/path/to/VOCdevkit)"
        )
    root = data.root.expanduser()
    if not root.is_dir():
        raise UserError(f"data.root: {root}: no such folder")
    classes = data.classes or VOC_CLASSES
    read = []
    for named in (data.train, data.test):
        year, _, split = named.rpartition("/")
        if year and not year.isdecimal():
            raise UserError(f"data: split '{named}' must be year/name (2007/trainval) or a name alone")
        dataset, _ = read_voc(root, [(int(year) if year else None, split)], classes)
        read.append(dataset)
    return read[0], read[1]


def _split(dataset: DetectionDataset, frozen: Frozen, out: Path, ranks: Ranks) -> Split:
    features = frozen.features(_as_images(dataset), out, ranks).pooled
    return Split(normalise(features.double().numpy()), presence(dataset), tuple(dataset.classes))


def _as_images(dataset: DetectionDataset) -> Dataset:
    # Labels of several classes at once are not a class index: only the pixels are wanted here.
    root = dataset.images[0].path.parent
    paths = Paths.of(root, [str(image.path) for image in dataset.images])
    return FileImages(paths, [0] * len(dataset.images), ["image"])
