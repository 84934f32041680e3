"""What real Detectron2 models hold: tensor names and shapes of backbone and res5, as data."""

import json
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "data" / "manifests"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def manifest(name: str) -> Mapping[str, tuple[int, ...]]:
    """Full tensor names of a model -> shapes."""
    tensors = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["tensors"]
    return {key: tuple(shape) for key, shape in tensors.items()}


def is_new_layer(name: str) -> bool:
    """Whether a tensor belongs to what the detector adds: the pyramid, or the norm after res5."""
    return "fpn_" in name or name.startswith("roi_heads.res5.norm.")


def arch_of(name: str) -> str:
    """torchvision's name of a manifest's backbone."""
    return "resnet18" if "R_18" in name else "resnet50"
