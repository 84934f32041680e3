"""Weighted k-nearest-neighbor votes over features, in chunks: never a matrix of all test by train rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize, pad

from carryover.core.training.distributed import Ranks, part_of
from carryover.transfer.tasks.accuracy import best_guesses


@dataclass(frozen=True)
class Neighborhood:
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
        The queries may lie on another device than the bank.
    k
        At most N.
    query_rows, bank_rows
        Chunk sizes, None for those of the device; memory is of the order of query_rows x (bank_rows + k),
        whatever M and N.

    Yields
    ------
    The rows of a chunk of queries, their similarities (m, k) from the largest down, and their indices (m, k).
    """
    tile = _TILE if bank.device.type == "cpu" else _TILE_ON_DEVICE
    query_rows, bank_rows = query_rows or tile[0], bank_rows or tile[1]
    for start in range(0, len(queries), query_rows):
        rows = slice(start, min(start + query_rows, len(queries)))
        query = normalize(queries[rows].to(bank.device).float(), dim=1)
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


def bank_share(rows: int, ranks: Ranks) -> slice:
    """Return the bank's rows that a rank searches: whole tiles, so that its products keep their shape."""
    tiles = part_of(-(-rows // _TILE[1]), ranks.rank, ranks.world)
    return slice(min(rows, tiles.start * _TILE[1]), min(rows, tiles.stop * _TILE[1]))


def nearest_of_all(
    queries: Tensor, share: Tensor, first: int, own: slice, k: int, ranks: Ranks
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """As `nearest`, with the bank shared out among the ranks: every rank holds and searches its rows alone.

    Parameters
    ----------
    queries
        (M, D), the same on every rank.
    share, first
        This rank's rows of the bank (n, D), and the number of the first of them in the whole bank; the ranks'
        shares follow each other.
    own
        The queries whose neighbors this rank wants; every query is exactly one rank's, in the ranks' order.
    k
        At most the rows of the whole bank.

    Yields
    ------
    Rows of `own`, counted from its start; their similarities and indices in the whole bank, as `nearest` has
    them, equal to it bit for bit on a CPU where the shares are those of `bank_share`.
    """
    bounds = [slice(*part.tolist()) for part in _gathered(torch.tensor([own.start, own.stop]), ranks)]
    for rows, similarity, index in nearest(queries, share, min(k, len(share))):
        missing = k - similarity.shape[1]
        similarity = pad(similarity, (0, missing), value=-torch.inf)
        index = pad(index + first, (0, missing))
        wanted = [_overlap(rows, part) for part in bounds]
        sizes = [part.stop - part.start for part in wanted]
        mine = wanted[ranks.rank]
        found, places = (_exchanged(x, sizes, sizes[ranks.rank], ranks) for x in (similarity, index))
        if not sizes[ranks.rank]:
            continue
        # In the order of the ranks, which is the order of the bank: among equals the first rows stay first.
        ranked, order = found.sort(dim=1, descending=True, stable=True)
        yield (
            slice(mine.start - own.start, mine.stop - own.start),
            ranked[:, :k],
            places.gather(1, order[:, :k]),
        )


def _gathered(x: Tensor, ranks: Ranks) -> list[Tensor]:
    everyone = [torch.empty_like(x, device=ranks.device) for _ in range(ranks.world)]
    dist.all_gather(everyone, x.to(ranks.device))
    return [one.cpu() for one in everyone]


def _overlap(rows: slice, part: slice) -> slice:
    start = max(rows.start, part.start)
    return slice(start, max(start, min(rows.stop, part.stop)))


def _exchanged(x: Tensor, sizes: list[int], own: int, ranks: Ranks) -> Tensor:
    """Send every rank its rows of x (sum of sizes, k); return what all have sent, (own, world x k)."""
    k = x.shape[1]
    received = x.new_empty(ranks.world * own * k)
    dist.all_to_all_single(
        received,
        x.contiguous().flatten(),
        output_split_sizes=[own * k] * ranks.world,
        input_split_sizes=[size * k for size in sizes],
    )
    return received.view(ranks.world, own, k).transpose(0, 1).reshape(own, ranks.world * k)


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


def votes(similarity: Tensor, labels: Tensor, classes: int, how: Neighborhood) -> Tensor:
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
    neighbors: Iterator[tuple[slice, Tensor, Tensor]],
    labels: Tensor,
    classes: int,
    hows: Sequence[Neighborhood],
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Rank the classes for every query by its neighbors' votes, for every neighborhood at once.

    Parameters
    ----------
    neighbors
        What `nearest` or `nearest_of_all` yields for the largest k of `hows`.
    labels
        The classes of the bank's rows, (N,).

    Yields
    ------
    The rows of a chunk of queries, and as `accuracy.best_guesses` returns them: the classes with most votes
    (m, len(hows), k), their votes, and whether several have most. A class without a vote is -1.
    """
    for rows, similarity, index in neighbors:
        cast = torch.stack([votes(similarity, labels[index], classes, how) for how in hows], dim=1)
        guesses, most, tied = best_guesses(cast)
        yield rows, guesses.where(most > 0, -1), most, tied
