"""Canonical checkpoints of timm's networks with values as of trained ones, to convert."""

from pathlib import Path

from carryover.core.backbones.build import build_backbone
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.canonical import CanonicalMetadata, save_canonical
from tests.core.backbones.makers_networks import randomized


def write_timm(path: Path, name: str, **config: object) -> Path:
    """Write one of timm's networks, whatever its patches."""
    about = BackboneConfig.model_validate({"arch": f"timm/{name}", **config})
    network = randomized(build_backbone(about))
    metadata = CanonicalMetadata(
        backbone=about,
        input_size=about.input_size or 224,
        method="dino",
        epochs=1,
        dataset="shapes",
        seed=0,
        recipe="none",
        recipe_hash="0" * 64,
        git_revision="abc",
        library_versions={},
    )
    save_canonical(path, network.state_dict(), metadata)
    return path
