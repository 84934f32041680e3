"""Classes ranked for every test image: top-1 and top-5 accuracy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from carryover.transfer.results.outcomes.base import Counts, Outcomes, metric
from carryover.transfer.results.record import Metric, Setting

TOP = (1, 5)


@dataclass(frozen=True, eq=False)
class Rankings(Outcomes):
    """The best guesses for N images by each of V classifiers, out of C classes.

    Of classes with equal scores, the first in the order of their labels goes first.

    Attributes
    ----------
    classes
        C.
    top
        Which accuracies are reported: top-1, top-5.
    params
        What tells the classifiers' metrics apart, one mapping each: ``{"k": 20, "T": 0.07}``.
    labels
        (N,) int32, the true classes.
    guesses
        (V, N, min(C, 5)) int32, from the best down; -1 where no further class came into question.
    scores
        Of the guesses, float32.
    tied
        (V, N) bool: whether several classes have the best score.
    """

    kind: ClassVar[str] = "rankings"

    classes: int
    top: tuple[int, ...]
    params: tuple[Mapping[str, Setting], ...]
    labels: NDArray[np.int32]
    guesses: NDArray[np.int32]
    scores: NDArray[np.float32]
    tied: NDArray[np.bool_]

    def settings(self) -> dict[str, Any]:
        return {"classes": self.classes, "top": list(self.top), "params": [dict(p) for p in self.params]}

    def arrays(self) -> dict[str, np.ndarray]:
        return {"labels": self.labels, "guesses": self.guesses, "scores": self.scores, "tied": self.tied}

    @classmethod
    def of(cls, ids: tuple[str, ...], settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        names = ("labels", "guesses", "scores", "tied")
        top, params = tuple(settings["top"]), tuple(settings["params"])
        return cls(ids, settings["classes"], top, params, *(arrays[n] for n in names))

    def right(self) -> NDArray[np.bool_]:
        """Return whether an image counts as right, (M, N), for each metric in order."""
        hit = self.guesses == self.labels[:, None]
        return np.stack([of[:, :n].any(axis=1) for of in hit for n in self.top])

    def metrics(self) -> tuple[Metric, ...]:
        named = [(f"top{n}", params) for params in self.params for n in self.top]
        right, n = self.right(), len(self.labels)
        return tuple(
            metric(name, 100.0 * int(of.sum()) / n, n, params) for (name, params), of in zip(named, right)
        )

    def resampled(self, counts: Counts) -> NDArray[np.float64]:
        right = self.right().T.astype(np.float64)
        found: NDArray[np.float64] = 100.0 * (counts @ right) / counts.sum(axis=1, keepdims=True)
        return found

    def by_class(self) -> dict[str, dict[str, float]]:
        """Return the first classifier's top-1 accuracy, where classes are folders of the images."""
        right = self.guesses[0, :, 0] == self.labels
        folders = [{i.split("/")[-2] for i in of if "/" in i} for of in self._ids_of_classes()]
        named = all(len(folder) <= 1 for folder in folders)
        names = [next(iter(f), str(c)) if named else str(c) for c, f in enumerate(folders)]
        of_class = [right[self.labels == c] for c in range(self.classes)]
        return {"top1": {n: 100.0 * float(of.mean()) for n, of in zip(names, of_class) if len(of)}}

    def _ids_of_classes(self) -> list[list[str]]:
        found: list[list[str]] = [[] for _ in range(self.classes)]
        for image_id, label in zip(self.ids, self.labels):
            found[label].append(image_id)
        return found

    def ties(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.tied.sum(axis=1))
