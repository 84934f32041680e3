"""Small folders of images and masks, and checkpoints to carry into segmenters."""

import json
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from carryover.configs import load
from carryover.core.data.shapes.write import write_shapes

CLASSES = ["background", "disk", "star", "triangle", "cross"]
# A segmenter of a second: for what the tests are about, its size does not matter.
TINY = [
    "model.channels=8",
    "model.auxiliary.channels=8",
    "input.scale=[128, 64]",
    "input.crop_size=[48, 48]",
    "input.test_scale=[128, 64]",
    "solver.ims_per_batch=2",
    "solver.reference_ims_per_batch=2",
    "solver.base_lr=0.05",
    "solver.max_iter=6",
    "workers=0",
    "log_every=2",
    "samples=2",
    # So few masks do not show every class.
    "data.defects.absent_class=keep",
]


def write_folders(root: Path, images: int = 10) -> Path:
    """Paint masks beside the procedural detection images: `root`/{train,val}/{images,masks}."""
    detection = write_shapes(root / "shapes", n_train=10, n_val=10, n_detection=images).detection
    for ours, theirs in (("train", "train"), ("val", "test")):
        annotations = json.loads((detection / "annotations" / f"{theirs}.json").read_text())
        labels = {c["id"]: CLASSES.index(c["name"]) for c in annotations["categories"]}
        for folder in ("images", "masks"):
            (root / ours / folder).mkdir(parents=True)
        for image in annotations["images"]:
            mask = Image.new("L", (image["width"], image["height"]))
            for thing in (a for a in annotations["annotations"] if a["image_id"] == image["id"]):
                if isinstance(thing["segmentation"], list):
                    for polygon in thing["segmentation"]:
                        ImageDraw.Draw(mask).polygon(polygon, fill=labels[thing["category_id"]])
            name = Path(image["file_name"])
            mask.save(root / ours / "masks" / f"{name.stem}.png")
            source = detection / "VOC2007" / "JPEGImages" / name.name
            (root / ours / "images" / name.name).write_bytes(source.read_bytes())
    return root


def overrides(root: Path, *more: str) -> list[str]:
    """What makes `fcn_folders` a run of a second on `write_folders`."""
    classes = f"data.classes=[{', '.join(CLASSES)}]"
    return [f"data.root={root}", classes, *TINY, *more]


def recipe(root: Path, *more: str):
    """`fcn_folders`, made a run of a second."""
    return load("transfer", "fcn_folders", overrides(root, *more))


def write_pair(folder: Path, name: str, mask: np.ndarray, size=None, suffix=".png") -> None:
    """An image of noise and a mask, in `folder`/images and `folder`/masks; `size` is (width, height)."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    width, height = size or mask.shape[1::-1]
    seed = zlib.crc32(f"{folder.name}/{name}".encode())
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "images" / f"{name}.jpg")
    Image.fromarray(mask).save(folder / "masks" / f"{name}{suffix}")
