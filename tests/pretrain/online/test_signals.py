"""Online signals change nothing of a training, and are the same after an interruption."""

import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import carryover
from carryover.configs import UserError
from carryover.configs.files import sha256_file
from carryover.core.formats.canonical import load_canonical
from carryover.core.formats.metrics_log import read_metrics
from carryover.core.formats.state import load_state
from carryover.core.training.interrupt import Interrupted
from carryover.pretrain.online_config import OnlineConfig
from carryover.pretrain.trainer import train
from tests.interrupting import stop_after
from tests.pretrain.tiny import SIDE, TinyBackbone, recipe, tiny_backbone, write_images

__all__ = ["tiny_backbone"]

SMALL = "online={train_images: 24, test_images: 16, lidar_images: 6, lidar_views: 3, every: 3}"
NAMES = (
    "online_knn",
    "online_linear",
    "rankme",
    "rankme_features",
    "lidar",
    "val_alignment",
    "val_uniformity",
)
FEW = {"train_images": 24, "test_images": 16, "lidar_images": 6, "lidar_views": 3}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train")
    write_images(root / "val")
    return root


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("name", ["unigrad", "sqrtkl", "supervised"])
def test_weights_and_state_are_the_same_bit_for_bit_with_signals_and_without(
    images: Path, tmp_path: Path, name: str
) -> None:
    plain = train(recipe(name, images), tmp_path / "off")
    looked = train(recipe(name, images, [SMALL]), tmp_path / "on")
    assert load_canonical(plain)[1].recipe_hash == load_canonical(looked)[1].recipe_hash
    states = [load_state(path.parent / "checkpoint.pt") for path in (plain, looked)]
    assert states[0] is not None and states[1] is not None
    for part in ("method", "optimizer"):
        before, after = (_flat(state[part]) for state in states if state is not None)
        assert before.keys() == after.keys()
        assert all(before[k].equal(after[k]) for k in before), part
    rows = [list(read_metrics(path.parent / "metrics.jsonl")) for path in (plain, looked)]
    shared = [[{k: row[k] for k in ("step", "loss", "lr")} for row in of] for of in rows]
    assert shared[0] == shared[1]


@pytest.mark.usefixtures("tiny_backbone")
def test_signals_are_in_the_log_where_they_are_due(images: Path, tmp_path: Path) -> None:
    train(recipe("unigrad", images, [SMALL, "log_every=1000"]), tmp_path)
    rows = list(read_metrics(tmp_path / "metrics.jsonl"))
    looked = [row["step"] for row in rows if "rankme" in row]
    assert looked == [3, 6, 9, 10]
    for row in rows:
        present = [name for name in NAMES if name in row]
        assert present == (list(NAMES) if row["step"] in looked else [])
    last = rows[-1]
    assert 0 <= last["online_knn"] <= 100 and 0 <= last["online_linear"] <= 100
    assert 1 <= last["rankme_features"] <= 8.01 and last["val_alignment"] >= 0


@pytest.mark.usefixtures("tiny_backbone")
def test_an_interrupted_training_has_the_log_of_one_that_never_stopped(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe("simo", images, [SMALL])
    whole = train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(5, signal.SIGUSR2, patch)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "parts")
    parts = train(config, tmp_path / "parts")
    before, after = (load_canonical(path)[0] for path in (whole, parts))
    assert all(before[name].equal(after[name]) for name in before)
    logs = []
    for path in (whole, parts):
        rows = list(read_metrics(path.parent / "metrics.jsonl"))
        logs.append([{k: row.get(k) for k in ("step", "loss", *NAMES)} for row in rows])
    assert logs[0] == logs[1]


@pytest.mark.usefixtures("tiny_backbone")
def test_without_a_held_out_split_ranks_remain(images: Path, tmp_path: Path) -> None:
    train(recipe("unigrad", images, [SMALL, "online.split=null"]), tmp_path)
    last = list(read_metrics(tmp_path / "metrics.jsonl"))[-1]
    assert "rankme" in last and "lidar" in last
    assert "online_knn" not in last


@pytest.mark.usefixtures("tiny_backbone")
def test_a_split_that_is_not_there_is_named(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        train(recipe("unigrad", images, [SMALL, "online.split=nowhere"]), tmp_path)


def test_a_look_takes_the_share_of_the_trainings_passes_that_it_may() -> None:
    config = OnlineConfig(train_images=512, test_images=512, lidar_images=64, lidar_views=8, share=0.01)
    assert config.images == 1536
    # 2 views of 256 images, and a backward pass of twice the cost: 1536 passes a step.
    assert config.steps_between(512) == 100
    assert config.steps_between(64) == 800
    assert config.model_copy(update={"every": 7}).steps_between(512) == 7


class _Net(nn.Module):
    """A network with dropout and batch norm, in training."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = TinyBackbone()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.drop(self.trunk(x))
        return found


def _loop(
    images: Path, signals: "carryover.OnlineSignals | None"
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Train for six steps as somebody else would."""
    torch.manual_seed(0)
    network, head = _Net(), nn.Linear(8, 4)
    network.trunk.bn1.eval()
    optimizer = torch.optim.SGD([*network.parameters(), *head.parameters()], lr=0.1)
    seen = []
    for step in range(1, 7):
        x = torch.randn(8, 3, SIDE, SIDE)
        loss = head(network(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if signals is not None:
            numbers = signals(step, network, head)
            seen += [numbers["lidar"]] if numbers else []
        optimizer.step()
    assert not network.trunk.bn1.training and network.drop.training
    return {**network.state_dict(), **head.state_dict()}, seen


def test_somebody_elses_loop_trains_as_if_nobody_had_looked(images: Path, tmp_path: Path) -> None:
    plain, _ = _loop(images, None)
    digests = []
    for name in ("a", "b"):
        out = tmp_path / name
        with carryover.OnlineSignals(images, size=10, every=2, out=out, **FEW) as signals:
            looked, seen = _loop(images, signals)
        assert len(seen) == 3
        assert all(plain[key].equal(looked[key]) for key in plain)
        digests.append(sha256_file(out / "metrics.jsonl"))
        assert list((out / "tensorboard").iterdir())
    assert digests[0] == digests[1]
    rows = list(read_metrics(tmp_path / "a" / "metrics.jsonl"))
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert all(isinstance(row[name], float) for row in rows for name in NAMES)


def test_somebody_elses_loop_gets_numbers_without_files(images: Path) -> None:
    signals = carryover.OnlineSignals(
        images, size=10, images_per_step=16, tensorboard=False, share=1.0, **FEW
    )
    assert signals.every == 2
    assert signals(1, _Net()) == {}
    assert set(signals(2, _Net())) == set(NAMES)


def test_settings_of_ones_own_are_checked(images: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'lidar_views'"):
        carryover.OnlineSignals(images, size=10, every=2, lidar_view=3)
    with pytest.raises(ValueError, match="images_per_step"):
        carryover.OnlineSignals(images, size=10)


def _flat(tree: object, where: str = "") -> dict[str, torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return {where: tree}
    if isinstance(tree, dict):
        return {k: v for key, of in tree.items() for k, v in _flat(of, f"{where}.{key}").items()}
    return {}
