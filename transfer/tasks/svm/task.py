"""VOC07's linear SVMs on frozen features."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from carryover.configs.files import write_atomic
from carryover.transfer.results.record import Facts
from carryover.transfer.tasks.base import Outcome, Run
from carryover.transfer.tasks.frozen.task import FrozenDataTask
from carryover.transfer.tasks.svm.config import SvmConfig
from carryover.transfer.tasks.svm.data import VocSplits, read_splits

if TYPE_CHECKING:
    import numpy as np

    from carryover.core.data.objects.dataset import DetectionDataset
    from carryover.transfer.tasks.frozen.backbone import Frozen
    from carryover.transfer.tasks.svm.model import ClassResult, Split

log = logging.getLogger(__name__)

CLASSES_NAME, LOW_SHOT_NAME = "classes.csv", "low_shot.csv"


class SvmFacts(Facts):
    """Facts in the record; each class's cost is chosen by 3-fold cross-validation."""

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

        from carryover.transfer.results.outcomes.class_scores import ClassScores
        from carryover.transfer.tasks.svm.model import full

        config = run.config
        train, test = _split(run.data.train, model), _split(run.data.test, model)
        if not run.ranks.first:
            return None
        jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        log.info("%d classes, %d costs, %d processes", len(train.classes), len(config.costs), jobs)
        results = full(train, test, config.costs, config.seed, jobs)
        draws: list[tuple[int, int]] = []
        scores = [np.stack([r.scores for r in results], axis=1)]
        if config.low_shot is not None:
            draws, few = _low_shots(config, train, test, [r.cost for r in results], jobs)
            scores += few
        outcomes = ClassScores(
            ids=tuple(str(image.id) for image in run.data.test.images),
            rule=config.metric,
            params=({}, *({"positives": k} for k, _ in draws)),
            presence=test.presence,
            scores=np.stack(scores),
        )
        artifacts = _write_tables(run.out, results, draws, outcomes.aps())
        return Outcome(
            outcomes=outcomes,
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
    config: SvmConfig, train: "Split", test: "Split", costs: list[float], jobs: int
) -> "tuple[list[tuple[int, int]], list[np.ndarray]]":
    """Return every (positives, draw), and the scores of its SVMs."""
    from carryover.transfer.tasks.svm.model import low_shot

    few = config.low_shot
    assert few is not None
    draws = [(k, draw) for k in few.positives for draw in range(config.seed, config.seed + few.draws)]
    return draws, [low_shot(train, test, costs, k, draw, jobs) for k, draw in draws]


def _write_tables(
    out: Path, results: "list[ClassResult]", draws: list[tuple[int, int]], aps: "np.ndarray"
) -> dict[str, str]:
    """Write what every class and every draw came to; `aps` (1 + draws, classes) are in percent."""
    import pandas as pd

    classes = [
        {"name": r.name, "cost": r.cost, "validation_ap": r.validation_ap, "test_ap": ap / 100}
        for r, ap in zip(results, aps[0])
    ]
    write_atomic(out / CLASSES_NAME, pd.DataFrame(classes).to_csv(index=False))
    if not draws:
        return {"classes": CLASSES_NAME}
    rows = [{"positives": k, "draw": d, "mAP": own.mean()} for (k, d), own in zip(draws, aps[1:])]
    write_atomic(out / LOW_SHOT_NAME, pd.DataFrame(rows).to_csv(index=False))
    return {"classes": CLASSES_NAME, "low_shot": LOW_SHOT_NAME}


def _split(dataset: "DetectionDataset", frozen: "Frozen") -> "Split":
    from carryover.transfer.tasks.svm.data import as_images
    from carryover.transfer.tasks.svm.model import Split, normalize, presence

    assert isinstance(frozen.config, SvmConfig)
    depth = frozen.config.feature if frozen.config.pool is None else f"pool{frozen.config.pool}"
    features = frozen.features(as_images(dataset), depth).by_depth[depth]
    return Split(normalize(features.double().numpy()), presence(dataset), tuple(dataset.classes))
