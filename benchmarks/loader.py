"""Images a second of processor time: decoding alone, and each recipe's views from files to a batch.

    python benchmarks/loader.py DATA [--recipes unigrad_r50_100ep ...] [--images 200] [--runs 5]

DATA is a folder of JPEGs of the sizes that photographs have (COCO's or ImageNet's). One process, one thread,
the recipe's own loader without workers. What counts is the processor's time, not the clock's, so that other
work on the machine disturbs it less; workers on as many idle cores make as many times that many images a
second, as far as memory and disk keep up. Medians; prints a Markdown table.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import spread
from carryover.configs import load
from carryover.core.data.config import DataConfig
from carryover.core.data.datasets import FileImages
from carryover.core.data.prepared import Loader, open_dataset
from carryover.pretrain.config import PretrainConfig

RECIPES = (
    "unigrad_r50_100ep",
    "unigrad_r50_100ep_multicrop",
    "simo_r50_200ep_k256_a256",
    "sqrtkl_imagenet_r50",
)


def images_a_second(turn: Callable[[], object], images: int, runs: int) -> list[float]:
    """Images a second of processor time in every run but a first one."""
    found = []
    for _ in range(runs + 1):
        start = time.process_time()
        turn()
        found.append(images / (time.process_time() - start))
    return found[1:]


def variants(dataset: FileImages, recipes: Sequence[str]) -> dict[str, Callable[[], object]]:
    def decode() -> None:
        for i in range(len(dataset)):
            dataset.read(i)

    def one_epoch(name: str) -> Callable[[], object]:
        config = load("pretrain", name, ["data.root=unread"])
        assert isinstance(config, PretrainConfig)
        loader = Loader(dataset, config.augment, min(32, len(dataset)), seed=0, drop_last=False)
        return lambda: [None for _ in loader.epoch(0)]

    return {"decoding alone": decode} | {name: one_epoch(name) for name in recipes}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)

    found = open_dataset(DataConfig(kind="imagefolder", root=options.data))
    assert isinstance(found, FileImages)
    dataset = found.take(range(min(options.images, len(found))))
    sizes = [Image.open(path).size for path in dataset.paths]
    megapixels = statistics.mean(width * height for width, height in sizes) / 1e6
    kilobytes = statistics.mean(path.stat().st_size for path in dataset.paths) / 1e3
    print(f"{len(dataset)} images of {megapixels:.2f} megapixels and {kilobytes:.0f} kB on average\n")
    print("| what | images a second of one core (smallest to largest) |\n|---|---|")
    for name, turn in variants(dataset, options.recipes).items():
        speeds = images_a_second(turn, len(dataset), options.runs)
        print(f"| {name} | {spread(speeds)} |")


if __name__ == "__main__":
    main()
