"""What online signals cost: seconds of a look against those of the steps between two looks, by network.

    python -m benchmarks.online [--seconds 60] [--device auto]

A step is UniGrad's (two views, forward and backward, SGD) in float32 on a CPU, bfloat16 elsewhere. Looks are
as often as the default `share` has them; their images lie ready, as in a training. The issue's limit is 3 %.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from carryover.configs import load
from carryover.core.data.prepared import Batch
from carryover.core.training.device import choose_device, synchronize
from carryover.pretrain.methods import DataFacts, Moment, build_method
from carryover.pretrain.online.images import Shown
from carryover.pretrain.online.signals import Signals
from carryover.pretrain.online_config import OnlineConfig
from carryover.pretrain.optim import build_optimizer

LIMIT = 0.03
CLASSES = 10


@dataclass(frozen=True)
class Case:
    """A network, side of its images in pixels, images of a step."""

    arch: str
    side: int
    batch: int


def measure(case: Case, device: torch.device, seconds: float) -> tuple[float, float, int]:
    """Return the seconds of a step and of a look (medians), and the steps between two looks."""
    precision = "fp32" if device.type == "cpu" else "bf16"
    overrides = [f"backbone.arch={case.arch}", f"augment.view.size={case.side}", f"precision={precision}"]
    recipe = load("pretrain", "unigrad_demo", [*overrides, f"batch_size={case.batch}"])
    method = build_method(recipe, DataFacts(1000, None)).to(device).train()
    optimizer = build_optimizer(recipe.optimizer, method, 0.01)
    shape = (case.batch, 3, case.side, case.side)
    batch = Batch(torch.arange(case.batch), [torch.randn(shape, device=device) for _ in range(2)], None)
    taken = [0]

    def step() -> None:
        moment = Moment(taken[0], 10**6, torch.Generator(device).manual_seed(taken[0]))
        method.advance(moment)
        optimizer.zero_grad(set_to_none=True)
        method(batch, moment).loss.backward()
        optimizer.step()
        taken[0] += 1

    signals = _signals(case.side)
    online = method.online

    def look() -> None:
        signals.look(online.backbone, online.head, online.bf16)

    each = _median(step, device, seconds / 2)
    between = signals.config.steps_between(2 * case.batch)
    return each, _median(look, device, seconds / 2), between


def _signals(side: int) -> Signals:
    config = OnlineConfig()
    generator = torch.Generator().manual_seed(0)

    def shown(n: int) -> Shown:
        pixels = torch.randn((n, 3, side, side), generator=generator).half()
        return Shown(pixels, torch.arange(n) % CLASSES)

    views = torch.randn((config.lidar_images, config.lidar_views, 3, side, side), generator=generator)
    return Signals(config, shown(config.train_images), shown(config.test_images), views.half(), CLASSES)


def _median(call: Callable[[], None], device: torch.device, seconds: float) -> float:
    call()
    synchronize(device)
    times: list[float] = []
    while len(times) < 2 or (sum(times) < seconds and len(times) < 50):
        began = time.process_time() if device.type == "cpu" else time.perf_counter()
        call()
        synchronize(device)
        now = time.process_time() if device.type == "cpu" else time.perf_counter()
        times.append(now - began)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="of each network")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    torch.manual_seed(0)
    cases = [Case("resnet18", 64, 64), Case("mobilenet_v2", 96, 64), Case("resnet50", 64, 32)]
    if device.type != "cpu":
        cases = [Case("resnet18", 64, 256), Case("resnet50", 224, 256), Case("mobilenet_v2", 224, 256)]
    clock = "processor seconds" if device.type == "cpu" else "seconds"
    print(f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads, {clock}, medians")
    print("| network | side | batch | step | look | steps between | cost |")
    print("|---|---|---|---|---|---|---|")
    for case in cases:
        step, look, between = measure(case, device, arguments.seconds)
        cost = look / (step * between)
        verdict = "" if cost <= LIMIT else f" over {LIMIT:.0%}"
        sizes = f"{case.arch} | {case.side} | {case.batch}"
        print(f"| {sizes} | {step:.3f} | {look:.2f} | {between} | {cost:.2%}{verdict} |", flush=True)


if __name__ == "__main__":
    main()
