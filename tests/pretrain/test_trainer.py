"""The trainer: what a run leaves behind, exact resumption however it was stopped, and how it refuses."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import carryover.pretrain.methods
import carryover.pretrain.trainer
from carryover.configs import UserError, WorkError, load, recipe_hash
from carryover.core.data.prepared import Batch
from carryover.core.formats.canonical import load_canonical
from carryover.core.formats.metrics_log import read_metrics
from carryover.core.formats.state import load_state
from carryover.core.training.interrupt import Interrupted
from carryover.pretrain.config import PretrainConfig
from carryover.pretrain.methods import Method, Moment, Outcome
from carryover.pretrain.trainer import train
from tests.interrupting import call_after, stop_after
from tests.pretrain.tiny import IMAGES, build_tiny, recipe, tiny_backbone, write_images

__all__ = ["tiny_backbone"]

METHODS = ("unigrad", "simo", "sqrtkl", "supervised")
STEPS = 2 * IMAGES // 8


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def _state(out: Path) -> dict[str, object]:
    state = load_state(out / "checkpoint.pt")
    assert state is not None
    state.pop("seconds")
    return state


def _same(a: object, b: object, where: str = "") -> None:
    """Assert that two nested containers are equal, tensors bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor) and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert isinstance(b, dict) and a.keys() == b.keys(), where
        for key in a:
            _same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert isinstance(b, list | tuple) and len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            _same(x, y, f"{where}[{index}]")
    else:
        assert a == b, where


@pytest.mark.usefixtures("tiny_backbone")
def test_a_run_leaves_a_canonical_checkpoint_its_recipe_and_its_metrics(images: Path, tmp_path: Path) -> None:
    config = recipe("unigrad", images, ["backbone.arch=resnet18", "seed=3"])
    path = train(config, tmp_path / "out")
    assert path == tmp_path / "out" / "backbone.safetensors"
    state, metadata = load_canonical(path)
    assert set(state) == set(build_tiny(config.backbone).state_dict())
    assert metadata.method == "unigrad"
    assert metadata.epochs == 2
    assert metadata.seed == 3
    assert metadata.input_size == 10
    assert metadata.dataset == "colored"
    assert metadata.recipe_hash == recipe_hash(config)
    assert load("pretrain", tmp_path / "out" / "recipe.yaml").method == config.method

    rows = list(read_metrics(tmp_path / "out" / "metrics.jsonl"))
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[-1]["epoch"] == 2
    assert all(row["total"] == STEPS for row in rows)
    for key in ("loss", "lr", "images_per_second", "loader_wait", "positive_similarity", "embedding_spread"):
        assert all(isinstance(row[key], float) for row in rows), key
    peak = max(row["lr"] for row in rows)
    assert peak == pytest.approx(config.peak_lr, rel=0.1)
    assert rows[-1]["lr"] < peak


@pytest.mark.usefixtures("tiny_backbone")
def test_a_checkpoint_says_what_its_training_took(images: Path, tmp_path: Path) -> None:
    """Time on the CPU; on a GPU its hours and its memory too (tests/second_device)."""
    config = recipe("unigrad", images, ["device=cpu"])
    _, metadata = load_canonical(train(config, tmp_path / "out"))
    assert metadata.wall_seconds is not None and metadata.wall_seconds > 0
    assert metadata.gpu_hours is None and metadata.peak_gpu_memory_gib is None


