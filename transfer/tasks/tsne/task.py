"""A t-SNE picture of test features."""

from pathlib import Path
from typing import TYPE_CHECKING

from carryover.configs import UserError
from carryover.configs.files import atomic_file, write_atomic
from carryover.core.data.called import called
from carryover.core.data.labelled.images import LabeledImages
from carryover.transfer.results.record import Facts, Metric
from carryover.transfer.tasks.base import Outcome, Run
from carryover.transfer.tasks.frozen.task import FrozenTask
from carryover.transfer.tasks.tsne.config import TsneConfig

if TYPE_CHECKING:
    import pandas as pd

    from carryover.transfer.tasks.frozen.backbone import Frozen

PICTURE_NAME, POINTS_NAME = "tsne.png", "tsne.csv"


class TsneFacts(Facts):
    """Facts in the record of a t-SNE."""

    perplexity: float
    images_shown: int


class Tsne(FrozenTask[TsneConfig]):
    """Test features in two dimensions, drawn by class (sqrtkl Figure 6).

    `out` then holds tsne.png, and tsne.csv with every point's place, class and image. The metric recorded is
    t-SNE's Kullback-Leibler divergence: it says how faithful the picture is, nothing of the features.
    """

    def test(self, run: Run[TsneConfig, LabeledImages], model: "Frozen") -> Outcome:
        """Lay the features out and draw them.

        Raises UserError for a perplexity beyond the number of images shown.
        """
        import numpy as np
        import pandas as pd
        import torch
        from sklearn.manifold import TSNE

        from carryover.core.data.labelled import subsets

        config, data, out = run.config, run.data, run.out
        features = model.features(data.test)
        labels = features.labels.tolist()
        shown = np.arange(len(labels))
        if config.images and config.images < len(labels):
            each = max(1, config.images // len(data.classes))
            shown = subsets.take_per_class(labels, data.classes, each, config.seed)
        if config.perplexity >= len(shown):
            raise UserError(
                f"perplexity: {config.perplexity:g} is no less than the {len(shown)} images shown"
            )
        x = features.pooled[torch.from_numpy(shown)].numpy()
        tsne = TSNE(perplexity=config.perplexity, random_state=config.seed, init="pca")
        places = tsne.fit_transform(x)
        paths = data.test.paths
        points = pd.DataFrame(
            {
                "x": places[:, 0],
                "y": places[:, 1],
                "class": [data.classes[labels[i]] for i in shown],
                "image": [str(paths[int(i)]) if paths is not None else str(i) for i in shown],
            }
        )
        if run.ranks.first:
            write_atomic(out / POINTS_NAME, points.to_csv(index=False))
            title = f"{run.source.metadata.method}, {called(config.data)}"
            _draw(points, data.classes, title, out / PICTURE_NAME)
        divergence = float(tsne.kl_divergence_)
        return Outcome(
            metrics=[
                Metric(name="KL divergence", value=divergence, unit="nats", direction="none", n=len(shown))
            ],
            backend="scikit-learn",
            facts=TsneFacts(perplexity=config.perplexity, images_shown=len(shown)),
            artifacts={"picture": PICTURE_NAME, "points": POINTS_NAME},
        )


def _draw(points: "pd.DataFrame", classes: list[str], title: str, path: Path) -> None:
    from matplotlib.figure import Figure

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
