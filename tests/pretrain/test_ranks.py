"""Two processes train what one does on the same global batch: losses and weights, for every method."""

import os
import signal
from pathlib import Path

import pytest
from torch import Tensor, nn

import carryover.pretrain.methods
import carryover.pretrain.trainer
from carryover.configs import UserError
from carryover.core.data.prepared import Batch
from carryover.core.formats.metrics_log import read_metrics
from carryover.core.formats.state import load_state
from carryover.core.training.interrupt import Interrupted
from carryover.pretrain.methods import Method, Moment, Outcome
from carryover.pretrain.trainer import train
from tests.pretrain.ranks import on_ranks
from tests.pretrain.tiny import build_plain, build_tiny, recipe, tiny_backbone, write_images

__all__ = ["tiny_backbone"]

MULTICROP = ("augment.views=multicrop", "augment.local.count=2", "augment.local.view.size=8")
LOCAL_BLUR = "augment.local.view.blur=null"
CASES: dict[str, tuple[str, ...]] = {
    "unigrad": ("unigrad",),
    "unigrad-online": ("unigrad", "method.correlation_source=online"),
    "unigrad-multicrop": ("unigrad", *MULTICROP, LOCAL_BLUR),
    "unigrad-cutmix": ("unigrad", "augment.cutmix.alpha=1"),
    "unigrad-cutmix-multicrop": ("unigrad", "augment.cutmix.alpha=1", *MULTICROP, LOCAL_BLUR),
    "simo": ("simo",),
    "moco": ("simo", "method={name: moco, queue: 12, symmetric: true}"),
    "moco-short-queue": ("simo", "method={name: moco, queue: 5, alpha: 64}"),
    "simclr": ("unigrad", "method={name: simclr}"),
    "simclr-sampled": ("unigrad", "method={name: simclr, negatives: 4, alpha: 32}"),
    "simclr-momentum": (
        "unigrad",
        "method={name: simclr, target: {name: momentum}, negatives_from: online}",
    ),
    "byol": ("unigrad", "method={name: byol, predictor: {hidden: 10}}"),
    "simsiam": ("unigrad", "method={name: simsiam, predictor: {hidden: 10}}"),
    "directpred": ("unigrad", "method={name: directpred}"),
    "barlow": ("unigrad", "method={name: barlow_twins}"),
    "barlow-simplified": ("unigrad", "method={name: barlow_twins, form: simplified, normalisation: l2}"),
    "vicreg": ("unigrad", "method={name: vicreg, lam1: 1, lam2: 6}"),
    "vicreg-simplified": (
        "unigrad",
        "method={name: vicreg, form: simplified, target: {name: momentum}, negatives_from: target}",
    ),
    "msbreg": ("unigrad", *MULTICROP, LOCAL_BLUR, "method={name: msbreg, predictor: {hidden: 10}}"),
    "sqrtkl": ("sqrtkl",),
    "sqrtkl-sharded": ("sqrtkl", "method.bank_sharded=true"),
    "npid": ("sqrtkl", "method={name: npid, proximal: 1}"),
    "npid-sharded": ("sqrtkl", "method={name: npid, proximal: 1, bank_sharded: true}"),
    "supervised": ("supervised",),
}
# Rates at which a few steps amplify rounding little; the objective's scales differ by orders of magnitude.
CALM = (
    "optimizer.base_lr=0.01",
    "data.subset.count=24",
    "schedule.epochs=1",
    "schedule.warmup_epochs=0",
    "sync_bn=true",
)


# Without batch norm, which sees the parts of an accumulated batch, these too equal one undivided batch.
ACCUMULATED = (
    "unigrad",
    "unigrad-cutmix",
    "simo",
    "simclr",
    "barlow",
    "msbreg",
    "sqrtkl-sharded",
    "supervised",
)
PLAIN = ("projector={norm: none, norm_last: false}", "method.predictor.norm=none")


def _run_accumulated(case: str, images: Path, out: Path, parts: int) -> None:
    name, *overrides = CASES[case]
    overrides += [] if case == "supervised" else [PLAIN[0]]
    overrides += [PLAIN[1]] if case == "msbreg" else []
    train(recipe(name, images, [*overrides, *CALM, f"accumulate={parts}"]), out / f"{case}-accumulated")


def _run(case: str, images: Path, out: Path) -> None:
    name, *overrides = CASES[case]
    train(recipe(name, images, [*overrides, *CALM]), out / case)


def _run_interrupted(rank: int, images: Path, out: Path) -> None:
    """Tell one rank alone to stop in the middle of its first step; all leave after the second, and resume."""
    real = carryover.pretrain.trainer.backward

    def told(model: nn.Module, method: Method, batch: Batch, moment: Moment, parts: int) -> Outcome:
        if rank == 1 and moment.step == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(model, method, batch, moment, parts)

    config = recipe("sqrtkl", images, [*CASES["sqrtkl-sharded"][1:], *CALM])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(carryover.pretrain.trainer, "backward", told)
        with pytest.raises(Interrupted):
            train(config, out / "interrupted")
    state = load_state(out / "interrupted" / "checkpoint.pt")
    assert state is not None and state["step"] == 2
    train(config, out / "interrupted")


def _run_all(rank: int, images: Path, out: Path) -> dict[str, int]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(carryover.pretrain.methods, "build_backbone", build_tiny)
        for case in CASES:
            _run(case, images, out)
        _run_interrupted(rank, images, out)
        patched.setattr(carryover.pretrain.methods, "build_backbone", build_plain)
        for case in ACCUMULATED:
            _run_accumulated(case, images, out, 2)
        with pytest.raises(UserError, match="batch_size 9 cannot be divided evenly among 2 processes"):
            train(recipe("unigrad", images, ["batch_size=9"]), out / "uneven")
    return {"rank": rank}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def by_two(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of two processes, all in one start of them, which is the slow part."""
    out = tmp_path_factory.mktemp("two")
    on_ranks(2, _run_all, tmp_path_factory.mktemp("ranks"), images, out)
    return out


def _weights(out: Path) -> dict[str, Tensor]:
    state = load_state(out / "checkpoint.pt")
    assert state is not None
    flat: dict[str, Tensor] = {}
    for name, value in state["method"].items():
        flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def test_ranks_of_which_one_was_told_to_stop_stop_together_and_resume_exactly(by_two: Path) -> None:
    whole, resumed = (_weights(by_two / run) for run in ("sqrtkl-sharded", "interrupted"))
    assert whole.keys() == resumed.keys()
    assert all(value.equal(resumed[name]) for name, value in whole.items())


def _assert_same_training(one: Path, two: Path) -> None:
    ours, theirs = ([row["loss"] for row in read_metrics(out / "metrics.jsonl")] for out in (one, two))
    assert theirs == pytest.approx(ours, rel=1e-4, abs=2e-5)
    found = _weights(two)
    for name, wanted in _weights(one).items():
        difference = (found[name].double() - wanted.double()).abs().max().item()
        assert difference <= 2e-5 + 1e-4 * wanted.double().abs().max().item(), name


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_does(case: str, images: Path, by_two: Path, tmp_path: Path) -> None:
    _run(case, images, tmp_path)
    _assert_same_training(tmp_path / case, by_two / case)


@pytest.mark.parametrize("case", ACCUMULATED)
def test_two_processes_that_accumulate_in_parts_train_what_one_undivided_batch_does(
    case: str, images: Path, by_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carryover.pretrain.methods, "build_backbone", build_plain)
    _run_accumulated(case, images, tmp_path, 1)
    _assert_same_training(tmp_path / f"{case}-accumulated", by_two / f"{case}-accumulated")
