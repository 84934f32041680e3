"""Streaming SqrtKL beside the naive autograd loss and beside its three matrix products alone.

    python benchmarks/sqrtkl.py [--images 50000 1281167] [--batch 256] [--width 128] [--runs 5] [--threads 2]

Times are medians of runs taken in turn; memory is the most a forward and backward pass adds, each variant in
a process of its own. "products" does the three matrix products in the same tiles and nothing else: the floor.
Writes a dated table to benchmarks/results/.
"""

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import in_turn, write_table
from carryover.pretrain.objectives.instance import instance_loss
from carryover.pretrain.objectives.streaming import tile_rows

TAU, LAM = 0.07, 20.0


def naive(z: Tensor, bank: Tensor, index: Tensor) -> None:
    """The loss as one would write it: every probability in memory, autograd for the gradient."""
    log_p = (z @ bank.T / TAU).log_softmax(1)
    p = log_p.exp()
    log_u = (log_p.detach() / 2).log_softmax(1)
    cross_entropy = -log_p.gather(1, index.unsqueeze(1)).squeeze(1)
    (cross_entropy + LAM * (p * (log_p - log_u)).sum(1)).mean().backward()


def streaming(z: Tensor, bank: Tensor, index: Tensor) -> None:
    instance_loss(z, bank, index, TAU, LAM).loss.backward()


@torch.no_grad()
def products(z: Tensor, bank: Tensor, index: Tensor) -> None:
    """z W^T, and the two products with W whose sums the gradient is made of."""
    batch, tile = len(z), tile_rows(z)
    sums = z.new_zeros(2 * batch, z.shape[1])
    buffer = z.new_zeros(2 * batch * tile)
    for start in range(0, len(bank), tile):
        rows = bank[start : start + tile]
        weights = buffer[: 2 * batch * len(rows)].view(2 * batch, len(rows))
        torch.mm(z, rows.T, out=weights[:batch])
        sums.addmm_(weights, rows)


VARIANTS: dict[str, Callable[[Tensor, Tensor, Tensor], None]] = {
    "streaming": streaming,
    "products": products,
    "naive": naive,
}


def inputs(images: int, batch: int, width: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    bank = normalize(torch.randn(images, width, generator=generator, device=device), dim=1)
    index = torch.randperm(images, generator=generator, device=device)[:batch]
    noise = torch.randn(batch, width, generator=generator, device=device) / width**0.5
    return normalize(bank[index] + noise, dim=1).requires_grad_(), bank, index


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def run_once(variant: Callable[..., object], data: Sequence[Tensor], device: str, run: int) -> None:
    variant(*data)
    synchronize(device)


def medians(images: int, args: argparse.Namespace) -> dict[str, float]:
    data = inputs(images, args.batch, args.width, args.device)
    synchronize(args.device)
    turns = {name: partial(run_once, variant, data, args.device) for name, variant in VARIANTS.items()}
    seconds = in_turn(turns, args.runs)
    return {name: statistics.median(values) for name, values in seconds.items()}


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def peak_memory(images: int, args: argparse.Namespace) -> int:
    """Bytes that one pass of `args.only` adds at its peak, in this process."""
    variant, data = VARIANTS[args.only], inputs(images, args.batch, args.width, args.device)
    small = inputs(10 * args.batch, args.batch, args.width, args.device)
    variant(*small)
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        variant(*data)
        return torch.cuda.max_memory_allocated() - before
    # Linux: forget the high-water mark of resident memory so far.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    variant(*data)
    return resident("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[50_000, 1_281_167])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=VARIANTS, help="measure one variant's memory, print bytes and stop")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only:
        print(peak_memory(args.images[0], args))
        return

    hardware = torch.cuda.get_device_name() if args.device == "cuda" else processor()
    lines = [
        f"# SqrtKL loss and gradient, B = {args.batch}, d = {args.width}",
        "",
        f"{datetime.date.today()}, {hardware}, {args.threads} threads, torch {torch.__version__}, float32; "
        f"medians of {args.runs} runs. Ratios are streaming's time to the other's.",
        "",
        "| N | / naive | / products | streaming s | products s | naive s | MB | naive MB | of naive |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for images in args.images:
        seconds = medians(images, args)
        extra = {}
        for name in ("streaming", "naive"):
            command = [sys.executable, __file__, "--only", name, "--images", str(images)]
            for option in ("batch", "width", "threads", "device"):
                command += [f"--{option}", str(getattr(args, option))]
            extra[name] = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout
            )
        ours = seconds["streaming"]
        lines.append(
            f"| {images:,} | {ours / seconds['naive']:.2f} | {ours / seconds['products']:.2f} | {ours:.3f} "
            f"| {seconds['products']:.3f} | {seconds['naive']:.3f} | {extra['streaming'] / 1e6:.1f} "
            f"| {extra['naive'] / 1e6:.0f} | {extra['streaming'] / extra['naive']:.2%} |"
        )
        print(lines[-1], flush=True)
    print("\n".join(lines))
    write_table(f"sqrtkl-{args.device}", lines)


if __name__ == "__main__":
    main()
