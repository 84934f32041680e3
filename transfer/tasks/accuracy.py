"""Ranking and counting of predictions over all ranks; of equal scores the first class wins."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from carryover.core.data.datasets import names_of
from carryover.core.data.prepared import Dataset
from carryover.core.training.distributed import joined_rows, sum_over_ranks
from carryover.transfer.results.outcomes.rankings import TOP, Rankings
from carryover.transfer.results.record import Setting


@dataclass(frozen=True)
class Accuracy:
    """Number of `images` whose class is among the 1 and the 5 best guesses."""

    images: int
    top1: int
    top5: int

    @property
    def top1_percent(self) -> float:
        """Share of images whose first guess is right, in %."""
        return 100.0 * self.top1 / self.images

    @property
    def top5_percent(self) -> float:
        """Share of images whose class is among the first five guesses, in %."""
        return 100.0 * self.top5 / self.images


def places(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how many classes come before the true one, (...) int64, for scores (..., C) and labels (...).

    A row with a score that is not a number has its class last.
    """
    labels = labels.unsqueeze(-1)
    own = scores.gather(-1, labels)
    earlier = torch.arange(scores.shape[-1], device=scores.device) < labels
    before = ((scores > own) | ((scores == own) & earlier)).sum(dim=-1)
    return torch.where(scores.isnan().any(dim=-1), scores.shape[-1], before)


def count(predictions: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> list[Accuracy]:
    """Count (scores (B, H, C), labels (B,)) pairs of all ranks, for each of H classifiers."""
    total: Tensor | None = None
    for scores, labels in predictions:
        at = places(scores, labels.unsqueeze(1).expand(scores.shape[:2]))
        found = torch.stack([torch.ones_like(at), *(at < n for n in TOP)], dim=2).sum(dim=0)
        total = found if total is None else total + found
    if total is None:
        raise ValueError("there are no predictions to count")
    return [Accuracy(*map(int, counts)) for counts in sum_over_ranks(total.to(device)).tolist()]


def best_guesses(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best classes (..., k) of scores (..., C), their scores, and whether several are best (...).

    k is 5, or C where there are fewer.
    """
    ranked, guesses = scores.sort(dim=-1, descending=True, stable=True)
    k = min(max(TOP), scores.shape[-1])
    tied = (scores == ranked[..., :1]).sum(dim=-1) > 1
    return guesses[..., :k], ranked[..., :k], tied


def rankings(
    predictions: Iterable[tuple[Tensor, Tensor]],
    images: Dataset,
    params: Sequence[Mapping[str, Setting]] = ({},),
) -> Rankings:
    """Rank the classes for every image.

    Parameters
    ----------
    predictions
        Pairs of scores (B, V, C) float32, of V classifiers, and labels (B,): this rank's images, in order.
        Each rank has a contiguous part, in the order of the ranks.
    images
        All of them, for their names.
    params
        What tells the V classifiers' metrics apart.
    """
    rows = [(*best_guesses(scores.float()), labels) for scores, labels in predictions]
    return from_rows(rows, images, params)


def from_rows(
    rows: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]],
    images: Dataset,
    params: Sequence[Mapping[str, Setting]] = ({},),
    top: tuple[int, ...] = TOP,
) -> Rankings:
    """Join what the ranks have ranked: guesses (B, V, k), scores (B, V, k), ties (B, V) and labels (B,).

    Top-5 is not among the metrics where there are five classes or fewer: it would always be 100 %.
    """
    if len(images.classes) <= max(top):
        top = top[:1]
    columns = zip(*rows) if rows else ([], [], [], [])
    guesses, scores, tied, labels = (joined_rows([part.cpu().numpy() for part in of]) for of in columns)
    return Rankings(
        ids=names_of(images),
        classes=len(images.classes),
        top=top,
        params=tuple(params),
        labels=labels.astype(np.int32),
        guesses=np.ascontiguousarray(guesses.swapaxes(0, 1), dtype=np.int32),
        scores=np.ascontiguousarray(scores.swapaxes(0, 1), dtype=np.float32),
        tied=np.ascontiguousarray(tied.T, dtype=bool),
    )
