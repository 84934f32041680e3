"""Numbers that tell how a training fares, cheap enough to take at every step."""

import torch
from torch import Tensor


@torch.no_grad()
def pair_similarities(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine of positive pairs, and of all other pairs, of l2-normalised embeddings (B, d), B >= 2.

    The off-diagonal mean comes from the sums of the embeddings, without a (B, B) matrix.
    """
    count = len(queries)
    positives = (queries * keys).sum()
    everything = queries.sum(0) @ keys.sum(0)
    return positives / count, (everything - positives) / (count * (count - 1))


@torch.no_grad()
def embedding_spread(embeddings: Tensor) -> Tensor:
    """Standard deviation over the batch of l2-normalised embeddings (B, d), in units of 1 / sqrt(d).

    Near 1 when they spread over the sphere, 0 when all are the same: collapse (SimSiam, Figure 2).
    """
    return embeddings.std(dim=0).mean() * embeddings.shape[1] ** 0.5
