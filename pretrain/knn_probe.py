"""k-NN accuracy on held-out images while training: the cheapest look at what the features are worth."""

import torch
from torch import Tensor, nn

from carryover.configs import UserError
from carryover.core.data.config import SubsetConfig
from carryover.core.data.datasets import subset
from carryover.core.data.prepared import Dataset, EvaluationLoader, build_dataset
from carryover.core.training.device import bf16_autocast
from carryover.pretrain.config import PretrainConfig
from carryover.pretrain.online.probes import knn_accuracy


class KNNProbe:
    """Classifies images of another split by their nearest training images, in the backbone's features."""

    def __init__(self, config: PretrainConfig, training: Dataset, device: torch.device) -> None:
        """Open the images; raises UserError when either split is missing or has no labels."""
        assert config.knn is not None
        self._config, self._knn, self._device = config, config.knn, device
        held_out = config.data.model_copy(update={"split": config.knn.split, "subset": None})
        self._bank, self._queries = (self._some(d) for d in (training, build_dataset(held_out)))
        if self._bank.classes != self._queries.classes:
            raise UserError(f"knn.split {config.knn.split}: its classes are not those of the training images")

    def accuracy(self, backbone: nn.Module) -> float:
        """Return top-1 accuracy in percent: cosine similarity s, votes weighted by exp(s / tau).

        The protocol of NPID (Wu et al. 2018). The backbone is left in training mode, as it was found.
        """
        backbone.eval()
        bank, labels = self._features(backbone, self._bank)
        queries, truth = self._features(backbone, self._queries)
        backbone.train()
        classes = len(self._bank.classes)
        return knn_accuracy(queries, truth, bank, labels, classes, self._knn.k, self._knn.tau)

    def _some(self, dataset: Dataset) -> Dataset:
        if dataset.labels is None:
            raise UserError("knn: the data set has no labels to vote with; set knn: null")
        count = min(self._knn.images, len(dataset))
        return subset(dataset, SubsetConfig(count=count, stratified=True))

    @torch.no_grad()
    def _features(self, backbone: nn.Module, dataset: Dataset) -> tuple[Tensor, Tensor]:
        loader = EvaluationLoader(
            dataset, self._config.augment, self._config.batch_size, 0, 1, self._config.workers, self._device
        )
        features, labels = [], []
        for batch in loader:
            with bf16_autocast(self._device, self._config.precision == "bf16"):
                features.append(backbone(batch.views[0]).float())
            assert batch.label is not None
            labels.append(batch.label)
        return torch.cat(features), torch.cat(labels)
