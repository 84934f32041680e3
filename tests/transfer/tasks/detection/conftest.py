"""Procedural images to detect things in, and a checkpoint to do it with, made once."""

from pathlib import Path

import pytest

from carryover.core.data.shapes.write import write_shapes
from tests.transfer.convert.backbones import write_backbone


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five training and five test images, in VOC and COCO layout."""
    out = tmp_path_factory.mktemp("shapes") / "data"
    return write_shapes(out, n_train=10, n_val=10, n_detection=10).detection


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18."""
    return write_backbone(tmp_path_factory.mktemp("checkpoint") / "backbone.safetensors")
