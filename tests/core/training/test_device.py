"""One place decides what a process computes on; what is not there is refused by name."""

import pytest
import torch

from carryover.configs import UserError, load
from carryover.core.training import device as devices
from carryover.core.training.distributed import joined


def test_a_recipes_device_is_chosen_or_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.choose_device("cpu", local_rank=3) == torch.device("cpu")
    for wanted, said in (
        ("cudda", "is no device that torch knows; did you mean 'cuda'"),
        ("meta", "there is none here; there is cpu"),
        ("xpu", "there is none here; there is cpu"),
        ("tensor", "is no device that torch knows"),
    ):
        with pytest.raises(UserError, match=said), joined(wanted):
            pass

    class TwoGPUs:
        current: list[object] = []  # noqa: RUF012

        is_available = staticmethod(lambda: True)
        device_count = staticmethod(lambda: 2)
        get_device_name = staticmethod(lambda device: "H200")
        set_device = staticmethod(current.append)

    modules = {"xpu": TwoGPUs, "mps": TwoGPUs}
    monkeypatch.setattr(torch, "get_device_module", lambda kind: modules[torch.device(kind).type])
    for kind, index, found in (("xpu", 3, "xpu:1"), ("xpu:0", 3, "xpu:0"), ("mps", 0, "mps:0")):
        assert devices.choose_device(kind, index) == TwoGPUs.current[-1] == torch.device(found)
    with pytest.raises(UserError, match="'xpu:2': there are 2, counted from 0"):
        devices.choose_device("xpu:2")
    for there, taken in (("xpu", "xpu:0"), ("mps", "cpu")):
        monkeypatch.setattr(
            torch.accelerator, "current_accelerator", lambda check_available, of=there: torch.device(of)
        )
        assert devices.choose_device("auto") == torch.device(taken)
    assert devices.name_of(torch.device("xpu")) == "H200"
    # What a backend does not offer is left out.
    assert devices.peak_memory_gib(torch.device("xpu")) is None
    assert devices.random_state([torch.device("xpu")])[1] == {}


def test_recipes_take_a_device_that_decides_no_number() -> None:
    for kind, name in (("pretrain", "simsiam_cifar10_r18"), ("transfer", "coco_c4_1x")):
        usual = load(kind, name, ["data.root=unread"])
        assert usual.device == "auto"  # type: ignore[attr-defined]
        asked = load(kind, name, ["data.root=unread", "device=cuda:1"])
        assert asked.device == "cuda:1"  # type: ignore[attr-defined]
        with pytest.raises(UserError, match="device"):
            load(kind, name, ["data.root=unread", "device=the GPU"])
