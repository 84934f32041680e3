"""One pass over the bank in tiles: every sum over N classes that the instance losses and gradients need.

A B x N matrix of logits never exists. Each query's own class is kept out of the sums and added by the
caller, so that a prediction near one-hot loses nothing to cancellation: there, all that matters is the small
rest. Logits are taken relative to a running maximum, as in online softmax; sums over shards of a bank add up
once they are relative to one maximum.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Queries times rows of the bank in a tile. On a CPU two float32 buffers of this size stay in its cache; on a
# GPU a tile must be large enough to outlast the launch of its dozen kernels.
_TILE_ELEMENTS = {"cpu": 2**20, "cuda": 2**24}


@dataclass(frozen=True)
class ClassSums:
    """Sums over the classes k other than a query's own, with y_k = (s_k - maximum) / 2 and s_k the logit."""

    maximum: Tensor  # (B,) at least every logit, the own class's included
    half: Tensor  # (B,) sum of e^y = sum of sqrt(e^(s - maximum))
    total: Tensor  # (B,) sum of e^2y
    tilt: Tensor  # (B,) sum of e^2y y
    mean: Tensor  # (B, d) sum of e^2y w_k
    tilted_mean: Tensor  # (B, d) sum of e^2y y w_k

    def relative_to(self, maximum: Tensor) -> "ClassSums":
        """Return the same sums relative to another maximum (B,), not below this one's."""
        shift = (self.maximum - maximum) / 2
        root = shift.exp()
        scale = root.square()
        return ClassSums(
            maximum=maximum,
            half=self.half * root,
            total=self.total * scale,
            tilt=(self.tilt + shift * self.total) * scale,
            mean=self.mean * scale.unsqueeze(1),
            tilted_mean=(self.tilted_mean + shift.unsqueeze(1) * self.mean) * scale.unsqueeze(1),
        )


def tile_rows(z: Tensor) -> int:
    """Rows of the bank in one tile for the queries z (B, d)."""
    return max(64, _TILE_ELEMENTS.get(z.device.type, 2**24) // max(len(z), 1))


def class_sums(
    z: Tensor, bank: Tensor, index: Tensor, own_logit: Tensor, tau: float, tile: int | None = None
) -> ClassSums:
    """Sums over the rows of `bank` (n, d) for the queries z (B, d), logits z.w / tau.

    index: (B,) row of each query's own class; any other value where it is not among these rows (a shard's).
    own_logit: (B,) finite start of the running maximum. Sums are accumulated in z's precision; a bank stored
    in another is converted a tile at a time. Memory beyond the result: two tiles of B x `tile`.
    """
    num_queries, width = z.shape
    tile = tile or tile_rows(z)
    scaled = z / (2 * tau)
    # Finite, so that weight zero times the masked own logit is zero and not NaN.
    masked = torch.finfo(z.dtype).min / 4
    maximum = own_logit.to(z.dtype).clone()
    sums = ClassSums(
        maximum=maximum,
        half=torch.zeros_like(maximum),
        total=torch.zeros_like(maximum),
        tilt=torch.zeros_like(maximum),
        mean=z.new_zeros(num_queries, width),
        tilted_mean=z.new_zeros(num_queries, width),
    )
    buffer = z.new_empty(2 * num_queries * min(tile, bank.shape[0]))
    for start in range(0, bank.shape[0], tile):
        rows = bank[start : start + tile].to(z.dtype)
        n = rows.shape[0]
        weights = buffer[: 2 * num_queries * n].view(2 * num_queries, n)
        e, y = weights[:num_queries], weights[num_queries:]
        torch.mm(scaled, rows.T, out=y)
        column = (index - start).clamp(0, n - 1).unsqueeze(1)
        is_own = (column.squeeze(1) == index - start).unsqueeze(1)
        y.scatter_(1, column, torch.where(is_own, masked, y.gather(1, column)))
        sums = sums.relative_to(torch.maximum(sums.maximum, 2 * y.amax(dim=1)))
        y.sub_(sums.maximum.unsqueeze(1), alpha=0.5)
        torch.exp(y, out=e)
        half = e.sum(dim=1)
        e.square_()
        total = e.sum(dim=1)
        y.mul_(e)
        moments = weights @ rows
        sums = ClassSums(
            maximum=sums.maximum,
            half=sums.half + half,
            total=sums.total + total,
            tilt=sums.tilt + y.sum(dim=1),
            mean=sums.mean + moments[:num_queries],
            tilted_mean=sums.tilted_mean + moments[num_queries:],
        )
    return sums
