"""Each method puts views, target branch, head and objective together as its paper says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from carryover.core.data.config import CutMixConfig
from carryover.core.data.prepared import Batch
from carryover.pretrain.cutmix import draw_cutmix, paste
from carryover.pretrain.methods import DataFacts, Method, Moment, build_method
from carryover.pretrain.methods.asymmetric import BYOL
from carryover.pretrain.methods.contrastive import MoCo
from carryover.pretrain.methods.instance import SqrtKL
from carryover.pretrain.methods.unigrad import UniGrad
from carryover.pretrain.target import MomentumEncoder
from tests.pretrain.tiny import recipe, tiny_backbone

__all__ = ["tiny_backbone"]

pytestmark = pytest.mark.usefixtures("tiny_backbone")
B, N = 6, 20


def _build(name: str, *overrides: str) -> Method:
    heads = ["projector={depth: 2, hidden: 12, out: 7, norm: batch, norm_last: false}"]
    config = recipe(name, None, ["batch_size=6", *heads, *overrides])
    method = build_method(config, DataFacts(N, None)).double()
    if isinstance(method.target, MomentumEncoder):
        # A momentum encoder that is some way behind, or nothing would tell it from the online network.
        with torch.no_grad():
            for p in method.target.network.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return method


def _batch(views: int = 2, size: int = 10, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(N, generator=generator)[:B]
    shape = (B, 3, size, size)
    return Batch(index, [torch.randn(shape, generator=generator).double() for _ in range(views)], None)


def _moment(step: int = 0) -> Moment:
    return Moment(step, 100, torch.Generator().manual_seed(step))


def _embedded(method: Method, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """l2-normalized online embeddings and momentum targets of every view, straight from the networks."""
    assert isinstance(method.target, MomentumEncoder)
    online = [normalize(method.online.head(method.online.backbone(v)), dim=1) for v in batch.views]
    network: Any = method.target.network
    with torch.no_grad():
        return online, [normalize(network.head(network.backbone(v)), dim=1) for v in batch.views]


def _gradients(method: Method, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(method.online.parameters())))


def _assert_same_gradient(method: Method, found: Tensor, wanted: Tensor) -> None:
    for a, b in zip(_gradients(method, found), _gradients(method, wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("source", ["momentum", "online"])
def test_unigrad_has_the_gradient_of_the_authors_code_and_remembers_f(source: str) -> None:
    method = _build("unigrad", f"method.correlation_source={source}")
    assert isinstance(method, UniGrad)
    F: Tensor | None = None
    for step in range(3):
        batch = _batch(seed=step)
        (z1, z2), (z1m, z2m) = _embedded(method, batch)
        a, b = (z1m, z2m) if source == "momentum" else (z1.detach(), z2.detach())
        of_batch = (a.T @ a + b.T @ b) / (2 * B)
        F = of_batch if F is None else 0.99 * F + 0.01 * of_batch
        # The public code's form: a constant gradient times the embedding.
        grad1, grad2 = -z2m + 100 * z1 @ F, -z1m + 100 * z2 @ F
        wanted = ((grad1.detach() * z1).sum(-1).mean() + (grad2.detach() * z2).sum(-1).mean()) / 2
        outcome = method(batch, _moment(step))
        _assert_same_gradient(method, outcome.loss, wanted)
        torch.testing.assert_close(method.correlation, F)


def test_unigrad_under_cutmix_sees_mixed_images_and_mixes_the_clean_targets() -> None:
    method = _build("unigrad", "augment.cutmix.alpha=1", "seed=4")
    assert isinstance(method, UniGrad)
    batch = _batch()
    mixes = [draw_cutmix(CutMixConfig(), 4, 0, torch.arange(B) + n * B, 10) for n in range(2)]
    mixed = Batch(batch.index, [paste(v, m) for v, m in zip(batch.views, mixes, strict=True)], None)
    (u1, u2), _ = _embedded(method, mixed)
    _, (v1, v2) = _embedded(method, batch)
    F = (v1.T @ v1 + v2.T @ v2) / (2 * B)
    wanted = torch.zeros((), dtype=torch.float64)
    for u, v, mix in ((u1, v2, mixes[0]), (u2, v1, mixes[1])):
        kept = mix.kept.double().unsqueeze(1)
        positive = kept * v + (1 - kept) * v[mix.partner]
        wanted = wanted + (-(u * positive).sum(1) + 50 * ((u @ F) * u).sum(1)).mean() / 2
    outcome = method(batch, _moment())
    torch.testing.assert_close(outcome.loss, wanted)
    torch.testing.assert_close(method.correlation, F)
    assert any(not a.equal(b) for a, b in zip(mixed.views, batch.views, strict=True))


def test_unigrads_local_views_pull_towards_the_mean_of_both_global_targets() -> None:
    method = _build(
        "unigrad", "augment={views: multicrop, local: {count: 2, view: {size: 10}}}", "method.lam=0"
    )
    batch = _batch(views=4)
    _, (v1, v2, _, _) = _embedded(method, batch)
    u = [normalize(z, dim=1) for z in method.embed(batch.views)]
    positives = [v2, v1, (v1 + v2) / 2, (v1 + v2) / 2]
    wanted = sum(-(z * v).sum(1).mean() for z, v in zip(u, positives, strict=True)) / 4
    torch.testing.assert_close(method(batch, _moment()).loss, wanted)


def test_simo_draws_its_negatives_from_the_momentum_keys_of_other_images() -> None:
    method = _build("simo", "method.negatives=5", "method.alpha=64")
    batch = _batch()
    (q, _), (_, k) = _embedded(method, batch)
    # K is all others here, so the draw has no say.
    wanted = torch.zeros((), dtype=torch.float64)
    for i in range(B):
        s0 = (q[i] @ k[i] / 0.2).exp()
        others = sum((q[i] @ k[j] / 0.2).exp() for j in range(B) if j != i)
        wanted = wanted - (s0 / (s0 + 64 / 5 * others)).log() / B
    torch.testing.assert_close(method(batch, _moment()).loss, wanted)


def test_simo_with_fewer_negatives_draws_anew_at_every_step() -> None:
    method = _build("simo", "method.negatives=2")
    batch = _batch()
    losses = [method(batch, _moment(step)).loss.item() for step in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_mocos_queue_holds_the_keys_of_earlier_batches() -> None:
    method = _build("simo", "method={name: moco, queue: 12}")
    assert isinstance(method, MoCo)
    before, batch = method.queue.clone(), _batch()
    (q, _), (_, k) = _embedded(method, batch)
    wanted = torch.zeros((), dtype=torch.float64)
    for i in range(B):
        s0, others = (q[i] @ k[i] / 0.2).exp(), (before @ q[i] / 0.2).exp().sum()
        wanted = wanted - (s0 / (s0 + others)).log() / B
    outcome = method(batch, _moment())
    torch.testing.assert_close(outcome.loss, wanted)
    torch.testing.assert_close(method.queue, torch.cat([before[B:], k]))
    _gradients(method, outcome.loss)


def test_shuffling_bn_changes_nothing_for_a_single_process() -> None:
    losses = []
    for shuffled in ("false", "true"):
        method = _build("simo", f"method={{name: moco, queue: 12, shuffle_bn: {shuffled}}}", "sync_bn=false")
        losses.append(method(_batch(), _moment()).loss)
    torch.testing.assert_close(losses[0], losses[1])


def _lightly() -> Any:
    return pytest.importorskip("lightly.loss", reason="lightly, the reference implementation, is missing")


REFERENCES: dict[str, tuple[str, Callable[[Any, Method, Batch], Tensor]]] = {
    "simclr": (
        "method={name: simclr, tau: 0.3}",
        lambda loss, m, b: loss.NTXentLoss(temperature=0.3)(*m.embed(b.views)),
    ),
    "barlow_twins": (
        "method={name: barlow_twins, lam: 0.01}",
        lambda loss, m, b: loss.BarlowTwinsLoss(lambda_param=0.01)(*m.embed(b.views)),
    ),
    # VICReg's weights (25, 25, 1) on means over d = 7 dimensions: see objectives.decorrelation.vicreg_loss.
    "vicreg": (
        "method={name: vicreg, lam1: 0.56, lam2: 7}",
        lambda loss, m, b: loss.VICRegLoss()(*m.embed(b.views)) * 7 / 25,
    ),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_weight_sharing_method_has_the_loss_and_gradient_of_lightlys(name: str) -> None:
    override, reference = REFERENCES[name]
    method, batch = _build("unigrad", override), _batch()
    wanted = reference(_lightly(), method, batch)
    outcome = method(batch, _moment())
    torch.testing.assert_close(outcome.loss, wanted, rtol=1e-4, atol=1e-6)
    for a, b in zip(_gradients(method, outcome.loss), _gradients(method, wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["byol", "simsiam"])
def test_a_predictor_stands_on_the_online_branch_only(kind: str) -> None:
    similarity = _lightly().NegativeCosineSimilarity()
    method, batch = _build("unigrad", f"method={{name: {kind}, predictor: {{hidden: 9}}}}"), _batch()
    assert isinstance(method, BYOL)
    z1, z2, p1, p2 = method.embed(batch.views)
    v1, v2 = z1.detach(), z2.detach()
    if isinstance(method.target, MomentumEncoder):
        v1, v2 = method.target(batch.views, [])
    torch.testing.assert_close(p1, method.predictor(z1))
    wanted = (similarity(p1, v2) + similarity(p2, v1)) / 2
    outcome = method(batch, _moment())
    torch.testing.assert_close(outcome.loss, wanted)
    _assert_same_gradient(method, outcome.loss, wanted)


def test_simclrs_positives_alone_may_come_from_the_momentum_encoder() -> None:
    override = "method={name: simclr, tau: 0.3, target: {name: momentum}, negatives_from: online}"
    method, batch = _build("unigrad", override), _batch()
    u, v = _embedded(method, batch)
    queries, views = torch.cat(u), torch.cat(u).detach()
    wanted = torch.zeros((), dtype=torch.float64)
    for i in range(2 * B):
        other = (i + B) % (2 * B)
        s0 = (queries[i] @ torch.cat(v)[other] / 0.3).exp()
        others = sum((queries[i] @ views[j] / 0.3).exp() for j in range(2 * B) if j not in (i, other))
        wanted = wanted - (s0 / (s0 + others)).log() / (2 * B)
    outcome = method(batch, _moment())
    torch.testing.assert_close(outcome.loss, wanted)
    _assert_same_gradient(method, outcome.loss, wanted)


def test_feature_calibrate_fills_the_bank_and_leaves_no_trace_in_the_network() -> None:
    method = _build("sqrtkl")
    assert isinstance(method, SqrtKL)
    batches = []
    for start in (0, 7, 14):
        index = torch.arange(start, start + 6)
        views = [torch.randn(6, 3, 10, 10, generator=torch.Generator().manual_seed(start)).double()]
        batches.append(Batch(index, views, None))
    before = {name: value.clone() for name, value in method.online.state_dict().items()}
    rows = method.bank.tensor.clone()
    method.begin(batches)
    for batch in batches:
        (z,) = method.embed(batch.views)
        torch.testing.assert_close(method.bank.rows(batch.index), normalize(z.detach(), dim=1))
    assert method.bank.tensor[6].equal(rows[6])
    fresh = _build("sqrtkl")
    fresh.begin(batches)
    assert all(value.equal(before[name]) for name, value in fresh.online.state_dict().items())

    cold = _build("sqrtkl", "method.feature_calibrate=false")
    cold.begin(batches)
    assert isinstance(cold, SqrtKL) and cold.bank.tensor.equal(rows)


@pytest.mark.parametrize("corrected", [True, False])
def test_the_bank_moves_along_the_corrected_direction(corrected: bool) -> None:
    method = _build("sqrtkl", f"method.grad_update={str(corrected).lower()}")
    assert isinstance(method, SqrtKL)
    batch = _batch(views=1)
    with torch.no_grad():
        z = normalize(method.online(batch.views[0]).double(), dim=1)
    before = method.bank.tensor.clone()
    p = (z @ before.T / 0.07).softmax(1)
    method(batch, _moment())
    for i, row in enumerate(batch.index):
        direction = z[i]
        if corrected:
            others = sum(p[j, row] * z[j] for j in range(B) if j != i)
            direction = (1 - p[i, row]) * z[i] - others
        wanted = normalize(0.5 * before[row] + 0.5 * direction, dim=0)
        torch.testing.assert_close(method.bank.tensor[row], wanted, rtol=1e-5, atol=1e-6)
    untouched = [n for n in range(N) if n not in batch.index]
    assert method.bank.tensor[untouched].equal(before[untouched])


def test_the_target_follows_before_the_step_with_the_schedules_momentum() -> None:
    method = _build("unigrad", "method.target={name: momentum, start: 0.5, end: 0.5}")
    assert isinstance(method.target, MomentumEncoder)
    behind = next(method.target.parameters()).clone()
    ahead = next(method.online.parameters()).detach()
    method.advance(_moment(3))
    torch.testing.assert_close(next(method.target.parameters()), 0.5 * behind + 0.5 * ahead)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_method_of_a_seed_starts_from_the_same_backbone(seed: int) -> None:
    states = []
    for name in ("unigrad", "simo", "sqrtkl"):
        states.append(_build(name, f"seed={seed}").online.backbone.state_dict())
    for other in states[1:]:
        assert all(value.equal(states[0][key]) for key, value in other.items())
