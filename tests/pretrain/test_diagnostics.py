"""The diagnostics measure what their papers define, and collapse is named and stops a run."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import carryover.pretrain.trainer
from carryover.configs import UserError, WorkError
from carryover.core.formats.metrics_log import read_metrics
from carryover.core.formats.state import load_state
from carryover.core.training.journal import Journal
from carryover.pretrain.diagnostics import (
    diagnose,
    embedding_spread,
    pair_similarities,
    principal_component_ratio,
    refuse_collapse,
    uniformity,
)
from carryover.pretrain.methods import Outcome
from carryover.pretrain.trainer import train
from tests.pretrain.tiny import recipe, tiny_backbone, write_images

__all__ = ["tiny_backbone"]


def _unit(count: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=1)


def test_similarities_of_positive_and_negative_pairs() -> None:
    q, k = _unit(5, 4), _unit(5, 4, seed=1)
    cosines = q @ k.T
    positive, negative = pair_similarities(q, k)
    torch.testing.assert_close(positive, cosines.diagonal().mean())
    torch.testing.assert_close(negative, cosines[~torch.eye(5, dtype=torch.bool)].mean())


def test_alignment_and_uniformity_are_wang_and_isolas() -> None:
    q, k = _unit(6, 4), _unit(6, 4, seed=1)
    numbers = diagnose(q, k, None)
    torch.testing.assert_close(numbers["alignment"], (q - k).square().sum(1).mean())
    potentials = [
        math.exp(-2 * float((q[i] - q[j]).square().sum())) for i in range(6) for j in range(6) if i < j
    ]
    assert uniformity(q).item() == pytest.approx(math.log(sum(potentials) / len(potentials)), rel=1e-5)


def test_the_query_gradients_norm_is_that_of_each_querys_own_loss() -> None:
    q = _unit(4, 3).requires_grad_()
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    (weights.unsqueeze(1) * q).sum(1).mean().backward()
    numbers = diagnose(q, None, q.grad)
    norms = weights * 3**0.5
    torch.testing.assert_close(numbers["query_gradient_norm"], norms.mean())
    torch.testing.assert_close(numbers["query_gradient_norm_std"], norms.std())


def test_the_principal_component_ratio_counts_what_explains_nine_tenths() -> None:
    # Ten equal components explain 90 % only together with the tenth: the sum must exceed it.
    basis = torch.cat([torch.eye(10), -torch.eye(10)]).double()
    assert principal_component_ratio(basis).item() == pytest.approx(1.0)
    one = torch.zeros(12, 10, dtype=torch.float64)
    one[:, 0] = torch.arange(12)
    assert principal_component_ratio(one).item() == pytest.approx(0.1)
    # Fewer rows than dimensions: out of as many as there can be.
    wide = _unit(6, 50)
    values = torch.linalg.svdvals(wide - wide.mean(0)) ** 2
    count = int((values.cumsum(0) <= 0.9 * values.sum()).sum()) + 1
    assert principal_component_ratio(wide).item() == pytest.approx(count / 6)


def test_spread_is_one_on_the_sphere_and_nothing_at_a_point() -> None:
    assert embedding_spread(_unit(4000, 64)).item() == pytest.approx(1, abs=0.02)
    assert embedding_spread(_unit(1, 64).expand(10, 64)).item() == pytest.approx(0, abs=1e-6)


def test_collapse_is_refused_by_name() -> None:
    refuse_collapse({"embedding_spread": 0.2, "loss": 1.0}, 5)
    refuse_collapse({"accuracy": 0.2}, 5)
    with pytest.raises(WorkError, match="collapsed at step 5: all images are mapped to one point"):
        refuse_collapse({"embedding_spread": 0.001}, 5)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.mark.usefixtures("tiny_backbone")
def test_a_run_that_collapses_stops_with_the_state_from_before(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = carryover.pretrain.trainer._diagnosed
    steps = iter(range(1, 100))

    def collapsing(outcome: Outcome) -> dict[str, float]:
        return real(outcome) | ({"embedding_spread": 1e-4} if next(steps) >= 7 else {})

    monkeypatch.setattr(carryover.pretrain.trainer, "_diagnosed", collapsing)
    with pytest.raises(WorkError, match="collapsed at step 7"):
        train(recipe("unigrad", images), tmp_path)
    state = load_state(tmp_path / "checkpoint.pt")
    assert state is not None and state["step"] == 5


@pytest.mark.usefixtures("tiny_backbone")
def test_nearest_neighbors_and_tensorboard_follow_a_training(images: Path, tmp_path: Path) -> None:
    split = tmp_path / "data"
    for part in ("train", "val"):
        (split / part).parent.mkdir(exist_ok=True)
        (split / part).symlink_to(images)
    knn = "knn={every: 1, split: val, images: 30, k: 3}"
    train(recipe("supervised", split, [knn, "tensorboard=true"]), tmp_path / "out")
    rows = list(read_metrics(tmp_path / "out" / "metrics.jsonl"))
    probed = {row["step"]: row["knn_accuracy"] for row in rows if "knn_accuracy" in row}
    assert set(probed) == {5, 10}
    # The held-out images are the training images here: each is its own nearest neighbor.
    assert all(40 < accuracy <= 100 for accuracy in probed.values())
    assert list((tmp_path / "out" / "tensorboard").glob("events.*"))

    train(recipe("supervised", split), tmp_path / "unprobed")
    plain, seen = (load_state(tmp_path / run / "checkpoint.pt") for run in ("unprobed", "out"))
    assert plain is not None and seen is not None
    assert all(value.equal(seen["method"][name]) for name, value in plain["method"].items())


@pytest.mark.usefixtures("tiny_backbone")
def test_a_split_that_is_not_there_is_found_before_training(images: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(images)
    with pytest.raises(UserError, match="nowhere"):
        train(recipe("unigrad", tmp_path / "data", ["knn={split: nowhere}"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_journal_resumed_from_a_step_forgets_what_came_after(tmp_path: Path) -> None:
    with Journal(tmp_path, 0, tensorboard=False) as journal:
        for step in (1, 2, 3):
            journal.write(step, {"loss": float(step)})
    with Journal(tmp_path, 2, tensorboard=False) as journal:
        journal.write(3, {"loss": 30.0})
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 2.0, 30.0]
