"""Every pretraining method on the second device: the CPU's weights, and no step that waits for the device."""

import signal
from pathlib import Path

import pytest
import torch

from carryover.core.formats.canonical import load_canonical
from carryover.core.training.interrupt import Interrupted
from carryover.pretrain.trainer import train
from tests.interrupting import stop_after
from tests.pretrain.test_ranks import CASES, LOCAL_BLUR, MULTICROP
from tests.pretrain.tiny import recipe, tiny_backbone, write_images
from tests.second_device.counting import Costs
from tests.second_device.steps import count_steps

__all__ = ["tiny_backbone"]

pytestmark = pytest.mark.usefixtures("tiny_backbone")

# Four steps, of which the first and the last are not those that are counted.
SHORT = (
    "data.subset.count=32",
    "schedule.epochs=1",
    "schedule.warmup_epochs=0",
    "log_every=100",
    "augment.backend=loader",
)
CASES_TOO = {
    "bfloat16, channels last": ("unigrad", "precision=bf16", "channels_last=true"),
    "accumulated": ("unigrad", "accumulate=2"),
    "shuffling batch norm": ("simo", "method.shuffle_bn=true", "sync_bn=false"),
    "a bank in bfloat16": ("sqrtkl", "method.bank_precision=bf16"),
    "LARS": ("unigrad", "optimizer={name: lars, base_lr: 0.1, lr: null, weight_decay: 1e-6}"),
    "a loader's process": ("unigrad", "workers=1"),
}
# torch.linalg looks at the status of a decomposition on the host: one for the scale, one for the root of F.
WAITS = {"directpred": 2}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def _both(
    case: tuple[str, ...], images: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[float, Costs, list[str]]:
    """Train on both devices; return how far the weights are apart, and what the third step cost."""
    name, *overrides = case
    at_first, _ = load_canonical(train(recipe(name, images, [*overrides, "device=cpu"]), out / "cpu"))
    with monkeypatch.context() as patched:
        steps = count_steps(patched)
        path = train(recipe(name, images, [*overrides, "device=second"]), out / "second")
    there, metadata = load_canonical(path)
    assert metadata.peak_gpu_memory_gib is not None and metadata.peak_gpu_memory_gib > 0
    assert metadata.gpu_hours is not None and metadata.gpu_hours > 0
    furthest = max(float((at_first[k].double() - there[k].double()).abs().max()) for k in at_first)
    return furthest, steps.of_step[3], sorted(steps.of_step[3].waits)


def _assert_trained_alike(
    cases: dict[str, tuple[str, ...]], images: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cases
    for name, case in cases.items():
        furthest, costs, who = _both((*case, *SHORT), images, out / name, monkeypatch)
        # eigvalsh is another function of LAPACK where a tensor is not torch's own.
        assert furthest <= (1e-5 if name == "directpred" else 0), name
        assert costs.synchronizations == WAITS.get(name, 0), (name, who)
        # Views of 10 x 10 float pixels come as bytes; indices with them.
        assert 0 < costs.bytes_to_device < 16_000, name
        assert costs.operators > 40, name


def _halves() -> list[dict[str, tuple[str, ...]]]:
    everything = list((CASES | CASES_TOO).items())
    return [dict(everything[::2]), dict(everything[1::2])]


@pytest.mark.parametrize("half", [0, 1])
def test_every_method_trains_as_on_the_cpu_and_never_waits(
    half: int, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: torch.device
) -> None:
    _assert_trained_alike(_halves()[half], images, tmp_path, monkeypatch)


def test_views_are_made_on_the_device_without_waiting(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: torch.device
) -> None:
    """Images that are kept decoded: cropped, jittered, blurred and solarised where the network is."""
    everything = ("augment.view.blur={sigma: [0.1, 2.0], p: 0.5}", "augment.view.solarize=0.3")
    decoded = ("data.resize=12", "augment.backend=batched")
    for name, case in {
        "two": ("unigrad", *everything),
        "multicrop": ("unigrad", *MULTICROP, LOCAL_BLUR),
        "cutmix": ("unigrad", "augment.cutmix.alpha=1"),
        # Its first pass shows every image once, in the test view.
        "bank": ("sqrtkl", "method.bank_sharded=true"),
    }.items():
        furthest, costs, who = _both((*case, *SHORT, *decoded), images, tmp_path / name, monkeypatch)
        assert (furthest, costs.synchronizations) == (0, 0), (name, who)


def test_a_state_of_one_device_is_gone_on_with_on_the_other(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: torch.device
) -> None:
    """A bank and a momentum encoder; k-NN on held-out images where the training reports."""
    # Stopped with a line of the log half full.
    knn = ("knn={every: 1, split: train, k: 3}", "data.subset.count=32", "log_every=100")
    for name, overrides in (("sqrtkl", ("method.bank_sharded=true",)), ("unigrad", ())):
        whole, _ = load_canonical(
            train(recipe(name, images, [*overrides, *knn, "device=cpu"]), tmp_path / name / "whole")
        )
        for first, then in (("cpu", "second"), ("second", "cpu")):
            out = tmp_path / name / first
            with monkeypatch.context() as patched:
                stop_after(3, signal.SIGUSR2, patched)
                with pytest.raises(Interrupted):
                    train(recipe(name, images, [*overrides, *knn, f"device={first}"]), out)
            # "auto" is the accelerator that is there.
            wanted = "auto" if then == "second" else then
            parts, about = load_canonical(
                train(recipe(name, images, [*overrides, *knn, f"device={wanted}"]), out)
            )
            assert (about.gpu_hours is not None) == (then == "second")
            assert all(torch.equal(parts[key], whole[key]) for key in whole), (name, first)
