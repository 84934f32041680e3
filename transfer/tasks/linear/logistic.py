"""Multinomial logistic regression by L-BFGS over features that may be larger than memory."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from carryover.configs import WorkError
from carryover.core.training.distributed import sum_over_ranks

log = logging.getLogger(__name__)

_HISTORY = 10


@dataclass(frozen=True)
class Logistic:
    """A fitted classifier: logits are features @ weight.T + bias.

    `weight` (classes, D), `bias` (classes); `gradient` is the largest entry of the objective's gradient
    there, `evaluations` how often the objective was computed.
    """

    weight: Tensor
    bias: Tensor
    gradient: float
    evaluations: int

    def logits(self, features: Tensor) -> Tensor:
        """Return (rows, classes) for features (rows, D)."""
        return features.to(self.weight.dtype) @ self.weight.T + self.bias


def fit(
    features: Tensor,
    labels: Tensor,
    classes: int,
    cost: float,
    start: Logistic | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
    rows: int = 65_536,
) -> Logistic:
    """Minimize scikit-learn's objective, sum of log losses x cost + |weight|^2 / 2, divided by cost x rows.

    Parameters
    ----------
    features, labels
        (n, D) and (n,): this rank's rows; over several ranks each has its own, and all get the same answer.
    cost
        C, the inverse strength of the penalty; the bias is not penalized.
    start
        Where to begin, for example the solution for a neighboring cost.
    tolerance
        Stop when no entry of the gradient is larger.
    rows
        Features are read in chunks of so many.

    Raises
    ------
    WorkError
        Features that are not finite.
    """
    dtype = features.dtype if features.dtype == torch.float64 else torch.float32
    flat = torch.zeros(classes * (features.shape[1] + 1), dtype=dtype, device=features.device)
    if start is not None:
        flat.copy_(torch.cat([start.weight, start.bias.unsqueeze(1)], dim=1).flatten())
    flat.requires_grad_(True)
    n = float(sum_over_ranks(torch.tensor(float(len(labels)), dtype=torch.float64, device=features.device)))
    evaluations = 0

    def objective() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        value, gradient = _value_and_gradient(flat.detach(), features, labels, classes, cost * n, n, rows)
        if not torch.isfinite(value):
            raise WorkError("logistic regression: the features are not finite")
        flat.grad = gradient
        return value

    solver = torch.optim.LBFGS(
        [flat],
        max_iter=max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=torch.finfo(dtype).tiny,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )
    solver.step(objective)
    _, gradient = _value_and_gradient(flat.detach(), features, labels, classes, cost * n, n, rows)
    largest = float(gradient.abs().max())
    if largest > tolerance:
        log.warning(
            "logistic regression at C = %g stopped at a gradient of %.2g, above mode.tolerance %.2g: %s",
            cost,
            largest,
            tolerance,
            "in float32 rounding keeps it there; mode.tolerance=1e-3 accepts it"
            if dtype == torch.float32
            else f"it was given {max_iterations} iterations; leave out the largest of mode.costs",
        )
    matrix = flat.detach().view(classes, -1)
    return Logistic(matrix[:, :-1].contiguous(), matrix[:, -1].contiguous(), largest, evaluations)


def fit_path(
    features: Tensor, labels: Tensor, classes: int, costs: Sequence[float], tolerance: float = 1e-4
) -> list[Logistic]:
    """Fit every cost, from the smallest up, each from the solution before it; returned in `costs`' order."""
    order = sorted(range(len(costs)), key=lambda i: costs[i])
    found: dict[int, Logistic] = {}
    last: Logistic | None = None
    for i in order:
        last = found[i] = fit(features, labels, classes, costs[i], last, tolerance)
    return [found[i] for i in range(len(costs))]


def _value_and_gradient(
    flat: Tensor, features: Tensor, labels: Tensor, classes: int, penalty: float, n: float, rows: int
) -> tuple[Tensor, Tensor]:
    matrix = flat.view(classes, -1)
    weight, bias = matrix[:, :-1], matrix[:, -1]
    value = flat.new_zeros(())
    gradient = torch.zeros_like(matrix)
    for begin in range(0, len(labels), rows):
        x, y = features[begin : begin + rows].to(flat.dtype), labels[begin : begin + rows]
        logits = x @ weight.T + bias
        value += cross_entropy(logits, y, reduction="sum")
        residual = logits.softmax(dim=1) - one_hot(y, classes)
        gradient[:, :-1] += residual.T @ x
        gradient[:, -1] += residual.sum(dim=0)
    value, gradient = sum_over_ranks(value) / n, sum_over_ranks(gradient) / n
    value += weight.square().sum() / (2 * penalty)
    gradient[:, :-1] += weight / penalty
    return value, gradient.flatten()
