"""Formulas of the papers that no method computes as they stand: what the methods' losses are held against."""

from collections.abc import Sequence

import torch
from torch import Tensor

from carryover.pretrain.objectives.contrastive import batch_info_nce
from carryover.pretrain.objectives.unigrad import multicrop_positives, unigrad_loss


def _itself_and_other(num_images: int, device: torch.device) -> Tensor:
    """(2B, 2) indices, in two views laid end to end, of every view itself and of its image's other view."""
    itself = torch.arange(2 * num_images, device=device)
    return torch.stack([itself, itself.roll(num_images)], dim=1)


def simclr_loss(u1: Tensor, u2: Tensor, tau: float) -> Tensor:
    """SimCLR's NT-Xent over both branches, gradients through queries and keys alike (UniGrad Eqs. 19, 20).

    u1, u2: (B, d), the two views of the whole (all-ranks) batch. Every one of the 2B views is a query, its
    negatives the 2B - 2 views of other images; the mean is over 2B queries (N in Eq. 20).
    """
    views = torch.cat([u1, u2])
    return batch_info_nce(views, torch.cat([u2, u1]), views, _itself_and_other(len(u1), u1.device), tau)


def simplified_simclr_loss(u1: Tensor, u2: Tensor, v1: Tensor, v2: Tensor, tau: float) -> Tensor:
    """SimCLR with constant keys: only the query's half of the gradient is kept (UniGrad Eq. 21, Table 2 b).

    u1, u2: (B, d) online views; v1, v2: (B, d) the same views' targets (the momentum encoder's, or u1 and u2
    again for a stop-gradient). The value equals `simclr_loss` where v = u.
    """
    queries, keys = torch.cat([u1, u2]), torch.cat([v1, v2]).detach()
    positives = torch.cat([v2, v1]).detach()
    return batch_info_nce(queries, positives, keys, _itself_and_other(len(u1), u1.device), tau)


def barlow_twins_gradient(u1: Tensor, v2: Tensor, online: Tensor, target: Tensor, lam: float) -> Tensor:
    """2 (-A v2 + lam sum_batch (v2.target / N) online), A = I - (1 - lam) W_diag: (B, d) (Eqs. 9, 32).

    Table 2 (f); N x the gradient of `barlow_twins_loss` in the embeddings, their normalization not included.
    """
    W_diagonal = (online * target).mean(0)
    return 2 * (-(1 - (1 - lam) * W_diagonal) * v2 + lam * (v2 @ target.T) @ online / len(target))


def unigrad_multicrop_loss(
    views: Sequence[Tensor], targets: tuple[Tensor, Tensor], F: Tensor, lam: float
) -> Tensor:
    """UniGrad over two global and any number of local views, averaged over views.

    views: online embeddings (B, d), the two global views first; targets: the two global views' targets. With
    no local view this is the symmetrised and halved two-view loss. The paper does not say how views are
    weighted; every view counts the same here.
    """
    positives = multicrop_positives(targets, len(views) - 2)
    losses = [unigrad_loss(view, positive, F, lam) for view, positive in zip(views, positives, strict=True)]
    return torch.stack(losses).mean()