@pytest.mark.usefixtures("tiny_backbone")
def test_a_finished_run_is_not_trained_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe("sqrtkl", images)
    path = train(config, tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(
        carryover.pretrain.trainer, "build_dataset", lambda config: pytest.fail("read the data again")
    )
    assert train(config, tmp_path) == path
    assert path.read_bytes() == before


@pytest.mark.usefixtures("tiny_backbone")
def test_two_runs_of_one_seed_agree_bit_for_bit_and_two_seeds_do_not(images: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(recipe("simo", images, [f"seed={seed}"]), tmp_path / name)
    a, b, c = ((tmp_path / name / "backbone.safetensors") for name in "abc")
    assert load_canonical(a)[0]["conv1.weight"].equal(load_canonical(b)[0]["conv1.weight"])
    assert not load_canonical(a)[0]["conv1.weight"].equal(load_canonical(c)[0]["conv1.weight"])
    _same(_state(tmp_path / "a"), _state(tmp_path / "b"))


@pytest.mark.usefixtures("tiny_backbone")
def test_random_initialization_is_what_every_method_of_that_seed_starts_from(
    images: Path, tmp_path: Path
) -> None:
    path = train(recipe("random", Path("/nowhere"), ["seed=5"]), tmp_path)
    state, metadata = load_canonical(path)
    config = recipe("unigrad", images, ["seed=5"])
    start = carryover.pretrain.methods.build_method(config, carryover.pretrain.methods.DataFacts(IMAGES, 4))
    for name, value in start.online.backbone.state_dict().items():
        assert state[name].equal(value), name
    assert (metadata.method, metadata.epochs) == ("random", 0)


def _patched_backward(
    monkeypatch: pytest.MonkeyPatch, step: int, happens: Callable[[Outcome], Outcome]
) -> None:
    """Let `happens` befall the outcome of one step (counted from 1) of a training."""
    real = carryover.pretrain.trainer.backward

    def backward(model: nn.Module, method: Method, batch: Batch, moment: Moment, parts: int) -> Outcome:
        outcome = real(model, method, batch, moment, parts)
        return happens(outcome) if moment.step + 1 == step else outcome

    monkeypatch.setattr(carryover.pretrain.trainer, "backward", backward)


def _interrupt(
    config: PretrainConfig, out: Path, step: int, monkeypatch: pytest.MonkeyPatch, start: Path | None = None
) -> None:
    """Train until SIGUSR2 comes, in the middle of a step: the state is saved after it."""
    with monkeypatch.context() as patched:
        stop_after(step, signal.SIGUSR2, patched)
        with pytest.raises(Interrupted) as caught:
            train(config, out, start=start)
    assert caught.value.code == 128 + signal.SIGUSR2
    assert _state(out)["step"] == step
    assert not (out / "backbone.safetensors").exists()


def _losses(out: Path) -> list[dict[str, Any]]:
    # A part of a training counts its own steps, not those of the whole.
    measured = ("images_per_second", "loader_wait", "total")
    return [
        {k: v for k, v in row.items() if k not in measured} for row in read_metrics(out / "metrics.jsonl")
    ]


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("name", METHODS)
def test_interrupted_by_a_signal_and_resumed_equals_uninterrupted(
    name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(name, images)
    train(config, tmp_path / "whole")
    _interrupt(config, tmp_path / "parts", 3, monkeypatch)
    _interrupt(config, tmp_path / "parts", 8, monkeypatch)
    train(config, tmp_path / "parts")
    _same(_state(tmp_path / "whole"), _state(tmp_path / "parts"))
    assert _losses(tmp_path / "whole") == _losses(tmp_path / "parts")


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_to_every_process_of_the_job_still_saves_and_resumes_exactly(
    number: signal.Signals, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe("unigrad", images, ["workers=2", "augment.backend=loader"])
    others = set(multiprocessing.active_children())

    def signalled() -> None:
        loaders = set(multiprocessing.active_children()) - others
        assert len(loaders) == 2
        for pid in (*(p.pid for p in loaders), os.getpid()):
            assert pid is not None
            os.kill(pid, number)

    train(config, tmp_path / "whole")
    with monkeypatch.context() as patched:
        call_after(3, signalled, patched)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "parts")
    train(config, tmp_path / "parts")
    _same(_state(tmp_path / "whole"), _state(tmp_path / "parts"))


def _train_and_die(images: Path, out: Path, step: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(carryover.pretrain.methods, "build_backbone", build_tiny)
        stop_after(step, signal.SIGKILL, patched)
        train(recipe("sqrtkl", images), out)


@pytest.mark.usefixtures("tiny_backbone")
def test_killed_between_checkpoints_and_resumed_equals_uninterrupted(images: Path, tmp_path: Path) -> None:
    config = recipe("sqrtkl", images)
    train(config, tmp_path / "whole")
    killed = multiprocessing.get_context("spawn").Process(
        target=_train_and_die, args=(images, tmp_path / "parts", 8)
    )
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert _state(tmp_path / "parts")["step"] == 5
    train(config, tmp_path / "parts")
    _same(_state(tmp_path / "whole"), _state(tmp_path / "parts"))
    assert _losses(tmp_path / "whole") == _losses(tmp_path / "parts")


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("method", ["unigrad", "sqrtkl"])
def test_a_training_in_parts_equals_one_in_one_go(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    config = recipe(method, images)
    train(config, tmp_path / "whole")
    half = train(config, tmp_path / "half", until=1)
    state, metadata = load_canonical(half)
    assert metadata.epochs == 1 and metadata.recipe_hash == recipe_hash(config)
    assert not state["conv1.weight"].equal(load_canonical(tmp_path / "whole" / half.name)[0]["conv1.weight"])

    _interrupt(config, tmp_path / "rest", 8, monkeypatch, start=tmp_path / "half" / "checkpoint.pt")
    train(config, tmp_path / "rest", start=tmp_path / "half" / "checkpoint.pt")
    _same(_state(tmp_path / "whole"), _state(tmp_path / "rest"))
    assert _losses(tmp_path / "whole") == _losses(tmp_path / "rest")

    with pytest.raises(WorkError, match="no complete state to resume from"):
        train(config, tmp_path / "none", start=tmp_path / "nowhere" / "checkpoint.pt")
    with pytest.raises(UserError, match="3 epochs of a schedule of 2"):
        train(config, tmp_path / "none", until=3)


@pytest.mark.usefixtures("tiny_backbone")
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe("unigrad", images)
    train(config, tmp_path / "whole")
    _interrupt(config, tmp_path / "parts", 8, monkeypatch)
    newest = tmp_path / "parts" / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    train(config, tmp_path / "parts")
    _same(_state(tmp_path / "whole"), _state(tmp_path / "parts"))


@pytest.mark.usefixtures("tiny_backbone")
def test_gradient_accumulation_and_bf16_resume_exactly_too(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe("simo", images, ["accumulate=2", "precision=bf16", "channels_last=true"])
    train(config, tmp_path / "whole")
    _interrupt(config, tmp_path / "parts", 4, monkeypatch)
    train(config, tmp_path / "parts")
    _same(_state(tmp_path / "whole"), _state(tmp_path / "parts"))


@pytest.mark.usefixtures("tiny_backbone")
def test_a_loss_that_is_not_a_number_stops_the_run_at_its_step_and_keeps_the_last_good_state(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _patched_backward(monkeypatch, 7, lambda outcome: Outcome(outcome.loss * torch.nan, outcome.numbers))
    with pytest.raises(WorkError, match="the loss is nan at step 7"):
        train(recipe("unigrad", images, ["log_every=5"]), tmp_path)
    state = _state(tmp_path)
    assert state["step"] == 5
    method = state["method"]
    assert isinstance(method, dict)
    assert all(v.isfinite().all() for v in method.values() if isinstance(v, torch.Tensor))


@pytest.mark.usefixtures("tiny_backbone")
def test_weights_that_are_not_finite_are_never_saved(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = carryover.pretrain.trainer.build_optimizer

    class Overflowing(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.fill_(torch.inf)

    def build(config: Any, module: nn.Module, peak_lr: float) -> torch.optim.Optimizer:
        optimizer = real(config, module, peak_lr)
        optimizer.__class__ = Overflowing
        return optimizer

    monkeypatch.setattr(carryover.pretrain.trainer, "build_optimizer", build)
    with pytest.raises(WorkError, match=r"'online.*' has values that are not finite after step 1"):
        train(recipe("supervised", images, ["batch_size=40", "schedule.warmup_epochs=0"]), tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.usefixtures("tiny_backbone")
def test_an_output_directory_of_another_recipe_or_seed_is_refused_and_left_alone(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe("unigrad", images)
    _interrupt(config, tmp_path, 3, monkeypatch)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for other in (["method.lam=50"], ["seed=1"]):
        with pytest.raises(UserError, match=r"holds another work: (method|seed)"):
            train(recipe("unigrad", images, other), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    train(recipe("unigrad", images, ["log_every=3", "checkpoint_every=2"]), tmp_path)
    with pytest.raises(UserError, match=r"holds another work: (method|seed)"):
        train(recipe("unigrad", images, ["seed=1"]), tmp_path)


@pytest.mark.usefixtures("tiny_backbone")
def test_what_cannot_work_is_refused_before_anything_is_written(images: Path, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for path in images.rglob("*.png"):
        (tmp_path / "flat" / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "out"
    with pytest.raises(UserError, match="accumulate 3 must divide the 8 images"):
        train(recipe("unigrad", images, ["accumulate=3"]), out)
    with pytest.raises(UserError, match=r"accumulate 8 .* parts of at least 2"):
        train(recipe("unigrad", images, ["accumulate=8"]), out)
    with pytest.raises(UserError, match="batch_size 48 is more than the 40 images"):
        train(recipe("unigrad", images, ["batch_size=48"]), out)
    with pytest.raises(UserError, match="supervised needs labels"):
        train(recipe("supervised", tmp_path / "flat"), out)
    assert not out.exists()


@pytest.mark.usefixtures("tiny_backbone")
def test_the_progress_line_says_how_long_images_were_waited_for(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="carryover.core.training.progress"):
        train(recipe("simo", images), tmp_path / "out")
    share = list(read_metrics(tmp_path / "out" / "metrics.jsonl"))[-1]["loader_wait"]
    assert f"waited for images {share:.0%} of the time" in caplog.records[-1].message


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("method, passes", [("sqrtkl", 1), ("simo", 0)])
def test_a_pass_before_the_first_step_shows_its_progress(
    method: str, passes: int, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="carryover.core.training.progress"):
        train(recipe(method, images), tmp_path / "out")
    said = [r.message for r in caplog.records if "first pass over colored: 5/5" in r.message]
    assert len(said) == passes
