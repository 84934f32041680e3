"""The real trainer on a backbone of a few hundred weights: steps of milliseconds, on any machine."""

from pathlib import Path
from typing import Any


def pretrain(out: Path, recipe: dict[str, Any]) -> None:
    """Train a resolved recipe with the backbone replaced, as a pipeline's pretraining stage does."""
    import carryover.pretrain.methods
    from carryover.configs.loading import validate
    from carryover.pretrain.config import PretrainConfig
    from carryover.pretrain.trainer import train
    from tests.pretrain.tiny import build_tiny

    carryover.pretrain.methods.build_backbone = build_tiny  # type: ignore[assignment]
    train(validate(PretrainConfig, {**recipe, "name": "tiny"}, "tiny"), out)
