"""A t-SNE picture of test features: a recipe and a checkpoint in, a picture and a result record out."""

import logging
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from carryover.configs import UserError
from carryover.configs.files import atomic_file, write_atomic
from carryover.core.backbones.source import Source
from carryover.core.data.labelled import subsets
from carryover.core.data.labelled.config import check_data
from carryover.core.data.labelled.splits import open_splits
from carryover.core.formats.claims import Work
from carryover.core.training.distributed import barrier, joined
from carryover.transfer.results.record import Metric, ResultRecord, make_record, write_record
from carryover.transfer.tasks.frozen.backbone import open_frozen
from carryover.transfer.tasks.identity import identify
from carryover.transfer.tasks.outputs import RECIPE_NAME, finished_record
from carryover.transfer.tasks.tsne.config import TsneConfig

log = logging.getLogger(__name__)

PICTURE_NAME, POINTS_NAME = "tsne.png", "tsne.csv"


def evaluate(config: TsneConfig, checkpoint: Path | Source, out: Path) -> ResultRecord:
    """Lay test features out in two dimensions and draw them by class (sqrtkl Figure 6).

    `out` then holds tsne.png, and tsne.csv with every point's place, class and image. The metric recorded is
    t-SNE's Kullback-Leibler divergence: it says how faithful the picture is, nothing of the features.

    Raises UserError for data, a checkpoint or a recipe that cannot work together.
    """
    check_data(config.data)
    frozen = open_frozen(config, checkpoint)
    work = Work(out, config, identify(config, frozen.source))
    if (finished := finished_record(out, work.identity, frozen.source.sha256)) is not None:
        log.info("%s: already drawn, nothing to do", out)
        return finished
    began = time.monotonic()
    with joined() as ranks:
        if ranks.first:
            work.claim()
        barrier()
        splits = open_splits(config.data)
        features = frozen.features(splits.test, out, ranks)
        labels = features.labels.tolist()
        shown = np.arange(len(labels))
        if config.images and config.images < len(labels):
            each = max(1, config.images // len(splits.classes))
            shown = subsets.take_per_class(labels, splits.classes, each, config.seed)
        if config.perplexity >= len(shown):
            raise UserError(
                f"perplexity: {config.perplexity:g} is no less than the {len(shown)} images shown"
            )
        x = features.pooled[torch.from_numpy(shown)].numpy()
        tsne = TSNE(perplexity=config.perplexity, random_state=config.seed, init="pca")
        places = tsne.fit_transform(x)
        paths = splits.test.paths
        points = pd.DataFrame(
            {
                "x": places[:, 0],
                "y": places[:, 1],
                "class": [splits.classes[labels[i]] for i in shown],
                "image": [str(paths[int(i)]) if paths is not None else str(i) for i in shown],
            }
        )
        record = make_record(
            recipe=config,
            task="tsne",
            source=frozen.source,
            data_digest=work.identity.parts["data"],
            dataset=config.data.title,
            split=config.data.test_split,
            backend="scikit-learn",
            seed=config.seed,
            metrics=[
                Metric(
                    name="KL divergence",
                    value=float(tsne.kl_divergence_),
                    unit="nats",
                    higher_is_better=False,
                    n=len(shown),
                )
            ],
            wall_seconds=time.monotonic() - began,
            facts={"perplexity": config.perplexity, "images shown": len(shown)},
            artifacts={"recipe": RECIPE_NAME, "picture": PICTURE_NAME, "points": POINTS_NAME},
        )
        if ranks.first:
            write_atomic(out / POINTS_NAME, points.to_csv(index=False))
            _draw(
                points, splits.classes, f"{frozen.metadata.method}, {config.data.title}", out / PICTURE_NAME
            )
            write_record(record, out)
        barrier()
    return record


def _draw(points: pd.DataFrame, classes: list[str], title: str, path: Path) -> None:
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    axes.scatter(
        points["x"],
        points["y"],
        c=[classes.index(name) for name in points["class"]],
        cmap="tab10" if len(classes) <= 10 else "nipy_spectral",
        s=4,
        linewidths=0,
    )
    axes.set(title=title, xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
