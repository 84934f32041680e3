"""Evidence for each reading on the same images: k-NN, a linear classifier, batch statistics."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from carryover.core.data.config import AugmentConfig, SubsetConfig, TestViewConfig, ViewConfig
from carryover.core.data.datasets import Dataset, subset
from carryover.core.data.labelled.subsets import hold_out
from carryover.core.data.prepared import EvaluationLoader
from carryover.transfer.tasks.accuracy import places
from carryover.transfer.tasks.knn.model import Neighborhood, classify, nearest
from carryover.transfer.tasks.linear.logistic import Logistic, fit, fit_path
from carryover.transfer.verify.config import VerifyConfig
from carryover.transfer.verify.hypotheses import Look
from carryover.transfer.verify.statistics import Mismatch, estimate, watching

log = logging.getLogger(__name__)

Bools = NDArray[np.bool_]
Scores = NDArray[np.float64]
# A looser gradient than an evaluation's: classifiers are compared with each other on the same images.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Images:
    """The images at hand; without labels there is nothing to classify."""

    train: Dataset
    test: Dataset
    labeled: bool

    @property
    def classes(self) -> int:
        """Return how many classes there are."""
        return len(self.train.classes)


@dataclass(frozen=True)
class Evidence:
    """Evidence for one reading.

    Attributes
    ----------
    knn, linear
        Whether each test image was classified rightly, (N,); None without labels.
    mismatch
        Of the running statistics; None for a network without a batch norm.
    """

    knn: Bools | None
    linear: Bools | None
    mismatch: Mismatch | None

    @property
    def scores(self) -> Scores | None:
        """The mean of the two classifiers for every test image: 0, 1/2 or 1."""
        if self.knn is None or self.linear is None:
            return None
        found: Scores = (self.knn.astype(np.float64) + self.linear) / 2
        return found

    @property
    def accuracy(self) -> float | None:
        """The mean score in percent."""
        return None if self.scores is None else 100 * float(self.scores.mean())


Measure = Callable[[Sequence[Look], Images, VerifyConfig, torch.device], list[Evidence]]


def some(dataset: Dataset, count: int, seed: int) -> Dataset:
    """Return at most `count` images, class by class alike where they have labels."""
    wanted = min(count, len(dataset))
    return subset(dataset, SubsetConfig(count=wanted, seed=seed, stratified=dataset.labels is not None))


def measure(
    looks: Sequence[Look], images: Images, config: VerifyConfig, device: torch.device
) -> list[Evidence]:
    """Measure every reading on the same images, in their order."""
    found: dict[int, Evidence] = {}
    for size in dict.fromkeys(look.size for look in looks):
        of_size = [i for i, look in enumerate(looks) if look.size == size]
        for i, evidence in zip(of_size, _of_size([looks[i] for i in of_size], size, images, config, device)):
            found[i] = evidence
    return [found[i] for i in range(len(looks))]


def batches(images: Dataset, size: int, config: VerifyConfig, device: torch.device) -> Iterator[Tensor]:
    """Yield images (B, 3, size, size) in [0, 1] in their order: their center, resized."""
    resize = size if size < 100 else round(size / 0.875)
    augment = AugmentConfig(
        views="single",
        view=ViewConfig(size=size),
        test=TestViewConfig(resize=resize, size=size),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    for batch in EvaluationLoader(images, augment, config.batch_size, 0, 1, config.workers, device):
        yield batch.views[0]


@torch.no_grad()
def estimated_anew(look: Look, images: Dataset, config: VerifyConfig, device: torch.device) -> None:
    """Estimate the running statistics of a reading's network on these images, in place."""
    look.network.to(device)
    estimate(look.network, (look.shown(x) for x in batches(images, look.size, config, device)))


@torch.inference_mode()
def _of_size(
    looks: Sequence[Look], size: int, images: Images, config: VerifyConfig, device: torch.device
) -> list[Evidence]:
    for look in looks:
        look.network.to(device).eval()
    train: list[list[Tensor]] = [[] for _ in looks]
    if images.labeled:
        for x in batches(images.train, size, config, device):
            for look, own in zip(looks, train):
                own.append(look.network(look.shown(x)).float().flatten(1))
    test: list[list[Tensor]] = [[] for _ in looks]
    seen, wanted = 0, len(images.test) if images.labeled else config.statistics_images
    with ExitStack() as stack:
        watches = [stack.enter_context(watching(look.network, config.statistics_images)) for look in looks]
        for watch in watches:
            watch.on = False
        for x in batches(images.test, size, config, device):
            for look, watch, own in zip(looks, watches, test):
                # Readings share their networks, and with them the hooks.
                watch.on = True
                own.append(look.network(look.shown(x)).float().flatten(1))
                watch.on = False
                watch.counted(len(x))
            seen += len(x)
            if seen >= wanted:
                break
        mismatches = [watch.mismatch() for watch in watches]
    found = []
    for own_train, own_test, mismatch in zip(train, test, mismatches):
        knn, linear = None, None
        if images.labeled:
            knn, linear = _classified(torch.cat(own_train), torch.cat(own_test), images, config)
        found.append(Evidence(knn, linear, mismatch))
    return found


def _classified(train: Tensor, test: Tensor, images: Images, config: VerifyConfig) -> tuple[Bools, Bools]:
    device = train.device
    labels = torch.tensor(images.train.labels, device=device)
    truth = torch.tensor(images.test.labels, device=device)
    how = Neighborhood(min(config.k, len(train)), config.temperature)
    right = torch.zeros(len(test), dtype=torch.bool, device=device)
    for rows, guesses, _, _ in classify(nearest(test, train, how.k), labels, images.classes, [how]):
        right[rows] = guesses[:, 0, 0] == truth[rows]
    classifier = _fitted(train, labels, images, config)
    mean, deviation = _scale(train)
    logits = classifier.logits((test - mean) / deviation)
    linear = places(logits, truth) == 0
    return right.cpu().numpy(), linear.cpu().numpy()


def _fitted(train: Tensor, labels: Tensor, images: Images, config: VerifyConfig) -> Logistic:
    mean, deviation = _scale(train)
    # In float64, where it reaches the tolerance (mps has none).
    x = ((train - mean) / deviation).to(torch.float32 if train.device.type == "mps" else torch.float64)
    everything = np.arange(len(train), dtype=np.int64)
    if len(config.costs) == 1:
        return fit(x, labels, images.classes, config.costs[0], tolerance=_TOLERANCE)
    fit_on, held = hold_out(labels.tolist(), images.train.classes, everything, 0.1, config.seed)
    candidates = fit_path(x[fit_on], labels[fit_on], images.classes, config.costs, _TOLERANCE)
    right = [int((places(c.logits(x[held]), labels[held]) == 0).sum()) for c in candidates]
    best = max(range(len(right)), key=right.__getitem__)
    return fit(x, labels, images.classes, config.costs[best], candidates[best], _TOLERANCE)


def _scale(train: Tensor) -> tuple[Tensor, Tensor]:
    deviation = train.std(dim=0, correction=0)
    return train.mean(dim=0), torch.where(deviation > 0, deviation, 1.0)
