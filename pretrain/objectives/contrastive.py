"""Contrastive objectives: InfoNCE with the EqCo margin, and the losses of SiMo, MoCo and SimCLR.

Sources: Zhu et al., "EqCo: Equivalent Rules for Self-supervised Contrastive Learning" (cited as EqCo); Tao et
al., "Exploring the Equivalence of Siamese Self-Supervised Learning ..." (cited as UniGrad). Embeddings are
l2-normalised throughout, so that a dot product is a cosine.
"""

import math

import torch
from torch import Generator, Tensor

from configs.errors import UserError
from pretrain.objectives.precision import at_least_float32


def eqco_margin(alpha: float, K: int, tau: float) -> float:
    """The margin m = tau log(alpha / K) that makes K negatives act like alpha of them (EqCo Eq. 5)."""
    return tau * math.log(alpha / K)


def sample_negatives(
    num_queries: int, num_keys: int, own: Tensor, K: int, generator: Generator | None = None
) -> Tensor:
    """K distinct random keys for each query, its own excluded: (num_queries, K) indices into the keys.

    own: (num_queries,), the index of each query's own key, or (num_queries, E) where E keys are excluded (SimCLR:
    the query itself and its positive). Every admissible set of K keys is equally likely, independently for each
    query (EqCo 2.3 and 3). The draw is made on the generator's device: ranks that must agree with a single
    process draw for the whole batch from one seed and keep their own rows.
    Raises UserError where K is less than 1 or more than the keys left after the exclusion.
    """
    own = own.reshape(num_queries, -1)
    available = num_keys - own.shape[1]
    if not 1 <= K <= available:
        raise UserError(
            f"K = {K} negatives a query were asked for, but the batch has {num_keys} keys, of which {available} "
            f"can be negatives of a query: give 1 <= K <= {available}, or a larger batch."
        )
    device = generator.device if generator is not None else torch.device("cpu")
    score = torch.rand(num_queries, num_keys, generator=generator, device=device)
    score.scatter_(1, own.to(device), -1.0)
    return score.topk(K, dim=1).indices.to(own.device)


@at_least_float32
def info_nce_of_similarities(positive: Tensor, negatives: Tensor, tau: float, margin: float = 0.0) -> Tensor:
    """Mean InfoNCE (EqCo Eq. 1) of cosines: positive (B,), negatives (B, K); -inf leaves a key out."""
    logits = torch.cat([(positive - margin).unsqueeze(1), negatives], dim=1) / tau
    return (logits.logsumexp(dim=1) - logits[:, 0]).mean()


@at_least_float32
def info_nce(query: Tensor, positive: Tensor, negatives: Tensor, tau: float, margin: float = 0.0) -> Tensor:
    """Mean over queries of -log(s0 / (s0 + sum s_i)), s0 = e^((q.k0 - m)/tau), s_i = e^(q.k_i/tau) (EqCo Eq. 1).

    query, positive: (B, d); negatives: (K, d) shared by all queries, or (B, K, d) one set a query. With m = 0
    and a queue of negatives this is MoCo; gradients flow into whatever asks for them.
    """
    pattern = "bd,kd->bk" if negatives.ndim == 2 else "bd,bkd->bk"
    similarities = torch.einsum(pattern, query, negatives)
    return info_nce_of_similarities((query * positive).sum(1), similarities, tau, margin)


@at_least_float32
def simo_loss(
    queries: Tensor, keys: Tensor, own: Tensor, negatives: Tensor, tau: float, alpha: float
) -> Tensor:
    """SiMo: mean over queries of -log(s0 / (s0 + alpha/K sum s_i)) (EqCo Eqs. 1 and 5, section 3).

    queries: (B, d) online; keys: (M, d) momentum keys of the whole (all-ranks) batch, constants here; own: (B,)
    index of each query's positive key; negatives: (B, K) from `sample_negatives`.
    """
    similarities = queries @ keys.detach().T
    positive = similarities.gather(1, own.unsqueeze(1)).squeeze(1)
    margin = eqco_margin(alpha, negatives.shape[1], tau)
    return info_nce_of_similarities(positive, similarities.gather(1, negatives), tau, margin)
