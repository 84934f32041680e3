"""Random views three ways: whole batches, image by image, and torchvision's own transforms.

    python benchmarks/augment.py [--sizes 32 64 96 128 224] [--batch 256] [--runs 7] [--threads 2]

MoCo v2's view (crop, color jitter, grayscale, blur, flip) of images already decoded, in one process. The
variants take turns; times are medians, the fastest run beside them. "batched" and "images" are
`batch_views` and `image_views` of `core.data.views`, "torchvision" is the Compose that its documentation
shows, on uint8 tensors. Writes a dated table to benchmarks/results/.
"""

import argparse
import datetime
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import RESULTS, in_turn, write_table
from carryover.core.data.augment import draw_view
from carryover.core.data.config import ViewConfig
from carryover.core.data.draws import keys
from carryover.core.data.views import batch_views, image_views
from carryover.core.training.provenance import hardware


def torchvision_transform(size: int) -> v2.Compose:
    """MoCo v2's view in torchvision's own words."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=0.5),
            v2.RandomHorizontalFlip(),
        ]
    )


def variants(size: int, batch: int) -> dict[str, Callable[[int], Tensor]]:
    """Return what is timed, by name; each takes a seed. Images have the size of the view."""
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    sides, config = np.full(batch, size), ViewConfig(size=size)
    transform = torchvision_transform(size)

    def batched(seed: int) -> Tensor:
        return batch_views(images, config, draw_view(config, keys(seed, np.arange(batch)), sides, sides))

    def by_image(seed: int) -> Tensor:
        drawn = draw_view(config, keys(seed, np.arange(batch)), sides, sides)
        return image_views(list(images), config, drawn)

    def torchvision(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.stack([transform(image) for image in images])

    return {"batched": batched, "images": by_image, "torchvision": torchvision}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 96, 128, 224])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    lines = [
        f"# MoCo v2 views, batches of {options.batch}, {options.threads} threads",
        "",
        f"{datetime.date.today()}, {hardware()}, torch {torch.__version__}; load average before the first run"
        f" {os.getloadavg()[0]:.1f}. Milliseconds an image, median of {options.runs} (fastest).",
        "",
        "| pixels | torchvision / batched | images / batched | batched | images | torchvision |",
        "|---|---|---|---|---|---|",
    ]
    for size in options.sizes:
        seconds = in_turn(variants(size, options.batch), options.runs)
        per_image = {
            name: (1000 * statistics.median(s) / options.batch, 1000 * min(s) / options.batch)
            for name, s in seconds.items()
        }
        middle = {name: median for name, (median, _) in per_image.items()}
        cells = [f"{median:.3f} ({fastest:.3f})" for median, fastest in per_image.values()]
        ratios = [f"{middle[name] / middle['batched']:.1f}" for name in ("torchvision", "images")]
        lines.append(f"| {size} | " + " | ".join([*ratios, *cells]) + " |")
        print(lines[-1], flush=True)

    write_table("augment", lines, options.out)


if __name__ == "__main__":
    main()
