"""The second device: values of the CPU, and what CUDA refuses, casts and waits for."""

import copy
import io
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, dropout, mse_loss, softmax
from torchvision.models import resnet18

from tests.second_device.autocast import listed
from tests.second_device.counting import counted

Case = Callable[[torch.device], object]


def _on(device: torch.device, *shape: int) -> Tensor:
    return torch.zeros(shape, device=device)


REFUSED: dict[str, tuple[Case, str]] = {
    "sum": (lambda d: _on(d, 2) + torch.ones(2), "at least two devices"),
    "product": (lambda d: _on(d, 2, 2) @ torch.ones(2, 2), "at least two devices"),
    "cat": (lambda d: torch.cat([_on(d, 2), torch.ones(2)]), "at least two devices"),
    "where": (lambda d: torch.where(_on(d, 2) > 0, torch.ones(2), 0.0), "at least two devices"),
    "gather": (lambda d: _on(d, 2, 2).gather(1, torch.zeros(2, 1, dtype=torch.int64)), "two devices"),
    "index on the device into the host": (
        lambda d: torch.ones(3)[torch.zeros(2, dtype=torch.int64, device=d)],
        "at least two devices",
    ),
    "a number without dimensions in cat": (
        lambda d: torch.stack([_on(d), torch.tensor(1.0)]),
        "at least two devices",
    ),
    "statistics on the host": (
        lambda d: batch_norm(_on(d, 4, 2), torch.zeros(2), torch.ones(2), training=True),
        "at least two devices",
    ),
    "in place from a sum": (lambda d: torch.ones(2).add_(_on(d, 2)), "at least two devices"),
    "several at once": (
        lambda d: torch._foreach_add_([_on(d, 2), _on(d, 2)], [torch.ones(2), torch.ones(2)]),
        "at least two devices",
    ),
    "numpy": (lambda d: _on(d, 2).numpy(), "can't convert second:0 device type tensor to numpy"),
    "asarray": (lambda d: np.asarray(_on(d, 2)), "Use Tensor.cpu()"),
    "page-locking": (lambda d: _on(d, 2).pin_memory(), "only dense CPU tensors can be pinned"),
    "the host's generator": (
        lambda d: torch.randn(2, device=d, generator=torch.Generator()),
        "Expected a 'second' device type for generator but found 'cpu'",
    ),
    "the device's generator on the host": (
        lambda d: torch.randperm(2, generator=torch.Generator(d)),
        "Expected a 'cpu' device type for generator but found 'second'",
    ),
    "data of another device": (lambda d: setattr(_on(d, 2), "data", torch.ones(2)), "incompatible"),
}


def test_it_refuses_what_cuda_refuses(second: torch.device) -> None:
    for name, (case, said) in REFUSED.items():
        with pytest.raises((RuntimeError, TypeError)) as refused:
            case(second)
        assert said in str(refused.value), name


# Synchronizations and bytes from the host.
COUNTED: dict[str, tuple[Case, int, int]] = {
    "arithmetic": (lambda d: (_on(d, 4) + 1).mul_(2).sum(), 0, 0),
    "a number from the host": (lambda d: _on(d, 4) * torch.tensor(2.0), 0, 0),
    "item": (lambda d: _on(d).item(), 1, 0),
    "float": (lambda d: float(_on(d)), 1, 0),
    "a condition": (lambda d: bool(_on(d, 3).isfinite().all()), 1, 0),
    "tolist": (lambda d: _on(d, 2).tolist(), 1, 0),
    "to the host": (lambda d: _on(d, 2).cpu(), 1, 0),
    "to page-locked memory": (
        lambda d: torch.ones(2).pin_memory().copy_(_on(d, 2), non_blocking=True),
        0,
        0,
    ),
    "from the host": (lambda d: torch.ones(4).to(d), 1, 16),
    "from ordinary memory, not blocking": (lambda d: torch.ones(4).to(d, non_blocking=True), 1, 16),
    "from page-locked memory, blocking": (lambda d: torch.ones(4).pin_memory().to(d), 1, 16),
    "from page-locked memory": (lambda d: torch.ones(4).pin_memory().to(d, non_blocking=True), 0, 16),
    "in place from the host": (lambda d: _on(d, 4).copy_(torch.ones(4)), 1, 16),
    "made of numbers": (lambda d: torch.tensor([1.0, 2.0], device=d), 1, 8),
    "filled": (lambda d: torch.full((3,), 2.0, device=d), 0, 0),
    "where": (lambda d: torch.where(_on(d, 3) > 0), 1, 0),
    "a mask": (lambda d: _on(d, 3)[_on(d, 3) > 0], 1, 0),
    "a number under a mask": (lambda d: _on(d, 3).__setitem__(torch.ones(3, device=d) > 0, 1.0), 0, 0),
    "rows under a mask": (lambda d: _on(d, 3).__setitem__(torch.ones(3, device=d) > 0, _on(d, 3)), 1, 0),
    "an index": (lambda d: _on(d, 3)[torch.zeros(2, dtype=torch.int64, device=d)], 0, 0),
    "a list as an index": (lambda d: _on(d, 3, 2)[[2, 0], ...], 1, 16),
    "an index of the host": (lambda d: _on(d, 3)[torch.tensor([0, 1])], 1, 16),
    "unique": (lambda d: _on(d, 3).unique(), 1, 0),
    "eigenvalues": (lambda d: torch.linalg.eigvalsh(torch.eye(3, device=d)), 1, 0),
    "equal": (lambda d: torch.equal(_on(d, 3), _on(d, 3)), 1, 0),
    "drop-out": (lambda d: dropout(_on(d, 3)), 0, 0),
}


