"""Target branches: where the embedding that a view is pulled towards comes from (UniGrad, Table 1)."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from carryover.core.training.distributed import from_first, gather, own_slice
from carryover.core.training.schedules import cosine_momentum
from carryover.pretrain.method_config import MomentumTarget, StopGradientTarget, WeightSharingTarget


class TargetBranch(nn.Module):
    """Gives the target embeddings of a step's views.

    Attributes
    ----------
    looks_at_views
        Whether targets come from the views; otherwise from their online embeddings.
    """

    looks_at_views = False

    def advance(self, online: nn.Module, step: int, total: int) -> None:
        """Follow the online network, before the forward pass of `step` (0-based) of `total`."""

    def forward(self, views: Sequence[Tensor], embeddings: Sequence[Tensor]) -> list[Tensor]:
        """Return one target (B, d) a view, given the views and their online embeddings."""
        raise TypeError(f"{type(self).__name__} gives no targets")


class WeightSharing(TargetBranch):
    """The online embeddings themselves, gradients and all: u^s in UniGrad's Table 1."""

    def forward(self, views: Sequence[Tensor], embeddings: Sequence[Tensor]) -> list[Tensor]:
        return list(embeddings)


class StopGradient(TargetBranch):
    """The online embeddings themselves, detached: u^d in Table 1."""

    def forward(self, views: Sequence[Tensor], embeddings: Sequence[Tensor]) -> list[Tensor]:
        return [z.detach() for z in embeddings]


class MomentumEncoder(TargetBranch):
    """A copy of the online network that follows it as an exponential moving average: u^m in Table 1.

    Parameters are averaged; batch-norm statistics are the copy's own, from its own forward passes in training
    mode (as in MoCo and in UniGrad's public code).
    """

    looks_at_views = True

    def __init__(self, online: nn.Module, start: float, end: float, shuffle_bn: bool = False) -> None:
        super().__init__()
        self.network = copy.deepcopy(online).requires_grad_(False)
        self.start, self.end = start, end
        self.shuffle_bn = shuffle_bn

    @torch.no_grad()
    def advance(self, online: nn.Module, step: int, total: int) -> None:
        momentum = cosine_momentum(step, total, self.start, self.end)
        torch._foreach_lerp_(list(self.network.parameters()), list(online.parameters()), 1 - momentum)

    @torch.no_grad()
    def forward(self, views: Sequence[Tensor], embeddings: Sequence[Tensor]) -> list[Tensor]:
        if self.shuffle_bn:
            return [self._shuffled(view) for view in views]
        return [self.network(view) for view in views]

    def _shuffled(self, view: Tensor) -> Tensor:
        """MoCo's shuffling BN: each rank takes a random part of the global batch, and the keys go home."""
        everyone = gather(view)
        # Ranks agree on the order because rank 0 draws it.
        order = from_first(torch.randperm(len(everyone), device=view.device))
        keys = gather(self.network(own_slice(everyone[order])))
        return own_slice(keys[order.argsort()])


def build_target(
    config: MomentumTarget | StopGradientTarget | WeightSharingTarget,
    online: nn.Module,
    shuffle_bn: bool = False,
) -> TargetBranch:
    """Build the target branch a method's section asks for."""
    if isinstance(config, MomentumTarget):
        return MomentumEncoder(online, config.start, config.end, shuffle_bn)
    return StopGradient() if isinstance(config, StopGradientTarget) else WeightSharing()
