"""Numbers that tell how a training fares; taken where it reports, not at every step."""

import torch
from torch import Tensor

from carryover.configs import WorkError

# Below this spread a batch's embeddings are one point, up to what bfloat16 networks add to it.
COLLAPSED = 0.01
# Rows enough for the statistics below, so that their cost does not grow with the batch.
_MOST_ROWS = 512


@torch.no_grad()
def diagnose(queries: Tensor, keys: Tensor | None, gradient: Tensor | None) -> dict[str, Tensor]:
    """Measure l2-normalized embeddings (B, d) of a step, B >= 2.

    `keys` are the embeddings that the queries are pulled to; `gradient` is that of the batch's mean loss in
    the queries. What a method lacks is left out.
    """
    queries = queries.detach()
    few = queries[:_MOST_ROWS]
    numbers = {
        "embedding_spread": embedding_spread(queries),
        "uniformity": uniformity(few),
        "principal_component_ratio": principal_component_ratio(few),
    }
    if keys is not None:
        positive, negative = pair_similarities(queries, keys)
        numbers |= {
            "positive_similarity": positive,
            "negative_similarity": negative,
            "alignment": 2 - 2 * positive,
        }
    if gradient is not None:
        norms = gradient.norm(dim=1) * len(gradient)
        numbers |= {"query_gradient_norm": norms.mean(), "query_gradient_norm_std": norms.std()}
    return numbers


def pair_similarities(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine of positive pairs, and of all other pairs, of l2-normalized embeddings (B, d), B >= 2.

    The off-diagonal mean comes from the sums of the embeddings, without a (B, B) matrix.
    """
    count = len(queries)
    positives = (queries * keys).sum()
    everything = queries.sum(0) @ keys.sum(0)
    return positives / count, (everything - positives) / (count * (count - 1))


def embedding_spread(embeddings: Tensor) -> Tensor:
    """Standard deviation over the batch of l2-normalized embeddings (B, d), in units of 1 / sqrt(d).

    Near 1 when they spread over the sphere, 0 when all are the same: collapse (SimSiam, Figure 2).
    """
    return embeddings.std(dim=0).mean() * embeddings.shape[1] ** 0.5


def uniformity(embeddings: Tensor) -> Tensor:
    """Log of the mean Gaussian potential exp(-2 |x - y|^2) of all pairs (Wang and Isola 2020, t = 2).

    The lower, the more evenly l2-normalized embeddings (B, d) lie on the sphere (msbreg_supplement Table 3).
    """
    squared = torch.pdist(embeddings.float()).square()
    return squared.mul(-2).exp().mean().log()


def principal_component_ratio(embeddings: Tensor, explained: float = 0.9) -> Tensor:
    """Share of the min(B, d) principal components that explains 90 % of the variance of (B, d).

    UniGrad's measure of decorrelation (Figure 2): "we count the number of eigenvalues whose cumulative sum
    first exceeds 90%", here relative to how many there can be.
    """
    centered = (embeddings - embeddings.mean(0)).float()
    gram = centered @ centered.T if len(centered) < centered.shape[1] else centered.T @ centered
    values = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    count = (values.cumsum(0) <= explained * values.sum()).sum() + 1
    return count / len(values)


def refuse_collapse(numbers: dict[str, float], step: int) -> None:
    """Raise WorkError when the embeddings have become one point."""
    spread = numbers.get("embedding_spread")
    if spread is not None and spread < COLLAPSED:
        raise WorkError(
            f"the embeddings have collapsed at step {step}: all images are mapped to one point (spread"
            f" {spread:.4f}, 1 is uniform); stopped, and the last good checkpoint is kept"
        )
