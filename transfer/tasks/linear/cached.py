"""Linear evaluation on cached features: logistic regression by L-BFGS, its cost chosen on held-out images."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from carryover.core.data.labelled.images import LabeledImages
from carryover.core.data.labelled.subsets import Indices
from carryover.core.training.distributed import Ranks
from carryover.transfer.results.outcomes.rankings import Rankings
from carryover.transfer.tasks.accuracy import Accuracy, count, rankings
from carryover.transfer.tasks.frozen.backbone import Frozen
from carryover.transfer.tasks.frozen.features import FeatureSet
from carryover.transfer.tasks.linear.config import CachedMode
from carryover.transfer.tasks.linear.logistic import Logistic, fit, fit_path

DOUBLE_UP_TO: Final = 1 << 27
"""Numbers of training features (rows x dimensions) up to which a classifier is fitted in float64: 1 GiB."""

# Rows of features in memory at a time.
_CHUNK = 65_536


@dataclass(frozen=True)
class Fitted:
    """The classifier that was chosen, what it says of the test images, and every candidate's accuracy."""

    tested: Rankings
    cost: float
    held_out: Accuracy
    gradient: float
    feature_seconds: float
    fit_seconds: float
    choices: list[dict[str, float | str]]


def fit_and_test(mode: CachedMode, data: LabeledImages, frozen: Frozen) -> Fitted:
    """Choose C on held-out images, fit all labeled ones with it, and test; features are of central crops."""
    began = time.monotonic()
    ranks, classes = frozen.ranks, len(data.classes)
    train, test = frozen.features(data.train.images), frozen.features(data.test)
    extracted = time.monotonic()

    if data.selection is None:
        fit_on, held = data.hold_out(mode.held_out)
        chosen_on = train
    else:
        fit_on, chosen_on = data.train.positions, frozen.features(data.selection)
        held = np.arange(len(chosen_on.labels))
    dtype = torch.float64 if train.pooled.numel() <= DOUBLE_UP_TO else torch.float32
    scale = _Scale.of(train.pooled, fit_on, mode)
    candidates = fit_path(*_rows(train, fit_on, scale, ranks, dtype), classes, mode.costs, mode.tolerance)
    found = [_accuracy(c, *_rows(chosen_on, held, scale, ranks, dtype), ranks) for c in candidates]
    best = max(range(len(found)), key=lambda i: found[i].top1)
    cost = mode.costs[best]

    scale = _Scale.of(train.pooled, data.train.positions, mode)
    rows = _rows(train, data.train.positions, scale, ranks, dtype)
    final = fit(*rows, classes, cost, start=candidates[best], tolerance=mode.tolerance)
    x, y = _rows(test, np.arange(len(test.labels)), scale, ranks, dtype)
    tested = rankings(_predictions(final, x, y), data.test)
    return Fitted(
        tested=tested,
        cost=cost,
        held_out=found[best],
        gradient=final.gradient,
        feature_seconds=extracted - began,
        fit_seconds=time.monotonic() - extracted,
        choices=[{"C": c, "held_out_top1": a.top1_percent} for c, a in zip(mode.costs, found)],
    )


@dataclass(frozen=True)
class _Scale:
    """An affine map of every feature dimension, measured on training images."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, features: Tensor, indices: Indices, mode: CachedMode) -> "_Scale":
        width = features.shape[1]
        if mode.scaling == "none":
            return cls(torch.zeros(width), torch.ones(width))
        # A chunk at a time: the features are a file, which may be larger than memory.
        chunks = torch.from_numpy(indices).split(_CHUNK)
        mean = torch.zeros(width, dtype=torch.float64)
        for chunk in chunks:
            mean += features[chunk].sum(dim=0, dtype=torch.float64) / len(indices)
        variance = torch.zeros(width, dtype=torch.float64)
        for chunk in chunks:
            variance += (features[chunk] - mean).square().sum(dim=0) / len(indices)
        deviation = variance.sqrt().float()
        # A dimension that never changes says nothing; divided by one it stays at zero.
        return cls(mean.float(), torch.where(deviation > 0, deviation, 1.0))


def _rows(
    features: FeatureSet, indices: Indices, scale: _Scale, ranks: Ranks, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return this rank's part of the chosen features, scaled, and of the labels, on its device."""
    own = torch.from_numpy(np.array_split(indices, ranks.world)[ranks.rank])
    x = (features.pooled[own].to(dtype) - scale.mean.to(dtype)) / scale.deviation.to(dtype)
    return x.to(ranks.device), features.labels[own].to(ranks.device)


def _accuracy(classifier: Logistic, x: Tensor, y: Tensor, ranks: Ranks) -> Accuracy:
    return count(_predictions(classifier, x, y), ranks.device)[0]


def _predictions(classifier: Logistic, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    chunks = zip(x.split(_CHUNK), y.split(_CHUNK))
    return ((classifier.logits(a).float().unsqueeze(1), b) for a, b in chunks)