def test_it_counts_what_a_gpu_waits_for_copies_and_holds(second: torch.device) -> None:
    for name, (case, synchronizations, copied) in COUNTED.items():
        with counted() as costs:
            case(second)
        assert (costs.synchronizations, costs.bytes_to_device) == (synchronizations, copied), name
        assert sum(costs.waits.values()) == synchronizations
    # Views are no operators and hold nothing; what is freed is not held at the peak of what follows.
    with counted() as costs:
        x = _on(second, 1000)
        y = x.view(10, 100)[:5].t() + 1
        del x, y
        z = _on(second, 1500)
    assert costs.operators == 3  # two times zeros, and a sum
    assert costs.peak_bytes == 4 * (1000 + 500)
    del z


def test_values_gradients_and_states_are_the_cpus(second: torch.device) -> None:
    torch.manual_seed(0)
    network, images = nn.Sequential(resnet18(num_classes=10), nn.Dropout(0.5)), torch.randn(4, 3, 32, 32)
    trained: dict[str, nn.Module] = {}
    for device in ("cpu", "second"):
        own = copy.deepcopy(network).to(device)
        weight = own[0].fc.weight  # type: ignore[union-attr, index]
        assert isinstance(weight, nn.Parameter) and weight.device.type == device
        optimizer = torch.optim.SGD(own.parameters(), lr=0.1, momentum=0.9)
        for step, layout in enumerate((torch.contiguous_format, torch.channels_last)):
            own.to(memory_format=layout)  # type: ignore[call-overload]
            torch.manual_seed(step)
            with torch.autocast(device, torch.bfloat16):
                logits = own(images.to(device))
            optimizer.zero_grad()
            logits.float().logsumexp(1).mean().backward()
            optimizer.step()
        assert own[0].fc.weight is weight  # type: ignore[union-attr, index]
        trained[device] = own
    file = io.BytesIO()
    torch.save(trained["second"].state_dict(), file)
    for where, found in (("cpu", "cpu"), (None, "second")):
        file.seek(0)
        loaded = torch.load(file, map_location=where, weights_only=True)
        for name, value in trained["cpu"].state_dict().items():
            assert loaded[name].device.type == found
            assert torch.equal(loaded[name].cpu(), value), name
    # Its generator is one of its own: the CPU's is not moved by what is drawn on the device.
    torch.manual_seed(3)
    wanted = torch.randn(5), torch.randn(2)
    torch.manual_seed(3)
    drawn = torch.randn(5, device=second), torch.randn(5), torch.randn(2)
    assert torch.equal(drawn[0].cpu(), wanted[0]) and torch.equal(drawn[1], wanted[0])
    assert torch.equal(drawn[2], wanted[1])
    generator = torch.Generator(second).manual_seed(3)
    assert torch.equal(torch.randn(5, device=second, generator=generator).cpu(), wanted[0])


def test_autocast_casts_as_cudas_lists_do(second: torch.device) -> None:
    """The operators with a kernel for autocast are CUDA's, and the kinds of casts are tried one by one."""
    known = torch._C._dispatch_has_kernel_for_dispatch_key
    operators = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")]
    of_cuda = {name for name in operators if known(name, "AutocastCUDA")}
    ours = {name for name in operators if known(name, "AutocastPrivateUse1")}
    assert ours <= of_cuda and len(ours) > 80
    # The library's own convolutions are of no other device; one function is in none of the lists.
    elsewhere = {name for name in of_cuda if "cudnn" in name} | {"aten::linalg_matrix_sqrth"}
    assert of_cuda - ours == elsewhere
    assert {f"aten::{name}" for name in listed("AT_FORALL_LOWER_PRECISION_FP")} <= ours

    a, half = torch.ones(2, 2, device=second), torch.ones(2, 2, device=second, dtype=torch.bfloat16)
    weight = torch.ones(2, 2, device=second, requires_grad=True)
    found = {}
    with torch.autocast("second", torch.bfloat16):
        found["lower precision"] = (a @ a).dtype, nn.functional.linear(a, weight).dtype
        found["float64 stays"] = ((a.double() @ a.double()).dtype,)
        found["float32"] = half.exp().dtype, mse_loss(half, half).dtype
        found["float32 as the result"] = softmax(half, 1).dtype, half.sum().dtype
        found["a dtype that is asked for"] = (half.sum(dtype=torch.bfloat16).dtype,)
        found["the widest"] = torch.cat([half, a]).dtype, torch.addcmul(a, half, half).dtype
        found["neither"] = (half + half).dtype, half.relu().dtype
        with counted() as costs:
            for _ in range(3):
                a @ weight
        with pytest.raises(RuntimeError, match="unsafe to autocast"):
            nn.functional.binary_cross_entropy(a, a)
        with torch.autocast("second", enabled=False):
            found["switched off"] = ((a @ a).dtype,)
    bf16, fp32 = torch.bfloat16, torch.float32
    assert found == {
        "lower precision": (bf16, bf16),
        "float64 stays": (torch.float64,),
        "float32": (fp32, fp32),
        "float32 as the result": (fp32, fp32),
        "a dtype that is asked for": (bf16,),
        "the widest": (fp32, fp32),
        "neither": (bf16, bf16),
        "switched off": (fp32,),
    }
    # A weight was cast before and is kept, what has no gradient is cast every time.
    assert costs.operators == 3 * 2
    assert list(itertools.chain(*found.values())).count(bf16) == 5
