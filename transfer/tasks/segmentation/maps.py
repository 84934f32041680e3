"""Maps of a backbone for a segmenter: four stages, or blocks of a plain vision transformer."""

from collections.abc import Sequence

from carryover.configs import UserError
from carryover.core.backbones.description import describe, require_stages
from carryover.core.formats.backbone import BackboneConfig
from carryover.transfer.tasks.segmentation.model_config import FCNConfig, LinearHeadConfig, ModelConfig

_STRIDES = (4, 8, 16, 32)


def is_plain(backbone: BackboneConfig) -> bool:
    """Return whether it is a plain vision transformer, whose maps all have the stride of its patches."""
    described = describe(backbone)
    return not described.hierarchical and described.patch_size is not None


def stages_of(backbone: BackboneConfig, model: ModelConfig) -> tuple[str, ...]:
    """Return the names of the maps that a segmenter reads, from the first to the last.

    Four of FCN and UPerNet (strides 4 to 32, or four blocks), as many as it has layers of a linear head.
    Raises UserError for blocks that the transformer does not have.
    """
    described = describe(backbone)
    if isinstance(model, LinearHeadConfig):
        own = described.stages if is_plain(backbone) else tuple(described.levels[s] for s in _STRIDES)
        return own[len(own) - model.layers :]
    if not is_plain(backbone):
        if model.blocks is not None:
            raise UserError(f"model.blocks: {backbone.label} is no plain transformer; leave it out")
        return tuple(described.levels[stride] for stride in _STRIDES)
    depth = len(described.stages)
    blocks = model.blocks or (depth // 3 - 1, depth // 2 - 1, 2 * depth // 3 - 1, depth - 1)
    if sorted(set(blocks)) != list(blocks) or blocks[-1] >= depth:
        raise UserError(
            f"model.blocks: {list(blocks)} must ascend, the last below {depth}, of {backbone.label}"
        )
    return tuple(described.stages[block] for block in blocks)


def widths_of(backbone: BackboneConfig, stages: Sequence[str]) -> list[int]:
    """Return the channels of these maps."""
    described = describe(backbone)
    return [described.width_of(stage) for stage in stages]


def divisor_of(backbone: BackboneConfig) -> int:
    """Return what sides of images must be multiples of: whole patches; 1 of ResNets and their like."""
    described = describe(backbone)
    if described.patch_size is not None:
        return described.patch_size
    return min(described.strides) if backbone.family == "timm" and backbone.groups is None else 1


def require_segmentable(
    backbone: BackboneConfig, model: ModelConfig | None = None, crop: tuple[int, int] | None = None
) -> None:
    """Raise UserError for a backbone that carries no segmenter, not this one, or not on such crops."""
    if not is_plain(backbone):
        require_stages(backbone, "a segmenter")
    if model is not None:
        stages_of(backbone, model)
        if model.drop_path is not None and backbone.family != "timm":
            raise UserError(f"model.drop_path: {backbone.label} has no stochastic depth; leave it out")
        if isinstance(model, FCNConfig) and is_plain(backbone) and model.output_stride != 16:
            raise UserError(
                f"model.output_stride {model.output_stride}: the maps of {backbone.label} have the stride of"
                " its patches; choose model.output_stride: 16"
            )
    divisor = divisor_of(backbone)
    if crop is not None and any(side % divisor for side in crop):
        fitting = [max(1, round(side / divisor)) * divisor for side in crop]
        raise UserError(
            f"input.crop_size {list(crop)}: {backbone.label} takes whole patches, multiples of {divisor}"
            f" pixels; {fitting} would do"
        )


def as_trained(backbone: BackboneConfig, model: ModelConfig) -> BackboneConfig:
    """Return a backbone as a segmenter runs it: with the recipe's stochastic depth."""
    if model.drop_path is None:
        return backbone
    return backbone.model_copy(update={"drop_path": model.drop_path})
