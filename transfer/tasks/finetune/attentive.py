"""The attentive probe: learnt queries attend to the tokens of a frozen network, then a linear classifier."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from carryover.core.backbones.build import feature_maps
from carryover.transfer.tasks.finetune.config import AttentiveConfig


class AttentivePool(nn.Module):
    """Cross-attention of learnt queries to tokens (El-Nouby et al. 2024, AIM, `AttentionPoolingClassifier`).

    Tokens are batch-normalized without weights, keys and values are linear in them without bias, queries are
    parameters, and what the queries find is averaged. Chen et al. 2024 (CAE) and Bardes et al. 2024 (V-JEPA)
    probe so too, with a block around the attention.

    Maps tokens (B, N, D) to features (B, D).
    """

    def __init__(self, dim: int, config: AttentiveConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.queries = nn.Parameter(torch.randn(1, config.queries, dim) * 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(tokens.transpose(1, 2)).transpose(1, 2)
        queries = self._by_head(self.queries.expand(len(x), -1, -1))
        found = scaled_dot_product_attention(
            queries, self._by_head(self.key(x)), self._by_head(self.value(x))
        )
        return found.transpose(1, 2).flatten(2).mean(dim=1)

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, heads, N, D / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def tokens_of(backbone: nn.Module, x: Tensor) -> Tensor:
    """Return a network's tokens (B, N, D) of images: a transformer's patches after the last norm.

    Of any other network they are the cells of its last map.
    """
    own: Any = getattr(backbone, "tokens", None) if getattr(backbone, "vector_names", ()) else None
    if own is not None:
        tokens: Tensor = own(x)
        return tokens
    last = list(feature_maps(backbone, x).values())[-1]
    return last.flatten(2).transpose(1, 2)
