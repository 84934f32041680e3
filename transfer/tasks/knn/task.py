"""k-NN evaluation: every test image by its nearest labeled training images; nothing is trained."""

from typing import TYPE_CHECKING

from carryover.configs import UserError
from carryover.core.data.labelled.images import LabeledImages
from carryover.transfer.tasks.base import Outcome, Run
from carryover.transfer.tasks.facts import LabeledFacts
from carryover.transfer.tasks.frozen.task import FrozenTask
from carryover.transfer.tasks.knn.config import KnnConfig

if TYPE_CHECKING:
    from carryover.transfer.tasks.frozen.backbone import Frozen


class KnnFacts(LabeledFacts):
    """Facts in the record of a k-NN evaluation."""

    weights: str = "exp(cosine / T)"
    feature_dimensions: int


class Knn(FrozenTask[KnnConfig]):
    """Weighted k-nearest-neighbor classification (Wu et al. 2018), for every k and temperature at once."""

    def test(self, run: Run[KnnConfig, LabeledImages], model: "Frozen") -> Outcome:
        """Classify every test image; over several ranks each searches its part of the training images.

        Raises UserError for a k beyond the number of labeled images.
        """
        from carryover.core.training.distributed import part_of
        from carryover.transfer.tasks.accuracy import from_rows
        from carryover.transfer.tasks.knn.model import (
            Neighborhood,
            bank_share,
            classify,
            nearest,
            nearest_of_all,
        )

        config, data, ranks = run.config, run.data, run.ranks
        if max(config.k) > len(data.train.indices):
            raise UserError(f"k: {max(config.k)} neighbors of {len(data.train.indices)} labeled images")
        train, test = model.features(data.train.images), model.features(data.test)
        hows = [Neighborhood(k, t) for k in config.k for t in config.temperatures]
        mine = part_of(len(test.labels), ranks.rank, ranks.world)
        labels, most = train.labels.to(ranks.device), max(config.k)
        if ranks.world == 1:
            neighbors = nearest(test.pooled, train.pooled.to(ranks.device), most)
        else:
            share = bank_share(len(train.labels), ranks)
            bank = train.pooled[share].to(ranks.device)
            neighbors = nearest_of_all(test.pooled, bank, share.start, mine, most, ranks)
        truth = test.labels[mine]
        rows = [
            (guesses, votes, tied, truth[at])
            for at, guesses, votes, tied in classify(neighbors, labels, len(data.classes), hows)
        ]
        params = [{"k": how.k, "T": how.temperature} for how in hows]
        return Outcome(
            outcomes=from_rows(rows, data.test, params, top=(1,)),
            train_images=len(data.train.indices),
            label_fraction=data.label_fraction,
            facts=KnnFacts.of(run, feature_dimensions=train.pooled.shape[1]),
        )
