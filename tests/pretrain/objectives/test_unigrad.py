"""UniGrad against Eqs. 14 and 15 summed over every past sample, and against the public code's gradient."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from carryover.pretrain.objectives.unigrad import (
    batch_correlation,
    multicrop_positives,
    positive_mixture,
    unigrad_loss,
    update_correlation,
)
from tests.pretrain.objectives.formulas import unigrad_multicrop_loss

LAM, RHO = 100.0, 0.9


def unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def gradient(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


def history() -> tuple[list[Tensor], Tensor]:
    batches = [unit(8, 5, seed=seed) for seed in range(3)]
    F = None
    for batch in batches:
        F = update_correlation(F, batch_correlation(batch), RHO)
    assert F is not None
    return batches, F


def test_loss_and_gradient_equal_eq_15_summed_over_every_past_sample() -> None:
    batches, F = history()
    # The first batch starts the average, so its samples carry the whole remaining weight.
    weights = [RHO**2, (1 - RHO) * RHO, 1 - RHO]
    u, v = unit(4, 5, seed=10).requires_grad_(), unit(4, 5, seed=11)

    expected = torch.zeros((), dtype=torch.float64)
    for i in range(4):
        expected = expected - u[i] @ v[i] / 4
        for batch, weight in zip(batches, weights, strict=True):
            for past in batch:
                expected = expected + LAM / 2 * weight / len(batch) * (u[i] @ past) ** 2 / 4

    loss = unigrad_loss(u, v, F, LAM)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, u), gradient(expected, u))


def test_gradient_is_eq_14_and_not_twice_its_negative_term() -> None:
    _, F = history()
    u, v = unit(4, 5, seed=10).requires_grad_(), unit(4, 5, seed=11)
    (actual,) = gradient(unigrad_loss(u, v, F, LAM), u)
    torch.testing.assert_close(actual, (-v + LAM * u.detach() @ F) / 4)

    literal_pseudocode = (-(u * v).sum(-1) + LAM * ((u @ F) * u).sum(-1)).mean()
    (twice,) = gradient(literal_pseudocode, u)
    torch.testing.assert_close(twice - actual, LAM * u.detach() @ F / 4)


def test_two_views_give_the_public_codes_gradient() -> None:
    _, F = history()
    z1, z2 = unit(4, 5, seed=20).requires_grad_(), unit(4, 5, seed=21).requires_grad_()
    z1m, z2m = unit(4, 5, seed=22), unit(4, 5, seed=23)
    # Its scalar is the gradient's product with z: a surrogate, larger than Eq. 15 by lam/2 z^T F z.
    halves = [((-target + LAM * z @ F).detach() * z).sum(-1).mean() for z, target in ((z1, z2m), (z2, z1m))]
    expected = gradient(0.5 * (halves[0] + halves[1]), z1, z2)
    actual = unigrad_multicrop_loss([z1, z2], (z1m, z2m), F, LAM)
    torch.testing.assert_close(gradient(actual, z1, z2), expected)


def test_targets_and_correlation_are_constants() -> None:
    u, v = unit(4, 5, seed=1).requires_grad_(), unit(4, 5, seed=2).requires_grad_()
    F = batch_correlation(v)
    assert not F.requires_grad
    unigrad_loss(u, v, F, LAM).backward()
    assert v.grad is None


def test_correlation_starts_from_the_first_batch_and_then_moves_by_one_minus_rho() -> None:
    first, second = batch_correlation(unit(8, 5, seed=1)), batch_correlation(unit(8, 5, seed=2))
    F = update_correlation(None, first, RHO)
    torch.testing.assert_close(F, first)
    torch.testing.assert_close(update_correlation(F, second, RHO), RHO * first + (1 - RHO) * second)


def test_correlations_of_equal_parts_average_to_the_whole_batchs() -> None:
    batch = unit(8, 5, seed=1)
    parts = [batch_correlation(part) for part in batch.chunk(2)]
    torch.testing.assert_close((parts[0] + parts[1]) / 2, batch_correlation(batch))


def test_cutmix_mixes_the_gradients_of_both_source_images_by_area() -> None:
    _, F = history()
    u, v = unit(4, 5, seed=1).requires_grad_(), unit(4, 5, seed=2)
    partner = torch.tensor([2, 0, 3, 1])
    kept = torch.tensor([1.0, 0.75, 0.5, 0.0], dtype=torch.float64)
    (mixed,) = gradient(unigrad_loss(u, positive_mixture(v, partner, kept), F, LAM), u)
    (own,) = gradient(unigrad_loss(u, v, F, LAM), u)
    (other,) = gradient(unigrad_loss(u, v[partner], F, LAM), u)
    torch.testing.assert_close(mixed, kept.unsqueeze(1) * own + (1 - kept.unsqueeze(1)) * other)


def test_a_global_view_is_pulled_to_the_other_one_and_a_local_view_to_their_average() -> None:
    first, second = unit(4, 5, seed=1), unit(4, 5, seed=2)
    positives = multicrop_positives((first, second), num_local=2)
    torch.testing.assert_close(positives[0], second)
    torch.testing.assert_close(positives[1], first)
    for local in positives[2:]:
        torch.testing.assert_close(local, (first + second) / 2)


def test_multicrop_counts_every_view_the_same() -> None:
    _, F = history()
    views = [unit(4, 5, seed=seed) for seed in range(5)]
    targets = (unit(4, 5, seed=8), unit(4, 5, seed=9))
    average = (targets[0] + targets[1]) / 2
    expected = (
        unigrad_loss(views[0], targets[1], F, LAM)
        + unigrad_loss(views[1], targets[0], F, LAM)
        + sum(unigrad_loss(view, average, F, LAM) for view in views[2:])
    ) / 5
    torch.testing.assert_close(unigrad_multicrop_loss(views, targets, F, LAM), expected)
