"""Signals of a network in training: k-NN and linear accuracy, RankMe, LiDAR, alignment, uniformity."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from carryover.configs import UserError
from carryover.core.data.config import AugmentConfig
from carryover.core.data.datasets import Dataset
from carryover.core.training.device import bf16_autocast, random_states_kept
from carryover.pretrain.diagnostics import pair_similarities, uniformity
from carryover.pretrain.online.images import Shown, augmented, plain, some
from carryover.pretrain.online.probes import knn_accuracy, linear_accuracy
from carryover.pretrain.online.rank import lidar, rankme
from carryover.pretrain.online_config import OnlineConfig

Numbers = dict[str, float]


@dataclass(frozen=True)
class Signals:
    """Images on which a network is measured, always the same ones.

    Attributes
    ----------
    train, test
        Training images, and held-out ones that are classified by them.
    views
        (n, q, 3, H, W) float16: random views of held-out images.
    classes
        How many there are; 0 without labels: then nothing is classified.
    """

    config: OnlineConfig
    train: Shown
    test: Shown
    views: Tensor
    classes: int

    @classmethod
    def of(
        cls, config: OnlineConfig, training: Dataset, held_out: Dataset | None, augment: AugmentConfig
    ) -> "Signals":
        """Choose the images and make their views; `held_out` None: training images take their place.

        Raises UserError where the classes of the two data sets differ.
        """
        tested = training if held_out is None else held_out
        labeled = training.labels is not None and tested.labels is not None
        if labeled and list(training.classes) != list(tested.classes):
            raise UserError(f"online.split {config.split}: its classes are not those of the training images")
        return cls(
            config,
            plain(some(training, config.train_images), augment),
            plain(some(tested, config.test_images), augment),
            augmented(some(tested, config.lidar_images), augment, config.lidar_views),
            len(training.classes) if labeled and held_out is not None else 0,
        )

    @torch.no_grad()
    def look(self, backbone: nn.Module, head: nn.Module | None = None, bf16: bool = False) -> Numbers:
        """Measure a network; it is left as it was, and no random number is drawn.

        Parameters
        ----------
        backbone
            Turns images (B, 3, H, W) into features (B, D).
        head
            Turns features into embeddings (B, d); None: the features are taken for them.
        bf16
            Whether the networks run under autocast.

        Returns
        -------
        Numbers by name: ``online_knn`` and ``online_linear`` (top-1, %; with labels and a held-out split),
        ``rankme`` and ``lidar`` of embeddings, ``rankme_features`` of features, ``val_alignment`` and
        ``val_uniformity`` of held-out images' embeddings (Wang and Isola 2020).
        """
        device = next(backbone.parameters()).device
        parts = [backbone] if head is None else [backbone, head]
        with _evaluated(parts), random_states_kept({device}), bf16_autocast(device, bf16):
            train, z_train = self._embedded(self.train.chunks(device), backbone, head)
            test, z_test = self._embedded(self.test.chunks(device), backbone, head)
            n, q = self.views.shape[:2]
            flat = Shown(self.views.flatten(0, 1), None)
            _, z = self._embedded(flat.chunks(device), backbone, head)
        numbers: Numbers = {}
        if self.classes:
            assert self.train.labels is not None and self.test.labels is not None
            labels, truth = (x.to(device) for x in (self.train.labels, self.test.labels))
            knn = self.config.k, self.config.tau
            numbers["online_knn"] = knn_accuracy(test, truth, train, labels, self.classes, *knn)
            numbers["online_linear"] = linear_accuracy(test, truth, train, labels, self.classes)
        numbers["rankme"] = rankme(torch.cat([z_train, z_test]))
        numbers["rankme_features"] = rankme(torch.cat([train, test]))
        numbers["lidar"] = lidar(z.unflatten(0, (n, q)))
        first, second = (normalize(z.unflatten(0, (n, q))[:, i], dim=1) for i in (0, 1))
        numbers["val_alignment"] = 2 - 2 * float(pair_similarities(first, second)[0])
        numbers["val_uniformity"] = float(uniformity(first))
        return numbers

    def _embedded(
        self, images: Iterator[Tensor], backbone: nn.Module, head: nn.Module | None
    ) -> tuple[Tensor, Tensor]:
        features, embeddings = [], []
        for x in images:
            found = backbone(x)
            features.append(found.float().flatten(1))
            embeddings.append((found if head is None else head(found)).float().flatten(1))
        return torch.cat(features), torch.cat(embeddings)


@contextmanager
def _evaluated(parts: list[nn.Module]) -> Iterator[None]:
    """Put modules into evaluation mode while the block lasts; every module's own mode comes back."""
    modes = [(module, module.training) for part in parts for module in part.modules()]
    try:
        for part in parts:
            part.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
