"""Images a second of pretraining: ours beside lightly's, same method, network, batch, image size and cores.

    python benchmarks/pretrain.py DATA [--methods simclr byol barlow_twins] [--runs 5] [--steps 4]
    python benchmarks/pretrain.py DATA --costs [--methods sqrtkl simsiam byol unigrad unigrad_cutmix ...]

DATA is a folder of images (one folder a class, CIFAR-10 for example). Every turn is a process of its own that
trains for a few steps that are not counted and `--steps` that are, from files to updated weights; the
variants take turns, and medians are compared. ResNet-18 with the CIFAR stem, 32 px, SGD, two views.

- "as documented": lightly's own example of the method (its transform, heads, loss and loop, in float32).
- "bf16", "bf16, channels_last": the same with autocast and with that memory format switched on.
- ours: the trainer that `carryover pretrain` runs, with its own loader, checkpoints left out of the window;
  as it is, and with `compile=true`.

solo-learn is not among them: its release on PyPI (1.0.2) asks for torch == 1.9.1, which Python 3.11 cannot
install.

`--costs` compares our methods' seconds an epoch with each other, as SqrtKL's Table 1 does: SqrtKL beside
SimSiam and BYOL, UniGrad with CutMix beside UniGrad. The bank has a row for every image of DATA, and the
pass that fills it once is left out. Both write a dated table to benchmarks/results/.
"""

import argparse
import copy
import datetime
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import RESULTS, in_fresh_process, spread, write_table
from carryover.configs import load
from carryover.core.backbones.build import build_backbone
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.training.provenance import hardware
from carryover.pretrain.config import PretrainConfig

METHODS = ("simclr", "byol", "barlow_twins")
LIGHTLY = ("as documented", "bf16", "bf16, channels_last")
OURS = "ours"
COMPILED = "ours, compiled"
COSTS = {
    "sqrtkl": ("sqrtkl_cifar10_r18", "method.feature_calibrate=false"),
    "npid": ("npid_cifar10_r18",),
    "simsiam": ("simsiam_cifar10_r18",),
    "simclr": ("simclr_cifar10_r18",),
    "byol": ("byol_cifar10_r18",),
    "simo": ("cifar10_10k_simo",),
    "barlow_twins": ("cifar10_10k_barlow_twins",),
    "unigrad": ("cifar10_10k_unigrad", "method.correlation_source=momentum"),
    "unigrad_cutmix": (
        "cifar10_10k_unigrad",
        "method.correlation_source=momentum",
        "augment.cutmix.alpha=1.0",
    ),
}
WARM = 3


def ours(data: Path, batch: int, steps: int, overrides: Sequence[str]) -> float:
    """Images a second of the trainer, data loading included; it is stopped when it has taken its steps."""
    from carryover.core.training.interrupt import Interrupted
    from carryover.pretrain.trainer import train

    recipe, *changes = overrides
    common = [
        "data.kind=imagefolder",
        f"data.root={data}",
        f"batch_size={batch}",
        "optimizer.lr=null",
        "workers=0",
        "log_every=1",
        "tensorboard=false",
        "precision=bf16",
        "channels_last=true",
    ]
    config = load("pretrain", recipe, [*common, *changes])
    assert isinstance(config, PretrainConfig)
    with tempfile.TemporaryDirectory() as out:
        journal = Path(out) / "metrics.jsonl"
        threading.Thread(target=_stop_after, args=(journal, WARM + steps), daemon=True).start()
        with suppress(Interrupted):
            train(config, Path(out))
        rows = [json.loads(line) for line in journal.read_text().splitlines()]
    return statistics.harmonic_mean([row["images_per_second"] for row in rows[WARM : WARM + steps]])


def _stop_after(journal: Path, lines: int) -> None:
    while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)


