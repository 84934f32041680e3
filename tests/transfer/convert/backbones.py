"""Canonical checkpoints with random values of their own, to convert."""

from pathlib import Path

import torch

from carryover.core.backbones.build import build_backbone
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.canonical import CanonicalMetadata, save_canonical


def write_backbone(
    path: Path, arch: str = "resnet18", width: int = 1, stem: str = "imagenet", **metadata: object
) -> Path:
    """Write a canonical checkpoint whose running statistics come from two random batches."""
    config = BackboneConfig.model_validate({"arch": arch, "width": width, "stem": stem})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = build_backbone(config)
        with torch.no_grad():
            for _ in range(2):
                backbone(torch.randn(2, 3, 64, 64))
            for value in backbone.parameters():
                if value.ndim == 1:
                    value.add_(torch.randn(value.shape) * 0.05)
    described = {
        "backbone": config,
        "input_size": 64,
        "method": "unigrad",
        "epochs": 12,
        "dataset": "shapes",
        "seed": 3,
        "recipe": "unigrad_demo",
        "recipe_hash": "0" * 64,
        "git_revision": "abc",
        "library_versions": {"torch": "2.15"},
    }
    about = CanonicalMetadata.model_validate(described | metadata)
    save_canonical(path, backbone.state_dict(), about)
    return path
