"""Description of a network: stages, strides, widths, pooled features, and input images."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from carryover.configs import UserError
from carryover.core.backbones.build import build_backbone, feature_maps
from carryover.core.backbones.declared import Declared, InputRule
from carryover.core.formats.backbone import BackboneConfig

_SIDE = 224


@dataclass(frozen=True)
class Description:
    """A network as tasks and conversions ask about it.

    Attributes
    ----------
    stages, strides, widths
        Names of the maps that `feature_maps` returns, pixels of the image per pixel of each, its channels.
    feature_dim
        Width of the pooled features.
    patch_size
        Side of the patches of a vision transformer; None for every other network.
    vectors
        Further pooled features that the network has by name ("cls", "mean", "cls of the last 4", ...).
    input
        Which images it takes.
    """

    stages: tuple[str, ...]
    strides: tuple[int, ...]
    widths: tuple[int, ...]
    feature_dim: int
    patch_size: int | None = None
    vectors: tuple[str, ...] = ()
    input: InputRule = field(default_factory=InputRule)

    @property
    def levels(self) -> Mapping[int, str]:
        """The last stage of each stride, from the smallest stride up."""
        return dict(sorted(dict(zip(self.strides, self.stages)).items()))

    def width_of(self, stage: str) -> int:
        """Return the channels of a stage's maps."""
        return self.widths[self.stages.index(stage)]

    @property
    def hierarchical(self) -> bool:
        """Return whether there are stages of strides 4, 8, 16 and 32, as feature pyramids need."""
        return {4, 8, 16, 32} <= set(self.strides)


@cache
def describe(config: BackboneConfig) -> Description:
    """Describe the network of a recipe or checkpoint, without giving its tensors values."""
    config = config.model_copy(update={"attention": None})
    try:
        with torch.device("meta"):
            return description_of(build_backbone(config))
    except NotImplementedError:
        # A user's network may ask for values while it is built or run.
        with torch.random.fork_rng(devices=[]):
            return description_of(build_backbone(config))


def description_of(network: nn.Module) -> Description:
    """Return what a live network declares; of one that declares nothing it is measured on one image."""
    if isinstance(network, Declared):
        return Description(
            network.stages,
            network.strides,
            network.widths,
            network.feature_dim,
            network.patch_size,
            network.vector_names,
            network.input_rule,
        )
    maps, pooled = _measured(network)
    return Description(
        stages=tuple(maps),
        strides=tuple(_SIDE // found.shape[-1] for found in maps.values()),
        widths=tuple(found.shape[1] for found in maps.values()),
        feature_dim=pooled,
    )


def _measured(network: nn.Module) -> tuple[dict[str, Tensor], int]:
    """Return the maps of a square image and the width of the pooled features; nothing is changed."""
    modes = {module: module.training for module in network.modules()}
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    network.eval()
    try:
        with torch.no_grad():
            images = torch.zeros(1, 3, _SIDE, _SIDE, device=device)
            maps = feature_maps(network, images)
            width: Any = getattr(network, "feature_dim", None)
            return maps, int(network(images).shape[1] if width is None else width)
    finally:
        for module, training in modes.items():
            module.training = training


def require_stages(backbone: BackboneConfig, what: str) -> None:
    """Raise UserError for a backbone without stages of strides 4 to 32, which `what` needs ("a detector")."""
    described = describe(backbone)
    if not described.hierarchical:
        strides = ", ".join(str(s) for s in dict.fromkeys(described.strides)) or "none"
        hint = ", so a backbone pretrained with stem 'imagenet'" if backbone.stem != "imagenet" else ""
        raise UserError(
            f"{backbone.label}{backbone.with_stem}: {what} needs stages of strides 4, 8, 16 and 32"
            f"{hint}; this one has {strides}"
        )