def lightly(method: str, variant: str, data: Path, batch: int, steps: int) -> float:
    """Images a second of lightly's documented example, data loading included."""
    import torchvision
    from lightly.transforms import BYOLTransform, SimCLRTransform
    from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform

    transform: Any = SimCLRTransform(input_size=32, gaussian_blur=0.0)
    if method == "byol":
        transform = BYOLTransform(
            view_1_transform=BYOLView1Transform(input_size=32, gaussian_blur=0.0),
            view_2_transform=BYOLView2Transform(input_size=32, gaussian_blur=0.0),
        )
    dataset = torchvision.datasets.ImageFolder(str(data), transform)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=batch, shuffle=True, drop_last=True, num_workers=os.cpu_count() or 1
    )
    model = _lightly_model(method)
    layout = torch.channels_last if "channels_last" in variant else torch.contiguous_format
    model.to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    batches: Iterator[Any] = iter(loader)
    seconds = []
    for _ in range(WARM + steps):
        start = time.perf_counter()
        (x0, x1), *_ = next(batches)
        context = torch.autocast("cpu", torch.bfloat16) if "bf16" in variant else nullcontext()
        with context:
            loss = model(x0.contiguous(memory_format=layout), x1.contiguous(memory_format=layout))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    # What the workers prepared while the first steps ran is counted too: the mean, not the median.
    return batch * steps / sum(seconds[WARM:])


def _lightly_model(method: str) -> nn.Module:
    """The model and loss of lightly's documentation, with its heads, on the backbone that ours has."""
    from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss
    from lightly.models.modules import (
        BarlowTwinsProjectionHead,
        BYOLPredictionHead,
        BYOLProjectionHead,
        SimCLRProjectionHead,
    )
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    backbone = build_backbone(BackboneConfig(arch="resnet18", stem="cifar"))

    class SimCLR(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone
            self.head = SimCLRProjectionHead(512, 512, 128)
            self.criterion = NTXentLoss()

        def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
            loss: Tensor = self.criterion(self.head(self.backbone(x0)), self.head(self.backbone(x1)))
            return loss

    class BarlowTwins(SimCLR):
        def __init__(self) -> None:
            super().__init__()
            self.head = BarlowTwinsProjectionHead(512, 2048, 2048)
            self.criterion = BarlowTwinsLoss()

    class BYOL(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone
            self.head = BYOLProjectionHead(512, 1024, 256)
            self.predictor = BYOLPredictionHead(256, 1024, 256)
            self.backbone_momentum = copy.deepcopy(self.backbone)
            self.head_momentum = copy.deepcopy(self.head)
            deactivate_requires_grad(self.backbone_momentum)
            deactivate_requires_grad(self.head_momentum)
            self.criterion = NegativeCosineSimilarity()

        def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
            update_momentum(self.backbone, self.backbone_momentum, m=0.99)
            update_momentum(self.head, self.head_momentum, m=0.99)
            p0, p1 = (self.predictor(self.head(self.backbone(x))) for x in (x0, x1))
            z0, z1 = (self.head_momentum(self.backbone_momentum(x)).detach() for x in (x0, x1))
            loss: Tensor = 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))
            return loss

    return {"simclr": SimCLR, "byol": BYOL, "barlow_twins": BarlowTwins}[method]().train()


def turn(options: argparse.Namespace, what: Sequence[str]) -> float:
    """Measure one variant in a fresh process."""
    how = ["--batch", str(options.batch), "--steps", str(options.steps), "--threads", str(options.threads)]
    return in_fresh_process([str(options.data), *how, "--turn", *what])


