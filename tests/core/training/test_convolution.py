"""Convolutions as matrix products: torch's convolutions in every number, and only where they are faster."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

import carryover.core.training.convolution
from carryover.core.backbones.build import build_backbone
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.processor import bf16_instructions
from carryover.core.training.convolution import Conv2d, product_conv2d, use_products


@pytest.fixture
def amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Act as on a CPU with AMX; results do not depend on it, only speed does."""
    monkeypatch.setattr(carryover.core.training.convolution, "has_idle_matrix_unit", lambda: True)


@pytest.mark.parametrize("all_of_it", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(3, 1, 1), (3, 2, 1), (1, 1, 0), (1, 2, 0), (5, 1, 2), (7, 2, 3), (3, 1, 0)],
)
@pytest.mark.parametrize(("height", "width"), [(7, 7), (8, 5), (16, 9)])
def test_products_have_the_value_and_both_gradients_of_torchs_convolution(
    height: int, width: int, kernel: int, stride: int, padding: int, all_of_it: bool
) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, height, width, dtype=torch.float64, generator=random, requires_grad=True)
    weight = torch.randn(4, 3, kernel, kernel, dtype=torch.float64, generator=random, requires_grad=True)
    ours, torchs = (
        product_conv2d(x, weight, stride, padding, all_of_it),
        conv2d(x, weight, None, stride, padding),
    )
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(torchs.shape, dtype=torch.float64, generator=random)
    found = torch.autograd.grad(ours, (x, weight), upstream)
    expected = torch.autograd.grad(torchs, (x, weight), upstream)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("all_of_it", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2)])
def test_everything_stays_channels_last(kernel: int, stride: int, all_of_it: bool) -> None:
    x = torch.randn(2, 32, 8, 8).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(16, 32, kernel, kernel).bfloat16().contiguous(memory_format=torch.channels_last)
    weight.requires_grad_()
    y = product_conv2d(x, weight, stride, kernel // 2, all_of_it)
    y.backward(torch.ones_like(y))
    for tensor in (y, x.grad, weight.grad):
        assert tensor is not None
        assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("amx")
def test_a_network_in_bf16_is_as_near_to_float64_as_torchs_own() -> None:
    torch.manual_seed(0)
    network = build_backbone(BackboneConfig(arch="resnet18", stem="cifar"))
    exact, ours = copy.deepcopy(network).double(), copy.deepcopy(network)
    use_products(ours)
    images = torch.randn(16, 3, 32, 32)
    expected = _gradients(exact, images.double(), bf16=False)
    errors = {}
    for name, other in (("torch", network), ("ours", ours)):
        found = _gradients(other.to(memory_format=torch.channels_last), images, bf16=True)
        errors[name] = [(found[k].double() - g).norm() / g.norm() for k, g in expected.items()]
    assert sum(errors["ours"]) <= 1.1 * sum(errors["torch"])
    assert max(o / t for o, t in zip(errors["ours"], errors["torch"], strict=True)) < 1.5


@pytest.mark.usefixtures("amx")
@pytest.mark.parametrize("threads", [1, 2])
def test_every_size_of_map_is_float64s_but_for_rounding(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for side, kernel, stride in itertools.product((1, 2, 3, 4, 5, 8, 9), (1, 3, 5), (1, 2)):
            torch.manual_seed(side)
            layer = nn.Conv2d(256, 8, kernel, stride, kernel // 2, bias=False)
            layer.to(memory_format=torch.channels_last)
            ours = nn.Sequential(copy.deepcopy(layer))
            use_products(ours)
            images = torch.randn(4, 256, side, side)
            torchs = {} if bf16_instructions() else _results(copy.deepcopy(layer), images, bf16=True)
            expected = _results(layer.double(), images.double(), bf16=False)
            found = _results(ours, images, bf16=True)
            for name, value in expected.items():
                if name in torchs and torch.equal(found[name], torchs[name]):
                    continue  # torch's own kernel, which rounds its sums too where bf16 is emulated
                error = float((found[name].double() - value).norm() / value.norm())
                # Operands and result are rounded to 8 bits of precision: each by up to 2 ** -9.
                assert error < 0.005, (side, kernel, stride, name)
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("amx")
def test_a_compiled_network_has_torchs_own_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under inductor the products gave a loss of nan on a CPU with AMX."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(256, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, bias=False)
    ).to(memory_format=torch.channels_last)
    ours = copy.deepcopy(network)
    use_products(ours)
    images = torch.randn(4, 256, 4, 4)
    expected = _gradients(torch.compile(network), images, bf16=True)

    def refused(*arguments: object) -> torch.Tensor:
        raise AssertionError("a product inside torch.compile")

    monkeypatch.setattr(carryover.core.training.convolution, "product_conv2d", refused)
    found = _gradients(torch.compile(ours, fullgraph=True), images, bf16=True)
    assert expected
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient)
    monkeypatch.undo()
    exact = _gradients(copy.deepcopy(network).double(), images.double(), bf16=False)
    assert {name.removeprefix("_orig_mod.") for name in found} == set(exact)


@pytest.mark.usefixtures("amx")
def test_what_is_not_bf16_stays_torchs_bit_for_bit() -> None:
    torch.manual_seed(0)
    network = build_backbone(BackboneConfig(arch="resnet18", stem="cifar"))
    ours = copy.deepcopy(network)
    use_products(ours)
    images = torch.randn(4, 3, 16, 16)
    expected, found = _gradients(network, images, bf16=False), _gradients(ours, images, bf16=False)
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient)


