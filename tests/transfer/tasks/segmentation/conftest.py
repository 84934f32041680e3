"""Folders of images and masks, and a checkpoint to segment them with, made once."""

from pathlib import Path

import pytest

from tests.transfer.convert.backbones import write_backbone
from tests.transfer.tasks.segmentation.scenes import write_folders


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five training and five test images with their masks."""
    return write_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18."""
    return write_backbone(tmp_path_factory.mktemp("checkpoint") / "backbone.safetensors")
