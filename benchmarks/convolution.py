"""Convolutions of small maps as matrix products: layers beside the library's, and a whole step.

    python benchmarks/convolution.py [--batch 128] [--runs 7]

Layers are those of a ResNet-18 with the CIFAR stem at 32 px and of a ResNet-50 at 224 px (a quarter of the
batch), in bf16 and channels_last: milliseconds of the forward pass and of the weight's gradient, median of
--runs, and what `core.training.convolution` does of it ("gradient", "all", or nothing). Then one step of
the ResNet-18, two views, forward and backward, with and without products and with and without freed memory
kept, taken in turn. Writes a dated table to benchmarks/results/.
"""

import argparse
import datetime
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.nn.grad import conv2d_weight

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import RESULTS, in_fresh_process, spread, write_table
from carryover.core.backbones.build import build_backbone
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.training.allocation import freed_memory_kept
from carryover.core.training.convolution import extent, product_conv2d, use_products
from carryover.core.training.provenance import hardware

NETWORKS = (("resnet18", "cifar", 32, 1), ("resnet50", "imagenet", 224, 4))
STEPS = ("torch", "products", "memory kept", "products, memory kept")
WARM, COUNTED = 3, 5


def milliseconds(work: Callable[[], object], runs: int) -> float:
    """Median time of `work`, after two runs that are not counted."""
    times = []
    for run in range(runs + 2):
        start = time.perf_counter()
        work()
        if run > 1:
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def layers(arch: str, stem: str, size: int) -> dict[tuple[nn.Conv2d, int], int]:
    """Return a network's different convolutions with the side of their input, and how often each is there."""
    seen: dict[tuple[int, ...], tuple[nn.Conv2d, int]] = {}
    often: dict[tuple[int, ...], int] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d)
        x = inputs[0]
        key = (layer.in_channels, layer.out_channels, x.shape[-1], layer.kernel_size[0], layer.stride[0])
        seen[key] = (layer, x.shape[-1])
        often[key] = often.get(key, 0) + 1

    network = build_backbone(BackboneConfig(arch=arch, stem=stem))  # type: ignore[arg-type]
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(note)
    with torch.inference_mode():
        network(torch.zeros(1, 3, size, size))
    return {seen[key]: often[key] for key in seen}


def layer_rows(arch: str, stem: str, size: int, batch: int, runs: int) -> list[str]:
    """Time every layer's forward pass and weight gradient both ways."""
    rows = []
    for (layer, side), often in layers(arch, stem, size).items():
        stride, padding = layer.stride[0], int(layer.padding[0])
        shape = (batch, layer.in_channels, side, side)
        x = torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last)
        weight = layer.weight.detach().bfloat16().contiguous(memory_format=torch.channels_last)
        upstream = torch.randn_like(conv2d(x, weight, None, stride, padding))

        def library_gradient(x=x, weight=weight, upstream=upstream, s=stride, p=padding) -> Tensor:
            return conv2d_weight(x, weight.shape, upstream, s, p)

        leaf = weight.clone().requires_grad_()
        made = product_conv2d(x, leaf, stride, padding)

        def product_gradient(made=made, leaf=leaf, upstream=upstream) -> Tensor:
            return torch.autograd.grad(made, leaf, upstream, retain_graph=True)[0]

        def library_forward(x=x, weight=weight, s=stride, p=padding) -> Tensor:
            return conv2d(x, weight, None, s, p)

        def product_forward(x=x, weight=weight, s=stride, p=padding) -> Tensor:
            with torch.no_grad():
                return product_conv2d(x, weight, s, p)

        found = [
            milliseconds(work, runs)
            for work in (library_forward, product_forward, library_gradient, product_gradient)
        ]
        kernel, out = layer.kernel_size[0], upstream.shape[-1]
        used = {None: "", False: "gradient", True: "all"}[extent(layer.in_channels, kernel, out * out)]
        rows.append(
            f"| {arch} | {often} | {layer.in_channels} to {layer.out_channels}, {kernel} x {kernel},"
            f" stride {stride} | {out} x {out} | {found[0]:.2f} | {found[1]:.2f} | {found[1] / found[0]:.2f}"
            f" | {found[2]:.2f} | {found[3]:.2f} | {found[3] / found[2]:.2f} | {used} |"
        )
        print(rows[-1], flush=True)
    return rows


def step(variant: str, batch: int) -> float:
    """Seconds of a ResNet-18's step on two views of `batch` images, median of those counted."""
    torch.manual_seed(0)
    network = build_backbone(BackboneConfig(arch="resnet18", stem="cifar")).train()
    network.to(memory_format=torch.channels_last)
    if "products" in variant:
        use_products(network)
    views = [torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    seconds = []
    with freed_memory_kept(torch.device("cpu")) if "memory" in variant else nullcontext():
        for _ in range(WARM + COUNTED):
            start = time.perf_counter()
            network.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16):
                features = [network(view) for view in views]
            torch.stack([f.float().square().mean() for f in features]).sum().backward()
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.step:
        print(step(options.step, options.batch))
        return

    load_before = os.getloadavg()[0]
    how = ["--batch", str(options.batch), "--threads", str(options.threads)]
    found: dict[str, list[float]] = {variant: [] for variant in STEPS}
    for _ in range(options.runs):
        for variant in STEPS:
            found[variant].append(in_fresh_process([*how, "--step", variant]))
    steps = ["| a ResNet-18's step | / torch | seconds |", "|---|---|---|"]
    for variant, values in found.items():
        ratio = statistics.median(values) / statistics.median(found["torch"])
        steps.append(f"| {variant} | {ratio:.2f} | {spread(values, 3)} |")
        print(steps[-1], flush=True)
    rows = [
        "| network | layers | convolution | output | forward, ms | product | ratio"
        " | gradient, ms | product | ratio | used |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    # As in a training; else the library's results and ours would all be paid for in page faults.
    with freed_memory_kept(torch.device("cpu")):
        for arch, stem, size, part in NETWORKS:
            rows += layer_rows(arch, stem, size, options.batch // part, options.runs)
    text = [
        "# Convolutions as matrix products",
        "",
        f"`python benchmarks/convolution.py --batch {options.batch} --runs {options.runs}`",
        "",
        f"{datetime.date.today()}, {hardware()}, torch {torch.__version__}, {options.threads} threads; load"
        f" average before the first run {load_before:.1f}. bf16, channels_last, ResNet-18 (CIFAR stem, 32 px)"
        f" at batch {options.batch}, ResNet-50 (224 px) at {options.batch // 4}; medians of {options.runs}"
        " runs. A step is two views, forward and backward, every run a process of its own (smallest to"
        " largest).",
        "",
        *steps,
        "",
        *rows,
    ]
    write_table("convolution", text, options.out)


if __name__ == "__main__":
    main()
