"""A tiny labeled image folder and tiny checkpoints, for the classification tests."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from carryover.core.backbones.build import build_backbone
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.canonical import CanonicalMetadata, save_canonical

CLASSES = ["ant", "bee", "cow", "dog", "eel", "fox"]
SIDE = 32


def write_images(folder: Path, per_class: int, seed: int) -> None:
    """Write images whose color and stripes tell their class, with noise."""
    generator = np.random.default_rng(seed)
    rows = np.arange(SIDE)[:, None, None]
    for c, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        stripes = 60 * np.sin(rows * (c + 1) / 3.0)
        color = 128 + 80 * np.array([c & 1, (c >> 1) & 1, (c >> 2) & 1]) - 40
        for i in range(per_class):
            noisy = color + stripes + generator.normal(0, 20, (SIDE, SIDE, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / name / f"{name}_{i}.png")


def write_checkpoint(path: Path, seed: int = 0, **metadata: object) -> Path:
    """Write a randomly initialized backbone (MobileNetV3-Small, 32 px) as a canonical checkpoint."""
    torch.manual_seed(seed)
    described = {
        "backbone": BackboneConfig(arch="mobilenet_v3_small"),
        "input_size": SIDE,
        "method": "random",
        "epochs": 0,
        "dataset": "none",
        "seed": seed,
        "recipe": "random_demo",
        "recipe_hash": None,
        "git_revision": "unknown",
        "library_versions": {},
    }
    checked = CanonicalMetadata.model_validate(described | metadata)
    save_canonical(path, build_backbone(checked.backbone).state_dict(), checked)
    return path
