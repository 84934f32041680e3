"""CIFAR as torchvision keeps it: whole in memory."""

import fcntl
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.transforms.v2 import functional as F

from carryover.configs import UserError
from carryover.core.data.datasets import MemoryImages
from carryover.core.data.readers import ImageSection


def read_cifar(config: ImageSection, root: Path) -> MemoryImages:
    """Read torchvision's pickled batches, whose checksums torchvision verifies before it unpickles them."""
    maker = CIFAR10 if config.kind == "cifar10" else CIFAR100
    layout = f"{config.kind} as torchvision keeps it: {root / maker.base_folder}/{maker.train_list[0][0]} ..."
    try:
        if config.download:
            root.mkdir(parents=True, exist_ok=True)
            with (root / f".{config.kind}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                data = maker(root, config.split == "train", download=True)
        else:
            data = maker(root, config.split == "train")
    except (RuntimeError, OSError) as error:
        asked = "could not be fetched" if config.download else "set data.download=true to fetch it"
        raise UserError(f"{root}: missing or damaged; expected {layout} ({asked}: {error})") from error
    pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    if config.resize is not None:
        pixels = F.resize(pixels, [config.resize], antialias=True)
    return MemoryImages(pixels, [int(t) for t in data.targets], list(data.classes))
