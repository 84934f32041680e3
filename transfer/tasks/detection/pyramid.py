"""On what a detector stands: a backbone's stages, or the one map of a plain vision transformer."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from carryover.configs import UserError
from carryover.core.backbones.build import build_backbone
from carryover.core.backbones.dense import SIMPLE_SCALES, can_drop_tokens, patches_alone
from carryover.core.backbones.description import describe
from carryover.core.backbones.shapes_only import shapes_only
from carryover.core.formats.backbone import AttentionConfig, BackboneConfig
from carryover.transfer.tasks.detection.config import InputConfig
from carryover.transfer.tasks.detection.model_config import C4Config, FPNConfig

FPN_STRIDES = (4, 8, 16, 32, 64)


@dataclass(frozen=True)
class PyramidShape:
    """A pyramid as it is laid over images.

    Attributes
    ----------
    strides
        Pixels of the image per pixel of each of the five levels.
    divisor
        Sides of a batch are padded to a multiple of it.
    simple
        Whether it uses only the last map of a plain transformer.
    """

    strides: tuple[float, ...]
    divisor: int
    simple: bool


def pyramid_of(backbone: BackboneConfig) -> PyramidShape:
    """Return the pyramid that a backbone carries; raises UserError for one that carries none."""
    described = describe(backbone)
    if described.hierarchical:
        return PyramidShape(FPN_STRIDES, 32, simple=False)
    patch = described.patch_size
    if patch is None:
        strides = ", ".join(str(s) for s in dict.fromkeys(described.strides)) or "none"
        hint = ", so a backbone pretrained with stem 'imagenet'" if backbone.stem != "imagenet" else ""
        raise UserError(
            f"{backbone.label}{backbone.with_stem}: a detector needs stages of strides 4, 8, 16 and 32"
            f"{hint}, or patches of 8, 14 or 16 pixels; this one has {strides}"
        )
    if patch not in SIMPLE_SCALES:
        raise UserError(
            f"{backbone.label}: detectors look for objects at strides of about 4 to 32, which a simple"
            " feature pyramid has over patches of 8, 14 or 16 pixels (it enlarges a map four times at most),"
            f" not of {patch}; take the variant of the network with patches of 16"
        )
    levels = [patch / scale for scale in SIMPLE_SCALES[patch]]
    levels.append(2 * levels[-1])
    return PyramidShape(tuple(_whole(stride) for stride in levels), int(levels[3]), simple=True)


def require_detectable(backbone: BackboneConfig, model: C4Config | FPNConfig) -> None:
    """Raise UserError for a backbone that carries no such detector."""
    if isinstance(model, C4Config):
        if not backbone.is_resnet or not describe(backbone).hierarchical:
            pyramid_of(backbone)
            raise UserError(
                f"{backbone.label}: a C4 detector takes a ResNet's last stage for the head of its regions;"
                " choose model.name: fpn"
            )
        return
    simple = pyramid_of(backbone).simple
    for key, wrong in (
        ("level_norm: LN", simple and model.level_norm == "LN"),
        ("prefix_tokens", not simple and model.prefix_tokens is not None),
        ("window_size, model.relative_positions", not simple and model.attends),
    ):
        if wrong:
            kind = "a plain transformer, whose pyramid uses one map" if simple else "no plain transformer"
            raise UserError(f"model.{key}: {backbone.label} is {kind}; leave it out")
    if model.attends:
        alone = backbone.model_copy(update={"tokens": not can_drop_tokens(backbone) and backbone.tokens})
        with shapes_only():
            build_backbone(attending(alone, model, InputConfig()))


def attending(backbone: BackboneConfig, model: C4Config | FPNConfig, shown: InputConfig) -> BackboneConfig:
    """Return a backbone with the windows and relative positions that a recipe asks of a plain transformer.

    Tables of relative positions are made for the largest training image, as ViTDet's for its square.
    """
    if not isinstance(model, FPNConfig) or not model.attends:
        return backbone
    described = describe(backbone)
    assert described.patch_size is not None
    depth = len(described.stages)
    blocks: tuple[int, ...] = ()
    if model.window_size:
        quarters = sorted({max(0, depth * quarter // 4 - 1) for quarter in (1, 2, 3, 4)})
        blocks = tuple(quarters if model.global_blocks is None else model.global_blocks)
        if wrong := [block for block in blocks if block >= depth]:
            raise UserError(
                f"model.global_blocks {wrong}: {backbone.label} has {depth} blocks, 0 to {depth - 1}"
            )
    divisor = pyramid_of(backbone).divisor
    side = -(-(shown.square or shown.max_size_train) // divisor) * divisor
    attention = AttentionConfig(
        window=model.window_size,
        global_blocks=blocks,
        relative_positions=model.relative_positions,
        grid=side // described.patch_size,
    )
    return backbone.model_copy(update={"attention": attention})


def attention_in_words(backbone: BackboneConfig) -> str:
    """Return where the patches of a plain transformer in a detector attend, for the record."""
    plain = "in every block to the whole image; without relative positions"
    return plain if backbone.attention is None else str(backbone.attention)


def as_trained(
    backbone: BackboneConfig,
    weights: Mapping[str, Tensor],
    model: C4Config | FPNConfig,
    shown: InputConfig,
) -> tuple[BackboneConfig, Mapping[str, Tensor], str | None]:
    """Return a backbone as a detector runs it, and what became of a transformer's tokens, in words.

    Raises UserError where `model.prefix_tokens` says drop, and the network cannot do without, or where the
    recipe asks for windows or relative positions of a network that is no plain transformer.
    """
    backbone = attending(backbone, model, shown)
    if not isinstance(model, FPNConfig):
        return backbone, weights, None
    if model.drop_path is not None:
        if backbone.family != "timm":
            raise UserError(f"model.drop_path: {backbone.label} has no stochastic depth; leave it out")
        backbone = backbone.model_copy(update={"drop_path": model.drop_path})
    if not pyramid_of(backbone).simple:
        return backbone, weights, None
    tokens = [name for name in ("cls_token", "reg_token") if name in weights]
    drop = can_drop_tokens(backbone) if model.prefix_tokens is None else model.prefix_tokens == "drop"
    if not drop or not tokens:
        return backbone, weights, "kept; the maps are the patches'" if tokens else "none"
    kept, alone, dropped = patches_alone(weights, backbone)
    return alone, kept, f"{', '.join(dropped)} dropped: patches attend to patches alone, as in ViTDet"


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value
