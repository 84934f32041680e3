"""Contrastive objectives: InfoNCE with the EqCo margin, and the losses of SiMo, MoCo and SimCLR.

Sources: Zhu et al., "EqCo: Equivalent Rules for Self-supervised Contrastive Learning" (cited as EqCo);
Tao et al., "Exploring the Equivalence of Siamese Self-Supervised Learning via A Unified Gradient Framework"
(cited as UniGrad). Embeddings are l2-normalized throughout, so that a dot product is a cosine.
"""

import math

import torch
from torch import Generator, Tensor

from carryover.configs.errors import UserError
from carryover.pretrain.objectives.precision import at_least_float32


def eqco_margin(alpha: float, K: int, tau: float) -> float:
    """Return the margin m = tau log(alpha / K) that makes K negatives act like alpha of them (EqCo Eq. 5)."""
    return tau * math.log(alpha / K)


def mi_bound(loss: Tensor, alpha: float) -> Tensor:
    """Empirical lower bound log(1 + alpha) - L of the mutual information in nats (EqCo Eq. 4, Figure 1).

    `alpha` is the margin's constant, or K without a margin: K e^(m / tau) either way.
    """
    return math.log1p(alpha) - loss.detach()


def sample_negatives(
    num_queries: int, num_keys: int, own: Tensor, K: int, generator: Generator | None = None
) -> Tensor:
    """K distinct random keys for each query, its own excluded: (num_queries, K) indices into the keys.

    own: (num_queries,), the index of each query's own key; or (num_queries, E) where E keys are excluded
    (SimCLR: the query itself and its positive). Every admissible set of K keys is equally likely,
    independently for each query (EqCo 2.3 and 3). The draw is made on the generator's device: ranks that must
    agree with a single process draw for the whole batch from one seed and keep their own rows.
    Raises UserError where K is less than 1 or more than the keys left after the exclusion.
    """
    own = own.reshape(num_queries, -1)
    available = num_keys - own.shape[1]
    if not 1 <= K <= available:
        raise UserError(
            f"K = {K} negatives a query were asked for, but of the batch's {num_keys} keys only {available} "
            f"can be a query's negatives: expected 1 <= K <= {available}, or a larger batch."
        )
    device = generator.device if generator is not None else torch.device("cpu")
    score = torch.rand(num_queries, num_keys, generator=generator, device=device)
    score.scatter_(1, own.to(device), -1.0)
    return score.topk(K, dim=1).indices.to(own.device)


def enqueue(queue: Tensor, keys: Tensor, generator: Generator | None = None) -> Tensor:
    """MoCo's queue after a batch: the newest keys at its end, the oldest dropped from its front.

    queue: (K, d); keys: (B, d) of the whole (all-ranks) batch. Where K < B the queue becomes K random keys of
    this batch, so that the next step's negatives are K random keys of the previous batch (EqCo 2.3).
    """
    K = queue.shape[0]
    keys = keys.detach().to(queue.dtype)
    if keys.shape[0] <= K:
        return torch.cat([queue[keys.shape[0] :], keys])
    device = generator.device if generator is not None else torch.device("cpu")
    chosen = torch.randperm(keys.shape[0], generator=generator, device=device)[:K]
    return keys[chosen.to(keys.device)]


@at_least_float32
def info_nce_of_similarities(positive: Tensor, negatives: Tensor, tau: float, margin: float = 0.0) -> Tensor:
    """Mean InfoNCE (EqCo Eq. 1) of cosines: positive (B,), negatives (B, K); -inf leaves a key out."""
    logits = torch.cat([(positive - margin).unsqueeze(1), negatives], dim=1) / tau
    return (logits.logsumexp(dim=1) - logits[:, 0]).mean()


@at_least_float32
def info_nce(query: Tensor, positive: Tensor, negatives: Tensor, tau: float, margin: float = 0.0) -> Tensor:
    """Mean over queries of -log(s0 / (s0 + sum s_i)), s0 = e^((q.k0 - m)/tau), s_i = e^(q.k_i/tau).

    query, positive: (B, d); negatives: (K, d) shared by all queries, or (B, K, d) one set a query. With m = 0
    and a queue of momentum keys this is MoCo. Gradients flow into whatever asks for them. EqCo Eq. 1.
    """
    pattern = "bd,kd->bk" if negatives.ndim == 2 else "bd,bkd->bk"
    similarities = torch.einsum(pattern, query, negatives)
    return info_nce_of_similarities((query * positive).sum(1), similarities, tau, margin)


@at_least_float32
def sampled_info_nce(
    queries: Tensor, positives: Tensor, keys: Tensor, negatives: Tensor, tau: float, margin: float = 0.0
) -> Tensor:
    """InfoNCE with each query's negatives picked from one set of keys: mean over queries.

    queries, positives: (B, d); keys: (M, d); negatives: (B, K) indices from `sample_negatives`. Gradients
    flow into whatever asks for them. SimCLR with K < N (EqCo 2.3) is this, both branches' views the queries
    and the keys.
    """
    similarities = (queries @ keys.T).gather(1, negatives)
    return info_nce_of_similarities((queries * positives).sum(1), similarities, tau, margin)


@at_least_float32
def batch_info_nce(
    queries: Tensor, positives: Tensor, keys: Tensor, excluded: Tensor, tau: float, margin: float = 0.0
) -> Tensor:
    """InfoNCE against all keys of the batch but a query's excluded ones: mean over queries.

    queries, positives: (B, d); keys: (M, d); excluded: (B, E) indices of the keys that are no negatives of
    the query: its positive and itself (UniGrad Eq. 19), or its positive alone (the UniGrad authors' code,
    where a query's own view stays among its negatives). Gradients flow into whatever asks for them.
    """
    similarities = (queries @ keys.T).scatter(1, excluded, -torch.inf)
    return info_nce_of_similarities((queries * positives).sum(1), similarities, tau, margin)


@at_least_float32
def simo_loss(
    queries: Tensor, keys: Tensor, own: Tensor, negatives: Tensor, tau: float, alpha: float
) -> Tensor:
    """SiMo: mean over queries of -log(s0 / (s0 + alpha/K sum s_i)) (EqCo Eqs. 1 and 5, section 3).

    queries: (B, d) online; keys: (M, d) momentum keys of the whole (all-ranks) batch, constants here; own:
    (B,) index of each query's positive key; negatives: (B, K) from `sample_negatives`.
    """
    keys = keys.detach()
    margin = eqco_margin(alpha, negatives.shape[1], tau)
    return sampled_info_nce(queries, keys[own], keys, negatives, tau, margin)
