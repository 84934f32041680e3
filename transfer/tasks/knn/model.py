"""Weighted k-nearest-neighbour votes over features, in chunks: never a matrix of all test by train rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize


@dataclass(frozen=True)
class Neighbourhood:
    """How many neighbours vote (k), and the temperature of their weights (T)."""

    k: int
    temperature: float

    @property
    def label(self) -> str:
        """The name used in records, for example ``k=200 T=0.07``."""
        return f"k={self.k} T={self.temperature:g}"


def nearest(
    queries: Tensor, bank: Tensor, k: int, query_rows: int = 512, bank_rows: int = 4096
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Find every query's k most similar bank rows by cosine.

    Parameters
    ----------
    queries, bank
        (M, D) and (N, D); rows are normalised here, chunk by chunk, so memory-mapped features may be passed.
    k
        At most N.
    query_rows, bank_rows
        Chunk sizes; memory is of the order of query_rows x (bank_rows + k), whatever M and N.

    Yields
    ------
    The rows of a chunk of queries, their similarities (m, k) from the largest down, and their indices (m, k).
    """
    for start in range(0, len(queries), query_rows):
        rows = slice(start, min(start + query_rows, len(queries)))
        query = normalize(queries[rows].float(), dim=1)
        best = query.new_empty((len(query), 0))
        index = torch.empty((len(query), 0), dtype=torch.int64, device=query.device)
        for offset in range(0, len(bank), bank_rows):
            part = normalize(bank[offset : offset + bank_rows].float(), dim=1)
            similarity, position = (query @ part.T).topk(min(k, len(part)), dim=1)
            merged = torch.cat([best, similarity], dim=1)
            best, kept = merged.topk(min(k, merged.shape[1]), dim=1)
            index = torch.cat([index, position + offset], dim=1).gather(1, kept)
        yield rows, best, index


def votes(similarity: Tensor, labels: Tensor, classes: int, how: Neighbourhood) -> Tensor:
    """Sum exp(s / T) of the k nearest by class: the weighted vote of Wu et al. 2018 (NPID), section 3.4.

    Parameters
    ----------
    similarity, labels
        Cosines (m, at least k) from the largest down, and the neighbours' classes (m, at least k).

    Returns
    -------
    Tensor
        (m, classes), each row up to a positive factor.
    """
    s = similarity[:, : how.k]
    # Relative to the nearest neighbour: the same order of classes, and no overflow at small T.
    weights = ((s - s[:, :1]) / how.temperature).exp().clamp_min(torch.finfo(s.dtype).tiny)
    return s.new_zeros((len(s), classes)).scatter_add_(1, labels[:, : how.k], weights)


def count_correct(
    queries: Tensor,
    query_labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    classes: int,
    hows: Sequence[Neighbourhood],
    top: Sequence[int] = (1, 5),
) -> Tensor:
    """Count queries whose class is among the `top` most voted for, for every neighbourhood at once.

    A class that no neighbour belongs to is never among them, however few classes were voted for.

    Returns
    -------
    Tensor
        int64 (len(hows), len(top)). One search of the largest k serves all of them.
    """
    correct = torch.zeros((len(hows), len(top)), dtype=torch.int64, device=queries.device)
    for rows, similarity, index in nearest(queries, bank, max(h.k for h in hows)):
        neighbours, truth = bank_labels[index], query_labels[rows].unsqueeze(1)
        for i, how in enumerate(hows):
            vote, ranked = votes(similarity, neighbours, classes, how).topk(min(max(top), classes), dim=1)
            hit = (ranked == truth) & (vote > 0)
            correct[i] += torch.stack([hit[:, :n].any(dim=1).sum() for n in top])
    return correct
