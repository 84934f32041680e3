"""The comparison of gradients takes every method's own, in the same embeddings."""

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from carryover.configs import load
from carryover.pretrain.config import PretrainConfig
from carryover.pretrain.method_config import METHODS
from carryover.pretrain.studies.gradients import (
    SUBJECTS,
    GradientComparison,
    TwoViews,
    compare_gradients,
    gradient,
    overrides,
)

B, WIDTH = 6, 12


def _views(seed: int) -> TwoViews:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(B, WIDTH, generator=generator)
    first, second = (image + 0.5 * torch.randn(B, WIDTH, generator=generator) for _ in range(2))
    return TwoViews(first, second)


def _config(title: str) -> PretrainConfig:
    recipe = SUBJECTS[title]
    loaded = load("pretrain", recipe, overrides(load("pretrain", recipe).method.name, B, WIDTH))
    assert isinstance(loaded, PretrainConfig)
    return loaded


@pytest.fixture(scope="module")
def compared() -> GradientComparison:
    return compare_gradients({title: _config(title) for title in SUBJECTS}, _views(1), _views(0))


def test_every_method_that_learns_without_labels_is_compared() -> None:
    sections = list(METHODS.values())
    trained = {s.model_fields["name"].annotation for s in sections if s.trains and not s.wants_labels}
    assert {get_args(name)[0] for name in trained} == {
        load("pretrain", r).method.name for r in SUBJECTS.values()
    }


def test_cosines_and_ratios_fit_together(compared: GradientComparison) -> None:
    n = len(SUBJECTS)
    assert compared.names == tuple(SUBJECTS) and compared.cosine.shape == (n, n)
    torch.testing.assert_close(compared.cosine, compared.cosine.T)
    torch.testing.assert_close(compared.cosine.diagonal(), torch.ones(n, dtype=torch.float64))
    assert (compared.cosine.abs() <= 1 + 1e-12).all()
    torch.testing.assert_close(compared.norm_ratio * compared.norm_ratio.T, torch.ones(n, n).double())
    g, h = (gradient(_config(t), _views(1), _views(0)).double().flatten() for t in ("SimCLR", "UniGrad"))
    i, j = compared.names.index("SimCLR"), compared.names.index("UniGrad")
    torch.testing.assert_close(compared.cosine[i, j], cosine_similarity(g, h, dim=0))
    torch.testing.assert_close(compared.norm_ratio[i, j], g.norm() / h.norm())


def _written_out_unigrad(z: Tensor, earlier: TwoViews, batch: TwoViews) -> Tensor:
    """Eq. 15 for the first view, F from the online embeddings of both batches (Algorithm 6)."""
    F = torch.zeros(WIDTH, WIDTH)
    for weight, views in ((0.99, earlier), (0.01, batch)):
        for u in (normalize(views.first, dim=1), normalize(views.second, dim=1)):
            F = F + weight * u.T @ u / (2 * B)
    u, v = normalize(z, dim=1), normalize(batch.second, dim=1)
    return (-(u * v).sum(1) + 50 * torch.einsum("bi,ij,bj->b", u, F, u)).mean() / 2


def _written_out_simclr(z: Tensor, earlier: TwoViews, batch: TwoViews) -> Tensor:
    """Eq. 21 for the queries of the first view: 2B views, the query and its positive left out."""
    u = normalize(z, dim=1)
    keys = normalize(torch.cat([batch.first, batch.second]), dim=1)
    loss = torch.zeros(())
    for i in range(B):
        s0 = (u[i] @ keys[B + i] / 0.2).exp()
        others = sum((u[i] @ keys[j] / 0.2).exp() for j in range(2 * B) if j not in (i, B + i))
        loss = loss - (s0 / (s0 + others)).log() / (2 * B)
    return loss


def _written_out_npid(z: Tensor, earlier: TwoViews, batch: TwoViews) -> Tensor:
    """Eq. 2 of SqrtKL; the bank's rows of the earlier images have moved once (Eq. 3)."""
    rows = [normalize(batch.second, dim=1)]
    rows += [normalize(normalize(earlier.second, dim=1) + normalize(earlier.first, dim=1), dim=1)]
    log_p = (normalize(z, dim=1) @ torch.cat(rows).T / 0.07).log_softmax(1)
    return -log_p[torch.arange(B), torch.arange(B)].mean()


@pytest.mark.parametrize(
    ("title", "written_out"),
    [("UniGrad", _written_out_unigrad), ("SimCLR", _written_out_simclr), ("NPID", _written_out_npid)],
)
def test_a_gradient_is_that_of_the_loss_written_out(title: str, written_out) -> None:  # type: ignore[no-untyped-def]
    earlier, batch = _views(1), _views(0)
    z = batch.first.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(written_out(z, earlier, batch), z)
    torch.testing.assert_close(gradient(_config(title), earlier, batch), wanted, rtol=1e-4, atol=1e-6)


def test_two_comparisons_of_one_seed_agree(compared: GradientComparison) -> None:
    again = compare_gradients({t: _config(t) for t in SUBJECTS}, _views(1), _views(0))
    assert again.cosine.equal(compared.cosine) and again.norm.equal(compared.norm)
