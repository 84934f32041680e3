"""What lies on the wrong device is caught: refused as CUDA would refuse it, or counted as a wait."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import carryover.core.data.loader
import carryover.pretrain.accumulate
import carryover.pretrain.trainer
from carryover.core.training import device as devices
from carryover.core.training.interrupt import Interrupted
from carryover.core.training.window import Window
from carryover.pretrain.methods.contrastive import MoCo
from carryover.pretrain.methods.instance import SqrtKL
from carryover.pretrain.methods.unigrad import UniGrad
from carryover.pretrain.trainer import train
from tests.interrupting import stop_after
from tests.pretrain.tiny import recipe, tiny_backbone, write_images
from tests.second_device.steps import count_steps
from tests.second_device.test_pretraining import SHORT

__all__ = ["tiny_backbone"]

pytestmark = pytest.mark.usefixtures("tiny_backbone")

HOST = torch.device("cpu")
Misplace = Callable[[pytest.MonkeyPatch], object]


def _bank_stays(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SqrtKL, "_apply", nn.Module._apply)


def _queue_stays(patch: pytest.MonkeyPatch) -> None:
    def moved_without(self: MoCo, fn: Any, recurse: bool = True) -> MoCo:
        queue = self.queue
        nn.Module._apply(self, fn, recurse)
        self.queue = queue
        return self

    patch.setattr(MoCo, "_apply", moved_without)


def _labels_stay(patch: pytest.MonkeyPatch) -> None:
    moved = devices.copied_to
    patch.setattr(
        carryover.core.data.loader,
        "copied_to",
        lambda x, device: moved(x, device) if x.is_floating_point() or x.dim() > 1 else x,
    )


def _correlation_is_read_as_numpy(patch: pytest.MonkeyPatch) -> None:
    own = UniGrad.objective

    def looking(self: UniGrad, *arguments: Any) -> Any:
        self.correlation.diagonal().numpy()
        return own(self, *arguments)

    patch.setattr(UniGrad, "objective", looking)


def _targets_come_from_the_host(patch: pytest.MonkeyPatch) -> None:
    own = UniGrad.targets

    def on_host(self: UniGrad, *arguments: Any) -> list[Tensor]:
        return [target.cpu() for target in own(self, *arguments)]

    patch.setattr(UniGrad, "targets", on_host)


def _drawn_on_the_host(patch: pytest.MonkeyPatch) -> None:
    seeded = devices.seeded_generator
    patch.setattr(carryover.pretrain.trainer, "seeded_generator", lambda device, seed: seeded(HOST, seed))


def _nothing_is_page_locked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(devices, "pins_memory", lambda device: False)


def _the_loss_is_looked_at(patch: pytest.MonkeyPatch) -> None:
    own = carryover.pretrain.accumulate._backward

    def looking(outcome: Any) -> None:
        own(outcome)
        assert outcome.loss.item() == outcome.loss.item()

    patch.setattr(carryover.pretrain.accumulate, "_backward", looking)


MIXED = "Expected all tensors to be on the same device"
REFUSED: dict[str, tuple[tuple[str, ...], Misplace, str]] = {
    "memory bank": (("sqrtkl",), _bank_stays, MIXED),
    "queue": (("simo", "method={name: moco, queue: 12}"), _queue_stays, MIXED),
    "labels": (("supervised",), _labels_stay, MIXED),
    "NumPy": (("unigrad",), _correlation_is_read_as_numpy, "to numpy. Use Tensor.cpu()"),
    "targets": (("unigrad",), _targets_come_from_the_host, MIXED),
}
# What CUDA does not refuse costs the host a wait at every step, and the caller is named.
WAITS: dict[str, tuple[tuple[str, ...], Misplace, str]] = {
    "negatives drawn on the host": (("simo",), _drawn_on_the_host, "sample_negatives"),
    "ordinary memory": (("unigrad",), _nothing_is_page_locked, "copied_to"),
    "a look at the loss": (("unigrad",), _the_loss_is_looked_at, "accumulate.py:backward"),
}


def test_what_lies_on_the_wrong_device_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: torch.device
) -> None:
    images = write_images(tmp_path / "images")
    assert len(REFUSED) >= 5
    for name, ((method, *overrides), misplace, said) in REFUSED.items():
        with monkeypatch.context() as patched:
            misplace(patched)
            with pytest.raises((RuntimeError, TypeError), match=said):
                train(recipe(method, images, [*SHORT, *overrides, "device=second"]), tmp_path / name)
    for name, ((method, *overrides), misplace, who) in WAITS.items():
        with monkeypatch.context() as patched:
            misplace(patched)
            steps = count_steps(patched)
            train(recipe(method, images, [*SHORT, *overrides, "device=second"]), tmp_path / name)
        assert any(who in caller for caller in steps.of_step[3].waits), (name, steps.of_step[3].waits)

    # An open line of the log that is read back onto the host, as it once was.
    own = Window.load
    with monkeypatch.context() as patched:
        stop_after(2, signal.SIGUSR2, patched)
        with pytest.raises(Interrupted):
            train(recipe("unigrad", images, [*SHORT, "device=second"]), tmp_path / "resumed")
    with monkeypatch.context() as patched:
        patched.setattr(Window, "load", lambda self, state, device: own(self, state, HOST))
        with pytest.raises(RuntimeError, match=MIXED):
            train(recipe("unigrad", images, [*SHORT, "device=second"]), tmp_path / "resumed")
