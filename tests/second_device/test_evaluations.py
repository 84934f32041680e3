"""Every probe and fine-tuning on the second device: the CPU's numbers, and no step that waits for it."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import carryover
from carryover.configs import load
from carryover.core.backbones.inspection import load_backbone
from carryover.core.training.interrupt import Interrupted
from carryover.transfer.results.record import ResultRecord
from carryover.transfer.tasks.evaluate import evaluate
from tests.interrupting import stop_after
from tests.second_device.steps import StepCosts, count_steps
from tests.transfer.tasks.classification import test_finetune as finetuning
from tests.transfer.tasks.classification import test_probes as probes
from tests.transfer.tasks.classification.conftest import checkpoint, images, resnet
from tests.transfer.tasks.classification.samples import CLASSES
from tests.transfer.tasks.classification.test_probes import voc

__all__ = ["checkpoint", "images", "resnet", "voc"]

Make = Callable[..., Any]


def _both(
    make: Make, network: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[ResultRecord, ResultRecord, StepCosts]:
    """Evaluate on both devices, with features of their own."""
    at_first = evaluate(make("device=cpu"), network, out / "cpu")
    with monkeypatch.context() as patched:
        steps = count_steps(patched)
        there = evaluate(make("device=second"), network, out / "second")
    assert there.hardware == "1x second device" and there.gpu_hours == pytest.approx(
        there.wall_seconds / 3600
    )
    assert at_first.gpu_hours == 0 and "second" not in at_first.hardware
    return at_first, there, steps


def test_every_probe_gives_the_cpus_numbers(
    images: Path,
    voc: Path,
    resnet: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    second: torch.device,
) -> None:
    shrunk = ("image.pixel_mean=null", "image.pixel_std=null", "costs=[1.0]")
    data = f"data={{root: {voc}, classes: [{', '.join(CLASSES)}]}}"
    protocol = (*probes.PROTOCOL, "mode.schedule.epochs=2", "log_every=100")

    def probe(name: str, *overrides: str) -> Make:
        return lambda *more: probes.recipe(name, images, *overrides, *more)

    for name, make in {
        "k-NN": probe("knn_cifar10", "k=[1, 20]"),
        "k-NN, bfloat16": probe("knn_cifar10", "k=[5]", "precision=bf16"),
        "linear": probe("linear_cifar10", *protocol),
        "linear, LARS, a grid": probe(
            "linear_cifar10",
            *protocol,
            *probes.GRID,
            "mode.held_out=0.2",
            "mode.optimizer={name: lars, trust_coefficient: 0.001}",
        ),
        "logistic regression": probe("linear_cached_cifar10", "mode.costs=[0.01, 1.0]"),
        "t-SNE": probe("demo_tsne", "perplexity=5"),
        "SVM": lambda *more: load("transfer", "svm_voc07", [data, *probes.SMALL, *shrunk, *more]),
    }.items():
        stores = {device: tmp_path / name / f"features-{device}" for device in ("cpu", "second")}

        def stored(device: str, make: Make = make, stores: dict[str, Path] = stores) -> Any:
            return make(device, f"store={stores[device.removeprefix('device=')]}")

        at_first, there, steps = _both(stored, resnet, tmp_path / name, monkeypatch)
        assert [m.value for m in there.metrics] == [m.value for m in at_first.metrics], name
        facts = [
            {k: v for k, v in record.facts.items() if not k.endswith("_seconds")}
            for record in (at_first, there)
        ]
        assert facts[0] == facts[1], name
        if name.startswith("linear"):
            assert steps.of_step[3].synchronizations == 0, sorted(steps.of_step[3].waits)
    chosen = [
        pd.read_csv(tmp_path / "linear, LARS, a grid" / device / "choices.csv")
        for device in ("cpu", "second")
    ]
    assert chosen[0].equals(chosen[1])


def test_fine_tuning_is_the_cpus_and_goes_on_on_another_device(
    images: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: torch.device
) -> None:
    quiet = ("log_every=100", "schedule.epochs=2", "keep_weights=true")
    for name, overrides in {
        "last": (),
        "bf16, best epoch": (
            "precision=bf16",
            "channels_last=true",
            "selection={name: best_epoch, held_out: 0.3}",
        ),
        "mixed": (
            "image.interpolation=bicubic",
            "image.rand_augment=rand-m9-mstd0.5-inc1",
            "image.erase={p: 0.5}",
            "mix={group: 4}",
            "smoothing=0.1",
        ),
        "attentive probe": (
            "freeze_backbone=true",
            "bn=eval",
            "head_norm=none",
            "attentive={heads: 4}",
            "optimizer={algorithm: adamw, base_lr_backbone: 0, base_lr_head: 0.003, lr_per: 8}",
        ),
    }.items():
        config = lambda *more, own=overrides: finetuning.recipe(images, *quiet, *own, *more)  # noqa: E731
        at_first, there, steps = _both(config, checkpoint, tmp_path / name, monkeypatch)
        assert there.metrics == at_first.metrics
        finetuning.assert_same_weights(tmp_path / name / "cpu", tmp_path / name / "second")
        assert steps.of_step[2].synchronizations == 0, sorted(steps.of_step[2].waits)
    for first, then in (("cpu", "second"), ("second", "cpu")):
        with monkeypatch.context() as patched:
            stop_after(3, signal.SIGTERM, patched)
            with pytest.raises(Interrupted):
                evaluate(finetuning.recipe(images, *quiet, f"device={first}"), checkpoint, tmp_path / first)
        evaluate(finetuning.recipe(images, *quiet, f"device={then}"), checkpoint, tmp_path / first)
        finetuning.assert_same_weights(tmp_path / "last" / "cpu", tmp_path / first)


def test_networks_in_memory_and_conversions_are_what_they_are_on_the_cpu(
    images: Path, resnet: Path, tmp_path: Path, second: torch.device
) -> None:
    """A network of somebody's own training: it comes back to its device, its parameters the same objects."""
    small = {"image": {"size": 32, "resize": 32}, "precision": "fp32", "workers": 0, "k": [5]}
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
    found = []
    for device in ("cpu", "second"):
        network.to(device)
        before = list(network.parameters())
        generators = torch.get_rng_state(), torch.get_device_module("second").get_rng_state()
        for asked in ("cpu", "auto"):
            result = carryover.evaluate(network, "demo_knn", data=images, device=asked, **small)
            found.append(result.metrics)
            assert all(a is b for a, b in zip(before, network.parameters(), strict=True))
            assert all(p.device.type == device for p in network.parameters())
        assert torch.equal(torch.get_rng_state(), generators[0])
        assert torch.equal(torch.get_device_module("second").get_rng_state(), generators[1])
    assert all(metrics == found[0] for metrics in found)

    # Conversions are verified on the CPU, and draw from no generator of the caller's.
    before = torch.get_device_module("second").get_rng_state()
    receipt = carryover.convert(resnet, to="torchvision", out=tmp_path / "torchvision.pth")
    assert receipt.largest_difference <= 1e-4
    assert torch.equal(torch.get_device_module("second").get_rng_state(), before)
    backbone, _ = load_backbone(resnet)
    x = torch.randn(2, 3, 32, 32)
    backbone.eval()
    with torch.no_grad():
        wanted = backbone(x)
        assert torch.equal(backbone.to(second)(x.to(second)).cpu(), wanted)
