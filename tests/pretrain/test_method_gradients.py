"""Methods that train by a closed form, or by several terms, have the loss and gradient written out."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from carryover.pretrain.methods import Method
from carryover.pretrain.methods.asymmetric import DirectPred
from carryover.pretrain.methods.contrastive import MoCo
from carryover.pretrain.methods.instance import NPID
from carryover.pretrain.methods.msbreg import MSBReg
from carryover.pretrain.target import MomentumEncoder
from tests.pretrain.test_methods import B, N, _assert_same_gradient, _batch, _build, _embedded, _moment
from tests.pretrain.tiny import tiny_backbone

__all__ = ["tiny_backbone"]

pytestmark = pytest.mark.usefixtures("tiny_backbone")
MOMENTUM = "target: {name: momentum}"


def _halved(gradient1: Tensor, gradient2: Tensor, u1: Tensor, u2: Tensor) -> Tensor:
    """A loss with these gradients in u1 and u2, as the public code trains: mean, symmetrised, halved."""
    return ((gradient1.detach() * u1).sum(1).mean() + (gradient2.detach() * u2).sum(1).mean()) / 2


@pytest.mark.parametrize("source", ["online", "target"])
def test_simplified_vicreg_has_eq_12s_gradient_with_negatives_of_the_branch_asked_for(source: str) -> None:
    method = _build(
        "unigrad", f"method={{name: vicreg, form: simplified, {MOMENTUM}, negatives_from: {source}}}"
    )
    batch = _batch()
    (u1, u2), (v1, v2) = _embedded(method, batch)
    n1, n2 = (u1, u2) if source == "online" else (v1, v2)

    def eq12(u: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
        return 2 * (-positive + 25 / B * sum((u @ v).unsqueeze(1) * v for v in negatives))

    wanted = _halved(eq12(u1, v2, n1), eq12(u2, v1, n2), u1, u2)
    _assert_same_gradient(method, method(batch, _moment()).loss, wanted)


@pytest.mark.parametrize("a", [1.0, 0.1])
def test_barlow_twins_on_the_sphere_has_the_public_codes_gradient(a: float) -> None:
    form = f"form: simplified, normalisation: l2, lam: 50, a: {a}"
    method = _build("unigrad", f"method={{name: barlow_twins, {MOMENTUM}, {form}}}")
    batch = _batch()
    (u1, u2), (v1, v2) = _embedded(method, batch)
    g1 = 2 * (-a * v2 + 50 / B * (v2 @ v2.T) @ u1)
    g2 = 2 * (-a * v1 + 50 / B * (v1 @ v1.T) @ u2)
    _assert_same_gradient(method, method(batch, _moment()).loss, _halved(g1, g2, u1, u2))


def test_directpred_predicts_by_the_eigenvectors_of_the_remembered_f() -> None:
    method = _build("unigrad", f"method={{name: directpred, form: loss, eps: 0.3, rho: 0.9, {MOMENTUM}}}")
    assert isinstance(method, DirectPred)
    F: Tensor | None = None
    for step in range(3):
        batch = _batch(seed=step)
        (u1, u2), (v1, v2) = _embedded(method, batch)
        of_batch = (v1.T @ v1 + v2.T @ v2) / (2 * B)
        F = of_batch if F is None else 0.9 * F + 0.1 * of_batch
        values, vectors = torch.linalg.eigh(F / torch.linalg.eigvalsh(F)[-1])
        W_h = vectors @ torch.diag(values.clamp(min=0).sqrt() + 0.3) @ vectors.T
        cosines = [cosine_similarity(u @ W_h, v).mean() for u, v in ((u1, v2), (u2, v1))]
        outcome = method(batch, _moment(step))
        torch.testing.assert_close(outcome.loss, -(cosines[0] + cosines[1]) / 2)
        _assert_same_gradient(method, outcome.loss, -(cosines[0] + cosines[1]) / 2)
        torch.testing.assert_close(method.correlation, F)


def test_directpreds_gradient_form_trains_as_its_loss_does() -> None:
    batch = _batch()
    losses = {}
    for form in ("loss", "gradient"):
        method = _build("unigrad", f"method={{name: directpred, form: {form}, {MOMENTUM}}}")
        losses[form] = torch.autograd.grad(method(batch, _moment()).loss, list(method.online.parameters()))
    for a, b in zip(losses["loss"], losses["gradient"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-11)


def test_msbreg_adds_the_two_dispersive_terms_to_the_centroids_loss() -> None:
    views = "augment={views: multicrop, local: {count: 1, view: {size: 10}}}"
    method = _build("unigrad", views, "method={name: msbreg, lam_s: 0.2, lam_b: 0.5, predictor: {hidden: 9}}")
    assert isinstance(method, MSBReg) and isinstance(method.target, MomentumEncoder)
    batch = _batch(views=3)
    z = [method.online(view) for view in batch.views]
    p = [normalize(method.predictor(x), dim=1) for x in z]
    network: Any = method.target.network
    with torch.no_grad():
        v = [normalize(network(view), dim=1) for view in batch.views]
    centroid = 1 - cosine_similarity(sum(p), sum(v)).mean()
    wanted = centroid
    d = torch.randn(B, 7, generator=torch.Generator().manual_seed(0))
    d = (d / d.norm(dim=1, keepdim=True)).double()
    for x in z:
        singular = torch.linalg.svdvals(normalize(x, dim=1))
        wanted = wanted + 0.2 / 3 * (len(singular) * singular**2 / B - 1).square().sum()
        wanted = wanted + 0.5 / 3 * cosine_similarity(x, d).mean()
    outcome = method(batch, _moment(0))
    torch.testing.assert_close(outcome.loss, wanted, rtol=1e-6, atol=1e-7)


def test_npid_is_cross_entropy_over_the_bank_with_its_proximal_term() -> None:
    method = _build("sqrtkl", "method={name: npid, proximal: 3, tau: 0.1}")
    assert isinstance(method, NPID)
    batch, rows = _batch(views=1), method.bank.tensor.clone()
    z = normalize(method.online(batch.views[0]), dim=1)
    entropy = torch.nn.functional.cross_entropy(z @ rows.T / 0.1, batch.index)
    wanted = entropy + 3 * (z - rows[batch.index]).square().sum(1).mean()
    outcome = method(batch, _moment())
    torch.testing.assert_close(outcome.loss, wanted)
    _assert_same_gradient(method, outcome.loss, wanted)
    moved = normalize((rows[batch.index] + z.detach()) / 2, dim=1)
    torch.testing.assert_close(method.bank.tensor[batch.index], moved)
    others = [n for n in range(N) if n not in batch.index]
    assert method.bank.tensor[others].equal(rows[others])


def test_a_symmetric_moco_asks_both_ways_and_keeps_both_keys() -> None:
    method = _build("simo", f"method={{name: moco, queue: 14, symmetric: true, alpha: 64, {MOMENTUM}}}")
    assert isinstance(method, MoCo)
    before, batch = method.queue.clone(), _batch()
    (u1, u2), (v1, v2) = _embedded(method, batch)
    wanted = torch.zeros((), dtype=torch.float64)
    for u, v in ((u1, v2), (u2, v1)):
        for i in range(B):
            s0, others = (u[i] @ v[i] / 0.2).exp(), (before @ u[i] / 0.2).exp().sum()
            wanted = wanted - (s0 / (s0 + 64 / 14 * others)).log() / (2 * B)
    outcome = method(batch, _moment())
    torch.testing.assert_close(outcome.loss, wanted)
    _assert_same_gradient(method, outcome.loss, wanted)
    torch.testing.assert_close(method.queue, torch.cat([before[2 * B :], v2, v1]))


def test_supervised_training_is_cross_entropy_on_the_labels() -> None:
    method = _build_supervised()
    batch = _batch(views=1)
    labeled = type(batch)(batch.index, batch.views, batch.index % 4)
    logits = method.online(batch.views[0])
    wanted = -(
        0.9 * logits.log_softmax(1)[torch.arange(B), labeled.label] + 0.1 * logits.log_softmax(1).mean(1)
    )
    torch.testing.assert_close(method(labeled, _moment()).loss, wanted.mean())


def _build_supervised() -> Method:
    from carryover.pretrain.methods import DataFacts, build_method
    from tests.pretrain.tiny import recipe

    config = recipe("supervised", None, ["method.label_smoothing=0.1", "precision=fp32"])
    return build_method(config, DataFacts(N, 4)).double()
