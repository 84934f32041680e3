"""k-NN evaluation: every test image by its nearest labelled training images; nothing is trained."""

from typing import TYPE_CHECKING

from carryover.configs import UserError
from carryover.core.data.labelled.images import LabelledImages
from carryover.transfer.results.record import Metric
from carryover.transfer.tasks.base import Outcome, Run
from carryover.transfer.tasks.facts import LabelledFacts
from carryover.transfer.tasks.frozen.task import FrozenTask
from carryover.transfer.tasks.knn.config import KnnConfig

if TYPE_CHECKING:
    from carryover.transfer.tasks.frozen.backbone import Frozen


class KnnFacts(LabelledFacts):
    """What a record of k-NN tells."""

    weights: str = "exp(cosine / T)"
    feature_dimensions: int


class Knn(FrozenTask[KnnConfig]):
    """Weighted k-nearest-neighbour classification (Wu et al. 2018), for every k and temperature at once."""

    def test(self, run: Run[KnnConfig, LabelledImages], model: "Frozen") -> Outcome:
        """Classify every test image; over several ranks each classifies a part of them.

        Raises UserError for a k beyond the number of labelled images.
        """
        import numpy as np

        from carryover.core.training.distributed import sum_over_ranks
        from carryover.transfer.tasks.knn.model import Neighbourhood, count_correct

        config, data, ranks = run.config, run.data, run.ranks
        if max(config.k) > len(data.train.indices):
            raise UserError(f"k: {max(config.k)} neighbours of {len(data.train.indices)} labelled images")
        train, test = model.features(data.train.images), model.features(data.test)
        hows = [Neighbourhood(k, t) for k in config.k for t in config.temperatures]
        own = np.array_split(np.arange(len(test.labels)), ranks.world)[ranks.rank]
        mine = slice(int(own[0]), int(own[-1]) + 1) if len(own) else slice(0, 0)
        correct = count_correct(
            test.pooled[mine].to(ranks.device),
            test.labels[mine].to(ranks.device),
            train.pooled.to(ranks.device),
            train.labels.to(ranks.device),
            len(data.classes),
            hows,
        )
        n = len(test.labels)
        top1 = 100.0 * sum_over_ranks(correct)[:, 0].double() / n
        return Outcome(
            metrics=[
                Metric(name="top1", params={"k": how.k, "T": how.temperature}, value=float(value), n=n)
                for how, value in zip(hows, top1)
            ],
            train_images=len(data.train.indices),
            label_fraction=data.label_fraction,
            facts=KnnFacts.of(run, feature_dimensions=train.pooled.shape[1]),
        )
