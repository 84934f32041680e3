"""Logistic regression agrees with scikit-learn's."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy

from carryover.configs import WorkError
from carryover.transfer.tasks.linear.logistic import Logistic, fit, fit_path


def problem(rows: int = 400, classes: int = 5, dim: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % classes
    centers = torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    return centers[labels] + torch.randn(rows, dim, generator=generator, dtype=torch.float64), labels


def after_newtons_steps(found: Logistic, x: torch.Tensor, y: torch.Tensor, cost: float) -> torch.Tensor:
    """Return the probabilities (rows, classes) two steps of Newton's method further."""
    ones = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    start = torch.cat([found.weight, found.bias.unsqueeze(1)], dim=1)

    def objective(flat: torch.Tensor) -> torch.Tensor:
        matrix = flat.view_as(start)
        loss = cross_entropy(ones @ matrix.T, y, reduction="sum")
        return loss / len(y) + matrix[:, :-1].square().sum() / (2 * cost * len(y))

    flat = start.flatten()
    for _ in range(2):
        (gradient,) = torch.autograd.grad(objective(flat.requires_grad_(True)), flat)
        flat = flat.detach()
        hessian = torch.autograd.functional.hessian(objective, flat)
        # A bias that is the same for all classes changes nothing: there the curvature is zero.
        flat = flat - torch.linalg.lstsq(hessian, gradient, driver="gelsd").solution
    return (ones @ flat.view_as(start).T).softmax(1)


@pytest.mark.parametrize("cost", [1e-3, 1.0, 100.0])
def test_the_solution_is_scikit_learns(cost: float) -> None:
    x, y = problem()
    # Newton's method, because scikit-learn's L-BFGS itself stops some 1e-4 short at the largest C.
    oracle = LogisticRegression(C=cost, tol=1e-12, max_iter=10_000, solver="newton-cholesky").fit(x, y)
    found = fit(x, y, 5, cost, tolerance=1e-9)
    assert found.gradient <= 1e-7, "it may stop early, where the objective's differences are below rounding"
    probability = torch.from_numpy(oracle.predict_proba(x))
    if found.gradient <= 1e-9:
        torch.testing.assert_close(found.logits(x).softmax(1), probability, atol=5e-6, rtol=0)
    # Where it stopped earlier, at a gradient that depends on the processor, that explains the difference.
    torch.testing.assert_close(after_newtons_steps(found, x, y, cost), probability, atol=1e-9, rtol=0)
    # The objective's curvature in the weights is at least 1 / (cost * rows): no further off can they be.
    off = (found.weight - torch.from_numpy(oracle.coef_)).norm()
    assert off <= found.gradient * (found.weight.numel() + 5) ** 0.5 * cost * len(x) + 1e-9


def test_the_chunks_do_not_change_the_solution() -> None:
    x, y = problem()
    whole, parts = fit(x, y, 5, 1.0, tolerance=1e-8), fit(x, y, 5, 1.0, tolerance=1e-8, rows=37)
    torch.testing.assert_close(whole.weight, parts.weight, atol=1e-6, rtol=0)


def test_a_path_of_costs_gives_each_costs_own_solution() -> None:
    x, y = problem()
    costs = [10.0, 0.01, 1.0]
    path = fit_path(x, y, 5, costs, tolerance=1e-9)
    for cost, found in zip(costs, path):
        alone = fit(x, y, 5, cost, tolerance=1e-9)
        torch.testing.assert_close(found.weight, alone.weight, atol=1e-5, rtol=0)


def test_single_precision_features_give_the_same_predictions() -> None:
    x, y = problem()
    single, double = fit(x.float(), y, 5, 1.0), fit(x, y, 5, 1.0, tolerance=1e-9)
    assert single.weight.dtype == torch.float32
    agree = single.logits(x.float()).argmax(1) == double.logits(x).argmax(1)
    assert agree.float().mean() > 0.99


def test_features_that_are_not_finite_are_refused() -> None:
    x, y = problem()
    x[3, 2] = float("nan")
    with pytest.raises(WorkError, match="not finite"):
        fit(x, y, 5, 1.0)
