"""Many linear classifiers trained at once on one forward pass: every rate, weight decay and feature depth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from carryover.core.training.device import copied_to


@dataclass(frozen=True)
class HeadSpec:
    """One classifier: the features it reads, its peak rate (scaled to the batch) and its weight decay."""

    depth: str
    lr: float
    weight_decay: float

    @property
    def label(self) -> str:
        """The name used in records, for example ``pooled lr=30 wd=0``."""
        return f"{self.depth} lr={self.lr:g} wd={self.weight_decay:g}"


class StackedHeads(nn.Module):
    """Linear classifiers on features of several depths; those of one depth are one weight (heads, C, D).

    Attributes
    ----------
    specs
        Every head, in the order of the logits' second dimension: depth by depth.
    """

    def __init__(
        self, dims: Mapping[str, int], rates: Sequence[float], decays: Sequence[float], classes: int
    ) -> None:
        super().__init__()
        pairs = [(lr, wd) for lr in rates for wd in decays]
        self.depths = tuple(dims)
        self.specs = tuple(HeadSpec(depth, lr, wd) for depth in dims for lr, wd in pairs)
        self.weights = nn.ParameterList(torch.empty(len(pairs), classes, d) for d in dims.values())
        self.biases = nn.ParameterList(torch.zeros(len(pairs), classes) for _ in dims)
        for weight in self.weights:
            # All heads of a depth start alike, so that they differ only by what the grid varies.
            nn.init.normal_(weight[0], std=0.01)
            weight.data.copy_(weight.data[0].expand_as(weight))

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return logits (B, heads, C) for pooled features (B, D) by depth."""
        logits = []
        for depth, weight, bias in zip(self.depths, self.weights, self.biases):
            x = features[depth]
            flat = nn.functional.linear(x, weight.flatten(0, 1), bias.flatten())
            logits.append(flat.view(len(x), *bias.shape))
        return torch.cat(logits, dim=1)


def head_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return every head's mean cross entropy (heads,) for logits (B, heads, C).

    Their sum is what is minimized: a head's parameters appear in its own term alone.
    """
    heads = logits.shape[1]
    loss = cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(heads), reduction="none")
    return loss.view(-1, heads).mean(dim=0)


class StackedSGD(torch.optim.Optimizer):
    """SGD with momentum in which every head has its own rate and weight decay; optionally with LARS.

    For each head's weight (and bias) w with gradient g: u = g + wd w; with LARS u <- eta |w| / |u| u, unless
    a norm is zero, which leaves u as it is (apex's LARC with clip=False, as SimSiam's and UniGrad's linear
    evaluations use it, on biases too); v <- momentum v + u; w <- w - lr v. With Nesterov the last step is
    w <- w - lr (u + momentum v).

    Parameters
    ----------
    heads
        The classifiers; their specs give the peak rates.
    trust_coefficient
        LARS's eta; None: plain SGD.
    """

    def __init__(
        self,
        heads: StackedHeads,
        momentum: float = 0.9,
        nesterov: bool = False,
        trust_coefficient: float | None = None,
    ) -> None:
        groups: list[dict[str, Any]] = []
        for depth, weight, bias in zip(heads.depths, heads.weights, heads.biases):
            specs = [s for s in heads.specs if s.depth == depth]
            groups.append(
                {
                    "params": [weight, bias],
                    "peak_lr": [s.lr for s in specs],
                    "weight_decay": [s.weight_decay for s in specs],
                }
            )
        shared = {"momentum": momentum, "nesterov": nesterov, "trust_coefficient": trust_coefficient}
        super().__init__(groups, {**shared, "factor": 1.0})

    def set_factor(self, factor: float) -> None:
        """Set every head's rate to its peak rate times `factor`."""
        for group in self.param_groups:
            group["factor"] = factor

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; `closure`, if given, is evaluated first with gradients on."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    self._step_one(w, w.grad, group)
        return loss

    def _step_one(self, w: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        shape = [-1] + [1] * (w.dim() - 1)
        decay, lr = (
            copied_to(torch.tensor(group[key], dtype=w.dtype), w.device).view(shape)
            for key in ("weight_decay", "peak_lr")
        )
        lr = lr * group["factor"]
        update = gradient + decay * w
        eta = group["trust_coefficient"]
        if eta is not None:
            own = w.flatten(1).norm(dim=1)
            theirs = update.flatten(1).norm(dim=1)
            ratio = torch.where((own > 0) & (theirs > 0), eta * own / theirs, 1.0)
            update *= ratio.view(shape)
        if "momentum_buffer" not in self.state[w]:
            self.state[w]["momentum_buffer"] = torch.zeros_like(w)
        buffer = self.state[w]["momentum_buffer"]
        buffer.mul_(group["momentum"]).add_(update)
        if group["nesterov"]:
            w.sub_(lr * (update + group["momentum"] * buffer))
        else:
            w.sub_(lr * buffer)