@pytest.mark.usefixtures("amx")
def test_only_small_maps_and_kernels_of_one_pixel_are_products(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, bool]] = []

    def noted(
        x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int, all_of_it: bool
    ) -> torch.Tensor:
        seen.append((x.shape[-1] // stride, weight.shape[-1], all_of_it))
        return product_conv2d(x, weight, stride, padding, all_of_it)

    monkeypatch.setattr(carryover.core.training.convolution, "product_conv2d", noted)
    network = build_backbone(BackboneConfig(arch="resnet18", stem="cifar"))
    use_products(network)
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(2, 3, 32, 32))
    # layer2's shortcut; layer3: 3 x 3 at 8 pixels and the shortcut; layer4: the same at 4.
    assert sorted(seen) == [
        *[(4, 1, True), (4, 3, True), (4, 3, True), (4, 3, True), (4, 3, True)],
        *[(8, 1, True), (8, 3, False), (8, 3, False), (8, 3, False), (8, 3, False)],
        (16, 1, False),
    ]


@pytest.mark.usefixtures("amx")
def test_convolutions_of_other_kinds_are_left_alone_and_names_stay() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, dilation=2, bias=False),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, (3, 1), bias=False),
        nn.Conv2d(4, 4, 3, padding="same", bias=False),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Conv2d(4, 4, 1, padding=1, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
    )
    names = list(network.state_dict())
    use_products(network)
    assert [isinstance(layer, Conv2d) for layer in network] == [False] * 7 + [True]
    assert list(network.state_dict()) == names


def test_a_cpu_without_amx_keeps_torchs_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carryover.core.training.convolution, "has_idle_matrix_unit", lambda: False)
    network = nn.Sequential(nn.Conv2d(256, 4, 3, padding=1, bias=False)).to(memory_format=torch.channels_last)
    ours = copy.deepcopy(network)
    use_products(ours)
    images = torch.randn(2, 256, 4, 4)
    expected, found = _gradients(network, images, bf16=True), _gradients(ours, images, bf16=True)
    assert torch.equal(found["0.weight"], expected["0.weight"])


@pytest.mark.parametrize(
    ("height", "width", "kernel", "stride", "compiled", "amx"),
    [
        *[(1, 1, 3, 2, False, amx) for amx in (False, True)],
        *[(1, 1, 7, 1, False, True), (2, 2, 7, 3, False, True), (1, 4, 3, 2, False, True)],
        *[(2, 1, 5, 3, False, False), (1, 1, 3, 2, True, True)],
    ],
)
def test_a_part_of_the_kernel_that_meets_no_pixel_has_no_gradient(
    height: int,
    width: int,
    kernel: int,
    stride: int,
    compiled: bool,
    amx: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There oneDNN's weight gradient in bf16 is what the memory held before."""
    monkeypatch.setattr(carryover.core.training.convolution, "has_idle_matrix_unit", lambda: amx)
    torch.manual_seed(0)
    layer = nn.Conv2d(256, 32, kernel, stride, kernel // 2, bias=False).to(memory_format=torch.channels_last)
    network = nn.Sequential(copy.deepcopy(layer))
    use_products(network)
    images = torch.randn(8, 256, height, width)
    expected = _results(layer.double(), images.double(), bf16=False)
    found = _results(torch.compile(network, fullgraph=True) if compiled else network, images, bf16=True)
    unmet = expected["weight's gradient"] == 0
    assert unmet.any()
    assert (found["weight's gradient"][unmet] == 0).all()
    for name, value in expected.items():
        assert float((found[name].double() - value).norm() / value.norm()) < 0.005, name


def _gradients(network: nn.Module, images: torch.Tensor, bf16: bool) -> dict[str, torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        features = network(images)
    features.to(images.dtype).square().mean().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None and p.dim() == 4}


def _results(layer: nn.Module, images: torch.Tensor, bf16: bool) -> dict[str, torch.Tensor]:
    """Return a layer's output, and the gradients of its input and weight for a fixed one of the output."""
    images = images.clone().requires_grad_()
    (weight,) = layer.parameters()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        made = layer(images)
    upstream = torch.randn(made.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    of_images, of_weight = torch.autograd.grad(made, (images, weight), upstream.to(made.dtype))
    return {"output": made.detach(), "input's gradient": of_images, "weight's gradient": of_weight}