def compare(options: argparse.Namespace) -> list[str]:
    """Our images a second beside lightly's three variants."""
    # Twice the width of a head costs time: ours has the heads of lightly's example.
    heads = {
        "simclr": ("simclr_cifar10_r18",),
        "byol": ("byol_cifar10_r18", "projector.hidden=1024", "method.predictor.hidden=1024"),
        "barlow_twins": (
            "cifar10_10k_barlow_twins",
            "projector.depth=3",
            "projector.hidden=2048",
            "projector.out=2048",
        ),
    }
    lines = [
        f"| method | program | {' | '.join(f'/ {variant}' for variant in LIGHTLY)} | images/s |",
        f"|---|---|{'---|' * len(LIGHTLY)}---|",
    ]
    for method in options.methods:
        found: dict[str, list[float]] = {name: [] for name in (OURS, COMPILED, *LIGHTLY)}
        for _ in range(options.runs):
            found[OURS].append(turn(options, [OURS, *heads[method]]))
            found[COMPILED].append(turn(options, [OURS, *heads[method], "compile=true"]))
            for variant in LIGHTLY:
                found[variant].append(turn(options, ["lightly", method, variant]))
        middle = {name: statistics.median(values) for name, values in found.items()}
        for name, values in found.items():
            ours_too = name in (OURS, COMPILED)
            ratios = [f"{middle[name] / middle[v]:.2f}" if ours_too else "" for v in LIGHTLY]
            program = name if ours_too else f"lightly, {name}"
            lines.append(f"| {method} | {program} | {' | '.join(ratios)} | {spread(values)} |")
            print(lines[-1], flush=True)
    return lines


def costs(options: argparse.Namespace) -> list[str]:
    """Our methods' time an image beside each other's."""
    found: dict[str, list[float]] = {name: [] for name in options.methods}
    for _ in range(options.runs):
        for name in options.methods:
            found[name].append(turn(options, [OURS, *COSTS[name]]))
    seconds = {name: 1 / statistics.median(values) for name, values in found.items()}
    lines = ["| method | images/s | seconds for 10,000 images |", "|---|---|---|"]
    for name, values in found.items():
        lines.append(f"| {name} | {spread(values)} | {10_000 * seconds[name]:.0f} |")
    lines += ["", "| time an epoch | ratio | wanted |", "|---|---|---|"]
    for first, second, wanted in (
        ("sqrtkl", "simsiam", 0.47),
        ("sqrtkl", "byol", 0.30),
        ("unigrad_cutmix", "unigrad", 1.02),
    ):
        if first in seconds and second in seconds:
            ratio = seconds[first] / seconds[second]
            lines.append(f"| {first} / {second} | {ratio:.3f} | at most {wanted} |")
    print("\n".join(lines))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--methods", nargs="+", help=f"some of {', '.join(METHODS)}; or {', '.join(COSTS)}")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--costs", action="store_true")
    parser.add_argument("--turn", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    offered = tuple(COSTS) if options.costs else METHODS
    options.methods = options.methods or offered
    if unknown := set(options.methods) - set(offered):
        parser.error(f"--methods: {', '.join(sorted(unknown))} is not one of {', '.join(offered)}")
    if options.turn:
        kind, *rest = options.turn
        if kind == OURS:
            print(ours(options.data, options.batch, options.steps, rest))
        else:
            print(lightly(rest[0], rest[1], options.data, options.batch, options.steps))
        return

    load_before = os.getloadavg()[0]
    lines = costs(options) if options.costs else compare(options)
    title = "What the methods cost beside each other" if options.costs else "Pretraining beside lightly"
    text = [
        f"# {title}",
        "",
        f"`python benchmarks/pretrain.py DATA{' --costs' if options.costs else ''}"
        f" --methods {' '.join(options.methods)} --batch {options.batch} --runs {options.runs}"
        f" --steps {options.steps}`",
        "",
        f"{datetime.date.today()}, {hardware()}, torch {torch.__version__}, {options.threads} threads; load"
        f" average before the first run {load_before:.1f}. ResNet-18 with the CIFAR stem, 32 px, batch"
        f" {options.batch}. Images a second, median of {options.runs} (smallest to largest).",
        "",
        *lines,
    ]
    write_table("pretrain-costs" if options.costs else "pretrain", text, options.out)


if __name__ == "__main__":
    main()
