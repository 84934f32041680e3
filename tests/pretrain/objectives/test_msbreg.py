"""MSBReg's three terms: what each is zero, least or unbiased for."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from carryover.pretrain.objectives.asymmetric import negative_cosine
from carryover.pretrain.objectives.msbreg import (
    brownian_directions,
    brownian_loss,
    centroid_loss,
    singular_value_loss,
)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_centroid_loss_compares_means_of_unit_views() -> None:
    online, target = normal(3, 4, 5, seed=0).requires_grad_(), normal(3, 2, 5, seed=1).requires_grad_()
    expected = torch.zeros((), dtype=torch.float64)
    for views, targets in zip(online, target):
        c = sum(view / view.norm() for view in views) / 4
        t = sum(view / view.norm() for view in targets).detach() / 2
        expected = expected + (1 - c @ t / (c.norm() * t.norm())) / 3
    loss = centroid_loss(online, target)
    torch.testing.assert_close(loss, expected)
    actual = torch.autograd.grad(loss, [online, target], allow_unused=True)
    torch.testing.assert_close(actual[0], torch.autograd.grad(expected, online)[0])
    assert actual[1] is None


def test_one_view_each_is_byol() -> None:
    online, target = normal(3, 1, 5, seed=0), normal(3, 1, 5, seed=1)
    torch.testing.assert_close(centroid_loss(online, target), 1 + negative_cosine(online[:, 0], target[:, 0]))


def test_brownian_directions_are_unit_vectors_without_preference() -> None:
    directions = brownian_directions(20_000, 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(20_000))
    assert directions.mean(0).norm() < 0.02
    torch.testing.assert_close(directions.T @ directions / 20_000, torch.eye(3) / 3, rtol=0, atol=0.01)


def test_all_views_of_an_image_move_along_its_one_direction() -> None:
    views = normalize(normal(2, 3, 4, seed=0), dim=-1).requires_grad_()
    directions = normalize(normal(2, 4, seed=1), dim=1)
    loss = brownian_loss(views, directions)
    torch.testing.assert_close(loss, torch.einsum("bkd,bd->", views, directions) / 6)
    (gradient,) = torch.autograd.grad(loss, views)
    point = views.detach()
    tangential = directions.unsqueeze(1) - (point * directions.unsqueeze(1)).sum(-1, keepdim=True) * point
    torch.testing.assert_close(gradient, tangential / 6)


def by_singular_values(views: Tensor) -> Tensor:
    losses = []
    for Z in normalize(views, dim=-1).unbind(1):
        squares = torch.linalg.svdvals(Z).square()
        losses.append(((len(squares) / len(Z) * squares - 1) ** 2).sum())
    return torch.stack(losses).mean()


def test_the_singular_value_loss_is_that_of_a_decomposition_and_of_its_gradient() -> None:
    for images, width in [(7, 4), (4, 7)]:
        views = normal(images, 3, width, seed=0).requires_grad_()
        loss, expected = singular_value_loss(views), by_singular_values(views)
        torch.testing.assert_close(loss, expected)
        actual, reference = (torch.autograd.grad(x, views)[0] for x in (loss, expected))
        torch.testing.assert_close(actual, reference)


def test_a_flat_spectrum_has_no_singular_value_loss_and_a_collapsed_one_the_most() -> None:
    flat = torch.eye(4, dtype=torch.float64).repeat(2, 1).unsqueeze(1)
    torch.testing.assert_close(singular_value_loss(flat), torch.zeros((), dtype=torch.float64))
    collapsed = torch.ones(8, 1, 4, dtype=torch.float64)
    torch.testing.assert_close(singular_value_loss(collapsed), torch.tensor(12.0, dtype=torch.float64))
