"""A tiny labeled image folder and a tiny checkpoint, made once."""

from pathlib import Path

import pytest

from carryover.core.formats.backbone import BackboneConfig
from tests.transfer.tasks.classification.samples import write_checkpoint, write_images


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of six classes: 10 training and 4 test images of each, 32 px."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", 10, seed=0)
    write_images(root / "val", 4, seed=1)
    return root


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialized checkpoint."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "backbone.safetensors")


@pytest.fixture(scope="session")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialized ResNet-18, whose features tell the classes of `images` apart."""
    path = tmp_path_factory.mktemp("resnet") / "backbone.safetensors"
    return write_checkpoint(path, backbone=BackboneConfig(arch="resnet18"))
