"""VOC07's linear SVMs on frozen features."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from carryover.configs.files import write_atomic
from carryover.transfer.results.record import Facts, Metric
from carryover.transfer.tasks.base import Outcome, Run
from carryover.transfer.tasks.frozen.task import FrozenDataTask
from carryover.transfer.tasks.svm.config import SvmConfig
from carryover.transfer.tasks.svm.data import VocSplits, read_splits

if TYPE_CHECKING:
    from carryover.core.data.objects.dataset import DetectionDataset
    from carryover.transfer.tasks.frozen.backbone import Frozen
    from carryover.transfer.tasks.svm.model import ClassResult, Split

log = logging.getLogger(__name__)

CLASSES_NAME, LOW_SHOT_NAME = "classes.csv", "low_shot.csv"


class SvmFacts(Facts):
    """What a record tells; each class's cost comes of 3-fold cross-validation on the training split."""

    average_precision: str
    classes: int
    feature_dimensions: int


class Svm(FrozenDataTask[SvmConfig, VocSplits]):
    """One linear SVM a class, and mean AP on the test split (msbreg_supplement 2.4; Goyal et al. 2019)."""

    def prepare(self, config: SvmConfig) -> VocSplits:
        """Read the annotations of both splits."""
        return read_splits(config.data)

    def test(self, run: Run[SvmConfig, VocSplits], model: "Frozen") -> Outcome | None:
        """Train and test the SVMs: features are computed by all ranks together, the first one trains.

        Raises UserError for too few images of a class.
        """
        import numpy as np
        import pandas as pd

        from carryover.transfer.tasks.svm.model import full

        config, out = run.config, run.out
        train, test = _split(run.data.train, model), _split(run.data.test, model)
        if not run.ranks.first:
            return None
        jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        log.info("%d classes, %d costs, %d processes", len(train.classes), len(config.costs), jobs)
        results = full(train, test, config.costs, config.metric, config.seed, jobs)
        write_atomic(out / CLASSES_NAME, pd.DataFrame(results).to_csv(index=False))
        artifacts = {"classes": CLASSES_NAME}
        n = len(test.features)
        metrics = [Metric(name="mAP", value=100 * float(np.mean([r.test_ap for r in results])), n=n)]
        if config.low_shot is not None:
            metrics += _low_shots(config, train, test, results, out, jobs)
            artifacts["low_shot"] = LOW_SHOT_NAME
        return Outcome(
            metrics=metrics,
            train_images=len(train.features),
            backend="scikit-learn",
            facts=SvmFacts(
                average_precision=config.metric,
                classes=len(train.classes),
                feature_dimensions=train.features.shape[1],
            ),
            artifacts=artifacts,
        )


def _low_shots(
    config: SvmConfig, train: "Split", test: "Split", results: "list[ClassResult]", out: Path, jobs: int
) -> list[Metric]:
    import pandas as pd

    from carryover.transfer.tasks.svm.model import low_shot

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
        Metric(name="mAP", params={"positives": int(k)}, value=float(value), n=len(test.features))
        for k, value in zip(by_positives.index.tolist(), by_positives.tolist())
    ]


def _split(dataset: "DetectionDataset", frozen: "Frozen") -> "Split":
    from carryover.transfer.tasks.frozen.depths import POOLED
    from carryover.transfer.tasks.svm.data import as_images
    from carryover.transfer.tasks.svm.model import Split, normalise, presence

    assert isinstance(frozen.config, SvmConfig)
    depth = POOLED if frozen.config.pool is None else f"pool{frozen.config.pool}"
    features = frozen.features(as_images(dataset), depth).by_depth[depth]
    return Split(normalise(features.double().numpy()), presence(dataset), tuple(dataset.classes))
