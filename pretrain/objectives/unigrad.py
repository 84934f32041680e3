"""UniGrad: pull a view to its target, push it away from the directions all views already use.

Source: Tao et al., "Exploring the Equivalence of Siamese Self-Supervised Learning via A Unified Gradient
Framework", Eqs. 14 and 15, section 5.2; the authors' public code for the details the paper leaves open.
Embeddings are l2-normalized throughout. The correlation matrix F is formed from the momentum embeddings in
the public code and from the online ones in the paper's Algorithm 6: the caller chooses what it passes.
"""

from torch import Tensor

from carryover.pretrain.objectives.precision import at_least_float32


@at_least_float32
def batch_correlation(x: Tensor) -> Tensor:
    """Mean of v v^T over a batch of embeddings (B, d): a constant (d, d) matrix.

    Two views of one batch are averaged by passing them concatenated; ranks with equal batches are averaged
    by averaging the results.
    """
    x = x.detach()
    return x.T @ x / x.shape[0]


def update_correlation(F: Tensor | None, batch: Tensor, rho: float) -> Tensor:
    """Moving average of the correlation matrix (d, d): rho F + (1 - rho) batch.

    It starts from the first batch's value rather than from zero, as the public code does.
    """
    if F is None:
        return batch
    return rho * F + (1 - rho) * batch


@at_least_float32
def unigrad_loss(u1: Tensor, v2: Tensor, F: Tensor, lam: float) -> Tensor:
    """Mean over the batch of -cos(u1, v2) + lam/2 u1^T F u1 (Eq. 15), for one direction.

    u1: (B, d) online embeddings, l2-normalized; v2: (B, d) targets; F: (d, d), symmetric. v2 and F are
    constants, so the gradient in u1 is (-v2 + lam F u1) / B: Eq. 14, the negative term counted once. (The
    literal pseudocode, `(u1 @ F) * u1` without a detach and without the half, counts it twice.) The caller
    symmetrizes over the two views and halves.
    """
    positive = -(u1 * v2.detach()).sum(1)
    negative = ((u1 @ F.detach()) * u1).sum(1)
    return (positive + lam / 2 * negative).mean()


@at_least_float32
def positive_mixture(v: Tensor, partner: Tensor, kept_area: Tensor) -> Tensor:
    """Positive targets of CutMix images: the area mixture of both source images' clean positives.

    v: (B, d) targets of the clean images; partner: (B,) index of the image each patch was cut from;
    kept_area: (B,) share of each image's own pixels, in [0, 1]. Returns (B, d), for `unigrad_loss`'s v2.
    The mixture is not normalized again: section 5.2 mixes the positive *gradients*, and the gradient is
    linear in the target. F comes from clean images only.
    """
    kept = kept_area.to(v.dtype).unsqueeze(1)
    return kept * v + (1 - kept) * v[partner]


def multicrop_positives(targets: tuple[Tensor, Tensor], num_local: int) -> list[Tensor]:
    """Positive target (B, d) of every view: two global views first, then `num_local` local ones.

    A global view's positive is the other global view's target, a local view's the average of both (section
    5.2), not normalized again for the reason given in `positive_mixture`. F comes from globals only.
    """
    first, second = targets
    return [second, first] + [(first + second) / 2] * num_local
