"""Detection and segmentation on the second device, in every library: the CPU's weights and numbers.

How often a step waits is counted, and who waits: of ours only where a result's size is the number of positive
regions, or of regions on a level of the pyramid, as in the libraries themselves.
"""

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.ops import roi_align

from carryover.core.training.interrupt import Interrupted
from carryover.transfer.tasks.detection.torchvision import heads
from carryover.transfer.tasks.evaluate import evaluate
from tests.interrupting import stop_after
from tests.second_device.counting import Costs
from tests.second_device.steps import count_steps
from tests.transfer.convert.timm_backbones import write_timm
from tests.transfer.tasks.detection import runs
from tests.transfer.tasks.detection.conftest import checkpoint, shapes
from tests.transfer.tasks.segmentation import scenes
from tests.transfer.tasks.segmentation.conftest import root

__all__ = ["checkpoint", "root", "shapes"]

# Whole runs, several a test.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

Make = Callable[[str], Any]
# A state is saved at the end alone, and nothing is reported before it.
QUIET = ("log_every=100", "checkpoints=1", "workers=0")


def _same_on_both(
    make: Make, weights: str, network: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> Costs:
    """Evaluate on both devices, compare weights and metrics, and return what the fourth step cost."""
    at_first = evaluate(make("device=cpu"), network, out / "cpu")
    with monkeypatch.context() as patched:
        steps = count_steps(patched)
        there = evaluate(make("device=second"), network, out / "second")
    assert there.metrics == at_first.metrics
    ours, theirs = (load_file(out / device / weights) for device in ("cpu", "second"))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(theirs[name], value), name
    return steps.of_step[4]


def _resumes_elsewhere(
    make: Make, weights: str, network: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop on one device and go on on the other, both ways; `out` holds the whole run of the CPU."""
    whole = load_file(out / "cpu" / weights)
    for first, then in (("cpu", "second"), ("second", "cpu")):
        with monkeypatch.context() as patched:
            stop_after(3, signal.SIGUSR2, patched)
            with pytest.raises(Interrupted):
                evaluate(make(f"device={first}"), network, out / f"{first} first")
        evaluate(make(f"device={then}"), network, out / f"{first} first")
        parts = load_file(out / f"{first} first" / weights)
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-4)


def _of_ours(costs: Costs) -> dict[str, int]:
    """Return how often each function of ours waits, whatever for."""
    ours: dict[str, int] = {}
    for who, times in costs.waits.items():
        path, _, function = who.split(": ")[0].partition(":")
        if path.startswith(("transfer/", "core/")):
            name = f"{Path(path).name}:{function.split('.<locals>')[0]}"
            ours[name] = ours.get(name, 0) + times
    return ours


def _detection(shapes: Path, recipe: str, *overrides: str, tiny: Sequence[str] = runs.TINY) -> Make:
    return lambda device: runs.recipe(recipe, shapes, *QUIET, *overrides, device, tiny=tiny)


def _torchvisions_align(feature: Tensor, regions: Tensor, size: int, scale: float) -> Tensor:
    return roi_align(feature.float(), regions, (size, size), scale, sampling_ratio=0, aligned=True)


# Regions for res5's batch statistics are sampled after the loader has drawn from the host's generator: on the
# host from that one as well, on a device from its own.
NOT_AGAIN = ("precise_bn=0",)
GENTLE = ("solver.base_lr=0.001", "model.fpn_norm=LN", "model.head_norm=LN")
DETECTORS: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
    "faster R-CNN, FPN": ("demo_faster_fpn", (), runs.TINY),
    "mask R-CNN, FPN": ("demo_mask_fpn", (), runs.TINY),
    "faster R-CNN, C4": ("demo_faster_c4", NOT_AGAIN, runs.TINY_C4),
}


def test_torchvisions_detectors_train_as_on_the_cpu(
    shapes: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: torch.device
) -> None:
    # On a CPU regions are cut out by sums of our own, elsewhere by torchvision's kernel: here by the latter.
    monkeypatch.setattr(heads, "region_align", _torchvisions_align)
    for name, (recipe, overrides, tiny) in DETECTORS.items():
        make = _detection(shapes, recipe, *overrides, tiny=tiny)
        costs = _same_on_both(make, "detector.safetensors", checkpoint, tmp_path / name, monkeypatch)
        ours = _of_ours(costs)
        wanted = {"rpn.py:ProposalNetwork.compute_loss": 2, "heads.py:box_losses": 1}
        if "FPN" in name:
            wanted["heads.py:RegionPool.forward"] = 8 if "mask" in name else 4
        if "mask" in name:
            wanted["heads.py:_Heads._losses"] = 2
        assert ours == wanted, name
        assert costs.synchronizations < 45, name
    name = "faster R-CNN, C4"
    make = _detection(shapes, "demo_faster_c4", *NOT_AGAIN, tiny=runs.TINY_C4)
    _resumes_elsewhere(make, "detector.safetensors", checkpoint, tmp_path / name, monkeypatch)


@pytest.mark.parametrize("attention", [(), ("model.window_size=3", "model.relative_positions=true")])
def test_a_detector_on_a_transformer_trains_as_on_the_cpu(
    attention: Sequence[str],
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    second: torch.device,
) -> None:
    monkeypatch.setattr(heads, "region_align", _torchvisions_align)
    source = write_timm(tmp_path / "source.safetensors", "vit_tiny_patch16_224")
    make = _detection(shapes, "demo_faster_fpn", "solver.layer_decay=0.7", *GENTLE, *attention)
    evaluate(make("device=cpu"), source, tmp_path / "cpu")
    with monkeypatch.context() as patched:
        steps = count_steps(patched)
        evaluate(make("device=second"), source, tmp_path / "second")
    assert steps.of_step[3].synchronizations < 45
    ours, theirs = (load_file(tmp_path / d / "detector.safetensors") for d in ("cpu", "second"))
    for name, value in ours.items():
        # A CPU has a kernel of its own for attention.
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.detectron2
def test_detectron2_trains_as_on_the_cpu(
    shapes: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: torch.device
) -> None:
    make = _detection(shapes, "demo_mask_fpn", "backend=detectron2")
    costs = _same_on_both(make, "detector.safetensors", checkpoint, tmp_path, monkeypatch)
    assert _of_ours(costs) == {}
    assert costs.synchronizations < 110


def _segmentation(root: Path, *overrides: str) -> Make:
    return lambda device: scenes.recipe(root, *QUIET, *overrides, device)


def test_torchvisions_segmenter_trains_as_on_the_cpu_and_never_waits(
    root: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: torch.device
) -> None:
    for name, overrides in {
        "whole": ("solver.precision=fp32",),
        "a linear head": ("model={name: linear, norm: BN}", "solver.precision=fp32"),
        "windows, bf16": ("input.test_mode=slide", "input.test_stride=[32, 32]", "solver.precision=bf16"),
    }.items():
        make = _segmentation(root, *overrides)
        costs = _same_on_both(make, "segmenter.safetensors", checkpoint, tmp_path / name, monkeypatch)
        assert costs.synchronizations == 0, sorted(costs.waits)
    make = _segmentation(root, "solver.precision=fp32")
    _resumes_elsewhere(make, "segmenter.safetensors", checkpoint, tmp_path / "whole", monkeypatch)


@pytest.mark.mmseg
def test_mmsegmentation_trains_as_on_the_cpu(
    root: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: torch.device
) -> None:
    make = _segmentation(root, "backend=mmseg", "solver.precision=fp32")
    costs = _same_on_both(make, "segmenter.safetensors", checkpoint, tmp_path, monkeypatch)
    assert _of_ours(costs) == {}, costs.waits
