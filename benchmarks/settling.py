"""How long a data set is looked at before training: `data check`, and the settling step of an evaluation.

    python benchmarks/settling.py [--images 5000] [--objects 8] [--runs 5] [--against REVISION]

Writes a COCO data set of JPEG pictures (boxes and polygons) and measures, each in a process of its own:
reading both splits as an evaluation does, the first time (every picture is decoded) and again (what was
found is remembered), and `carryover data check coco`. With --against, the checkout of another revision is
measured in turns with this one, and the ratios of the medians are given.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parents[1]
_READ = """
import sys, time
from pathlib import Path
{imports}
root = Path(sys.argv[1])
split = {{"annotations": "train.json", "images": "train"}}
test = {{"annotations": "val.json", "images": "val"}}
data = CocoData.model_validate({{"kind": "coco", "title": "x", "root": root, "train": split, "test": test}})
start = time.perf_counter()
read_splits(data, needs_masks=False)
print(time.perf_counter() - start)
"""
_CHECK = """
import sys, time
from pathlib import Path
{imports}
start = time.perf_counter()
check("coco", Path(sys.argv[1]))
print(time.perf_counter() - start)
"""
_IMPORTS = {
    "read": "from {p}core.data.objects.config import CocoData\n"
    "from {p}core.data.objects.splits import read_splits",
    "check": "from {p}core.data.check import check",
}
_OLD_IMPORTS = {
    "read": "from transfer.detect.config import CocoData\nfrom transfer.detect.splits import read_splits",
    "check": "from transfer.detect.check import check",
}


def write(root: Path, images: int, objects: int) -> None:
    """Write a train and a val split; val has a tenth of the images."""
    rng = np.random.default_rng(0)
    for split, count in (("train", images), ("val", images // 10)):
        (root / split).mkdir(parents=True)
        content: dict[str, list[object]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "a"}],
        }
        for i in range(count):
            small = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
            name = f"{split}{i:05d}.jpg"
            Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(root / split / name)
            content["images"].append({"id": i + 1, "file_name": name, "width": 640, "height": 480})
            for x, y, w, h in rng.integers([0, 0, 20, 20], [500, 380, 120, 100], (objects, 4)).tolist():
                polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
                n = len(content["annotations"]) + 1
                content["annotations"].append(
                    {"id": n, "image_id": i + 1, "category_id": 1, "bbox": [x, y, w, h], "area": w * h,
                     "iscrowd": 0, "segmentation": [polygon]}
                )  # fmt: skip
        (root / f"{split}.json").write_text(json.dumps(content))


def seconds(checkout: Path, what: str, root: Path, cache: Path) -> float:
    """Measure one kind of look, by the code of a checkout."""
    new = (checkout / "src" / "carryover").is_dir()
    imports = _IMPORTS[what].format(p="carryover.") if new else _OLD_IMPORTS[what]
    program = (_READ if what == "read" else _CHECK).format(imports=imports)
    path = checkout / "src" if new else checkout
    env = os.environ | {"PYTHONPATH": str(path), "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(root)],
        env=env,
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--against", type=Path, help="the checkout of another revision")
    arguments = parser.parse_args()
    checkouts = {"this": HERE} | ({"other": arguments.against.resolve()} if arguments.against else {})
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder, "data"), Path(folder, "cache")
        write(root, arguments.images, arguments.objects)
        times: dict[tuple[str, str], list[float]] = {}
        for run in range(arguments.runs):
            for name, checkout in checkouts.items():
                fresh = cache / f"{name}{run}"
                for what, how in (("read", "read, first"), ("read", "read, again"), ("check", "data check")):
                    times.setdefault((how, name), []).append(seconds(checkout, what, root, fresh))
    print(f"{arguments.images} images with {arguments.objects} objects each; medians of {arguments.runs}")
    for how in ("read, first", "read, again", "data check"):
        this = median(times[how, "this"])
        line = f"{how:12s} {this:7.2f} s"
        if arguments.against:
            other = median(times[how, "other"])
            line += f"   other {other:7.2f} s   ratio {this / other:.2f}"
        print(line)


if __name__ == "__main__":
    main()
