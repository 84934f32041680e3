"""Weighted k-nearest-neighbour votes over features, in chunks: never a matrix of all test by train rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from carryover.transfer.tasks.accuracy import best_guesses


@dataclass(frozen=True)
class Neighbourhood:
    """Number of neighbors that vote (k), and the temperature of their weights (T)."""

    k: int
    temperature: float

    @property
    def label(self) -> str:
        """The name used in records, for example ``k=200 T=0.07``."""
        return f"k={self.k} T={self.temperature:g}"


# Rows of queries and of the bank in one product: on a CPU it stays in the cache, on a GPU it must be large
# enough to outlast the launch of the dozen kernels that follow it, and the wait for the number of ties.
_TILE, _TILE_ON_DEVICE = (512, 4096), (2048, 2**17)


def nearest(
    queries: Tensor, bank: Tensor, k: int, query_rows: int | None = None, bank_rows: int | None = None
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Find every query's k most similar bank rows by cosine; of equal ones the first rows.

    Parameters
    ----------
    queries, bank
        (M, D) and (N, D); rows are normalized here, chunk by chunk, so memory-mapped features may be passed.
    k
        At most N.
    query_rows, bank_rows
        Chunk sizes, None for those of the device; memory is of the order of query_rows x (bank_rows + k),
        whatever M and N.

    Yields
    ------
    The rows of a chunk of queries, their similarities (m, k) from the largest down, and their indices (m, k).
    """
    tile = _TILE if queries.device.type == "cpu" else _TILE_ON_DEVICE
    query_rows, bank_rows = query_rows or tile[0], bank_rows or tile[1]
    for start in range(0, len(queries), query_rows):
        rows = slice(start, min(start + query_rows, len(queries)))
        query = normalize(queries[rows].float(), dim=1)
        best = query.new_empty((len(query), 0))
        index = torch.empty((len(query), 0), dtype=torch.int64, device=query.device)
        for offset in range(0, len(bank), bank_rows):
            part = normalize(bank[offset : offset + bank_rows].float(), dim=1)
            similarity, position = _candidates(query @ part.T, best, k)
            # Rows of the bank stand in their order among equals, and those of earlier parts before them.
            merged, order = torch.cat([best, similarity], dim=1).sort(dim=1, descending=True, stable=True)
            best = merged[:, :k]
            index = torch.cat([index, position + offset], dim=1).gather(1, order[:, :k])
        yield rows, best, index


def _candidates(similarity: Tensor, best: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return what can be among the k largest of each row, (m, n) filled with -inf, and places (m, n).

    `best` (m, k or fewer) are those of earlier parts, from the largest down: what only equals the k-th of
    them comes too late. There are few that exceed it once some parts have been seen.
    """
    most = min(k, similarity.shape[1])
    if best.shape[1] == k:
        row, column = (similarity > best[:, -1:]).nonzero(as_tuple=True)
        end = torch.searchsorted(row, torch.arange(len(best), device=row.device), right=True)
        begin = torch.cat([end.new_zeros(1), end[:-1]])
        widest = int((end - begin).max())
        if widest <= 2 * most:
            at = torch.arange(len(row), device=row.device) - begin[row]
            found = similarity.new_full((len(best), widest), -torch.inf)
            place = column.new_zeros((len(best), widest))
            found[row, at], place[row, at] = similarity[row, column], column
            return found, place
    return largest(similarity, most)


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest of every row (m, n) from the largest down, and their places; of equals the first.

    As a stable sort of everything would, which takes several times as long: only rows in which the k-th
    value occurs among the others as well are sorted.
    """
    found, place = values.topk(k, dim=1)
    beyond = ((values >= found[:, -1:]).sum(dim=1) > k).nonzero().squeeze(1)
    if len(beyond):
        ranked, order = values[beyond].sort(dim=1, descending=True, stable=True)
        found[beyond], place[beyond] = ranked[:, :k], order[:, :k]
    place, order = place.sort(dim=1)
    found, order = found.gather(1, order).sort(dim=1, descending=True, stable=True)
    return found, place.gather(1, order)


def votes(similarity: Tensor, labels: Tensor, classes: int, how: Neighbourhood) -> Tensor:
    """Sum exp(s / T) of the k nearest by class: the weighted vote of Wu et al. 2018 (NPID), section 3.4.

    Parameters
    ----------
    similarity, labels
        Cosines (m, at least k) from the largest down, and the neighbors' classes (m, at least k).

    Returns
    -------
    Tensor
        (m, classes), each row up to a positive factor.
    """
    s = similarity[:, : how.k]
    # Relative to the nearest neighbor: the same order of classes, and no overflow at small T.
    weights = ((s - s[:, :1]) / how.temperature).exp().clamp_min(torch.finfo(s.dtype).tiny)
    return s.new_zeros((len(s), classes)).scatter_add_(1, labels[:, : how.k], weights)


def classify(
    queries: Tensor, bank: Tensor, bank_labels: Tensor, classes: int, hows: Sequence[Neighbourhood]
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Rank the classes for every query by its neighbors' votes, for every neighborhood at once.

    Yields
    ------
    The rows of a chunk of queries, and as `accuracy.best_guesses` returns them: the classes with most votes
    (m, len(hows), k), their votes, and whether several have most. A class without a vote is -1. One search of
    the largest k serves all neighborhoods.
    """
    for rows, similarity, index in nearest(queries, bank, max(h.k for h in hows)):
        neighbours = bank_labels[index]
        cast = torch.stack([votes(similarity, neighbours, classes, how) for how in hows], dim=1)
        guesses, most, tied = best_guesses(cast)
        yield rows, guesses.where(most > 0, -1), most, tied
