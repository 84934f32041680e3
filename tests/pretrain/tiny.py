"""A backbone of a few hundred weights and a few dozen images, for tests of what surrounds them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn

import carryover.pretrain.methods
from carryover.configs import load
from carryover.pretrain.config import BackboneConfig, PretrainConfig

IMAGES, CLASSES, SIDE = 40, 4, 12


class TinyBackbone(nn.Module):
    """Two convolutions with batch norm; 8 features."""

    feature_dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, self.feature_dim, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(self.feature_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.bn2(self.conv2(x)).relu().mean(dim=(2, 3))


class PlainBackbone(nn.Module):
    """The same without batch norm: what it computes for an image does not depend on the others."""

    feature_dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2)
        self.conv2 = nn.Conv2d(6, self.feature_dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x).relu()).relu().mean(dim=(2, 3))


def build_plain(config: BackboneConfig) -> PlainBackbone:
    """Stands in for `build_backbone`."""
    return PlainBackbone()


def build_tiny(config: BackboneConfig) -> TinyBackbone:
    """Stands in for `build_backbone`."""
    return TinyBackbone()


@pytest.fixture
def tiny_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods are built on the tiny backbone."""
    monkeypatch.setattr(carryover.pretrain.methods, "build_backbone", build_tiny)


def write_images(root: Path) -> Path:
    """Write an ImageFolder of IMAGES noisy images, class by class of another color; return its root."""
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        label = number % CLASSES
        pixels = random.integers(0, 128, (SIDE, SIDE, 3)) + 40 * np.array([label & 1, label >> 1, 1])
        folder = root / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03}.png")
    return root


RECIPES = Path(__file__).parent / "recipes"


def recipe(name: str, root: Path | None = None, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Load one of the tests' own recipes, for the images under `root`."""
    where = [] if root is None else [f"data.root={root}"]
    loaded = load("pretrain", RECIPES / f"{name}.yaml", [*where, *overrides])
    assert isinstance(loaded, PretrainConfig)
    return loaded
