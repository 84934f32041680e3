"""Small files for the commands of README.md: checkpoints of two makers, and data sets under `data/`."""

import shutil
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

from carryover.core.data.shapes.write import write_shapes


def write_sandbox(folder: Path) -> None:
    """Write what the commands of README.md name: checkpoints into `folder`, data sets into `folder`/data."""
    shapes = write_shapes(folder / "drawn", n_train=60, n_val=10, n_detection=12)
    data = folder / "data"
    shutil.copytree(shapes.classification / "train", data / "plants")
    _write_labelimg(shapes.detection / "VOC2007", data / "cells")
    _write_fields(data / "fields")
    _write_checkpoints(folder)


def _write_labelimg(voc: Path, cells: Path) -> None:
    cells.mkdir()
    for picture in sorted((voc / "JPEGImages").iterdir()):
        shutil.copy(picture, cells)
        shutil.copy(voc / "Annotations" / f"{picture.stem}.xml", cells)


def _write_fields(fields: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind, high, shape in (("images", 256, (48, 48, 3)), ("masks", 3, (48, 48))):
            (fields / split / kind).mkdir(parents=True)
            for number in range(4):
                values = rng.integers(0, high, shape, dtype=np.uint8)
                Image.fromarray(values).save(fields / split / kind / f"{split}{number}.png")


def _write_checkpoints(folder: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.resnet18().state_dict()
    torch.save(network, folder / "theirs.pth")
    encoder = {k: v for k, v in network.items() if not k.startswith("fc.")}
    both = {f"module.encoder_{one}.{k}": v for one in "qk" for k, v in encoder.items()}
    torch.save({"epoch": 800, "arch": "resnet18", "state_dict": both}, folder / "moco.pth.tar")
