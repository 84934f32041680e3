"""k-NN evaluation: a recipe and a checkpoint in, a result record out; nothing is trained."""

import logging
import time
from pathlib import Path

import numpy as np

from carryover.configs import UserError
from carryover.core.backbones.source import Source
from carryover.core.data.labelled.config import check_data
from carryover.core.data.labelled.splits import choose_labelled, open_splits
from carryover.core.formats.claims import Work
from carryover.core.training.distributed import barrier, joined, sum_over_ranks
from carryover.transfer.results.record import Metric, ResultRecord, make_record, write_record
from carryover.transfer.tasks.frozen.backbone import open_frozen
from carryover.transfer.tasks.identity import identify
from carryover.transfer.tasks.knn.config import KnnConfig
from carryover.transfer.tasks.knn.model import Neighbourhood, count_correct
from carryover.transfer.tasks.outputs import RECIPE_NAME, finished_record, spread

log = logging.getLogger(__name__)


def evaluate(config: KnnConfig, checkpoint: Path | Source, out: Path) -> ResultRecord:
    """Classify every test image by its nearest labelled training images, for every k and temperature at once.

    Features come from the store. Over several ranks (torchrun) each classifies a part of the test images.

    Raises
    ------
    UserError
        Data, checkpoint or recipe that cannot work together, or k beyond the number of labelled images.
    WorkError
        Features that are not finite.
    """
    check_data(config.data)
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
        splits = open_splits(config.data)
        subset = choose_labelled(config.labels, splits, config.seed)
        if max(config.k) > len(subset.indices):
            raise UserError(f"k: {max(config.k)} neighbours of {len(subset.indices)} labelled images")
        train = frozen.features(subset.images, out, ranks)
        test = frozen.features(splits.test, out, ranks)

        hows = [Neighbourhood(k, t) for k in config.k for t in config.temperatures]
        own = np.array_split(np.arange(len(test.labels)), ranks.world)[ranks.rank]
        mine = slice(int(own[0]), int(own[-1]) + 1) if len(own) else slice(0, 0)
        correct = count_correct(
            test.pooled[mine].to(ranks.device),
            test.labels[mine].to(ranks.device),
            train.pooled.to(ranks.device),
            train.labels.to(ranks.device),
            len(splits.classes),
            hows,
        )
        top1 = 100.0 * sum_over_ranks(correct)[:, 0].double() / len(test.labels)
        record = make_record(
            recipe=config,
            task="knn",
            source=frozen.source,
            data_digest=work.identity.parts["data"],
            dataset=config.data.title,
            split=config.data.test_split,
            backend="carryover",
            seed=config.seed,
            metrics=[
                Metric(name=f"top1 {how.label}", value=float(value), n=len(test.labels))
                for how, value in zip(hows, top1)
            ],
            wall_seconds=time.monotonic() - began,
            train_images=len(subset.indices),
            label_fraction=len(subset.indices) / len(splits.train),
            facts={
                "labels": subset.what,
                "images per class": spread(subset.counts),
                "weights": "exp(cosine / T)",
                "feature dimensions": train.pooled.shape[1],
                "devices": ranks.world,
            },
            artifacts={"recipe": RECIPE_NAME},
        )
        if ranks.first:
            write_record(record, out)
        barrier()
    return record
