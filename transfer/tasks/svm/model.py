"""One linear SVM a class on frozen features: costs by cross-validation, low-shot draws.

The protocol of Goyal et al. 2019 (the FAIR self-supervision benchmark), which msbreg_supplement 2.4 follows.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from carryover.configs import UserError
from carryover.core.data.objects.dataset import DetectionDataset

Floats = NDArray[np.float64]
Presence = NDArray[np.int8]
FOLDS = 3


def presence(dataset: DetectionDataset) -> Presence:
    """Return the classes in every image: (images, classes) of 1 present, 0 difficult objects only, -1 absent.

    This is what VOC's ImageSets/Main/<class>_<split>.txt files say.
    """
    table = np.full((len(dataset.images), len(dataset.classes)), -1, dtype=np.int8)
    for row, image in enumerate(dataset.images):
        for label, difficult in zip(image.annotation.labels, image.annotation.difficult):
            table[row, label] = max(table[row, label], 0 if difficult else 1)
    return table


def normalize(features: Floats) -> Floats:
    """Divide every row by its length (plus 1e-5), as the benchmark does."""
    return features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-5)


@dataclass(frozen=True)
class ClassResult:
    """One class: the cost chosen, its cross-validated AP on trainval, and the test images' scores (N,)."""

    name: str
    cost: float
    validation_ap: float
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class Split:
    """Normalized features (images, D), what the images show, and the classes' names."""

    features: Floats
    presence: Presence
    classes: tuple[str, ...]


def full(train: Split, test: Split, costs: Sequence[float], seed: int, jobs: int) -> list[ClassResult]:
    """Train every class on all of `train` at its best cost, and score the images of `test`.

    The cost is the one with the best mean AP over three folds of `train`; images that show a class only as
    difficult are negatives in training, as in the benchmark's code, and left out of the test.

    Raises UserError for a class with fewer positives than folds, or none in the test split.
    """
    positives = (train.presence == 1).sum(axis=0)
    rare = [f"'{n}' ({p})" for n, p in zip(train.classes, positives) if p < FOLDS]
    if rare:
        raise UserError(
            f"{FOLDS}-fold cross-validation needs {FOLDS} images of every class; too few of {', '.join(rare)}"
        )
    unseen = [f"'{n}'" for n, p in zip(test.classes, (test.presence == 1).sum(axis=0)) if p == 0]
    if unseen:
        raise UserError(
            f"the test split shows nothing of {', '.join(unseen)}: average precision is undefined"
        )
    run = delayed(_one_class)
    return Parallel(n_jobs=jobs)(run(train, test, c, costs, seed) for c in range(len(train.classes)))


def low_shot(
    train: Split, test: Split, costs: Sequence[float], positives: int, draw: int, jobs: int
) -> NDArray[np.float32]:
    """Return the scores (N, C) of the images of `test` by SVMs trained on a draw of few images.

    Every class gets `positives` images that show it and (classes - 1) x positives that do not, difficult
    ones left out. `costs` are per class, chosen elsewhere: the benchmark's own code takes the cost that is
    best on the test split, which is no way to report a result.

    Raises UserError for a class with fewer positives or negatives.
    """
    negatives = (len(train.classes) - 1) * positives
    for sign, needed in ((1, positives), (-1, negatives)):
        there = (train.presence == sign).sum(axis=0)
        short = [f"'{n}' has {t}" for n, t in zip(train.classes, there) if t < needed]
        if short:
            what = "showing" if sign == 1 else "not showing"
            raise UserError(
                f"a draw of {positives} needs {needed} images {what} every class; {', '.join(short)}"
            )
    run = delayed(_one_draw)
    scores = Parallel(n_jobs=jobs)(
        run(train, test, c, cost, positives, negatives, draw) for c, cost in enumerate(costs)
    )
    return np.stack(scores, axis=1)


def _svm(cost: float, seed: int) -> LinearSVC:
    # The benchmark's settings: squared hinge, positives count twice.
    return LinearSVC(
        C=cost, class_weight={1: 2, -1: 1}, dual=True, tol=1e-4, max_iter=2000, random_state=seed
    )


def _fit(svm: LinearSVC, x: Floats, y: Presence) -> LinearSVC:
    with warnings.catch_warnings():
        # 2000 iterations are the protocol's, whether or not the largest costs have converged by then.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return svm.fit(x, y)


def _one_class(train: Split, test: Split, c: int, costs: Sequence[float], seed: int) -> ClassResult:
    y = np.where(train.presence[:, c] == 1, 1, -1).astype(np.int8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        aps = [
            cross_val_score(_svm(k, seed), train.features, y, cv=FOLDS, scoring="average_precision").mean()
            for k in costs
        ]
    best = int(np.argmax(aps))
    svm = _fit(_svm(costs[best], seed), train.features, y)
    return ClassResult(train.classes[c], costs[best], float(aps[best]), _scores(svm, test))


def _one_draw(
    train: Split,
    test: Split,
    c: int,
    cost: float,
    positives: int,
    negatives: int,
    draw: int,
) -> NDArray[np.float32]:
    generator = np.random.default_rng((draw, positives, c))
    rows = np.concatenate(
        [
            generator.choice(np.flatnonzero(train.presence[:, c] == sign), n, replace=False)
            for sign, n in ((1, positives), (-1, negatives))
        ]
    )
    svm = _fit(_svm(cost, draw), train.features[rows], train.presence[rows, c])
    return _scores(svm, test)


def _scores(svm: LinearSVC, test: Split) -> NDArray[np.float32]:
    # As they are written down: the ranking is that of float32.
    scores: NDArray[np.float32] = svm.decision_function(test.features).astype(np.float32)
    return scores
