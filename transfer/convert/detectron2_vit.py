"""A plain vision transformer as Detectron2's own `ViT` holds it: patches alone, LayerScale folded in."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from carryover.configs import UserError
from carryover.core.backbones.build import build_backbone
from carryover.core.backbones.dense import can_drop_tokens, patches_alone
from carryover.core.backbones.imported import Imported
from carryover.core.formats.backbone import AttentionConfig, BackboneConfig
from carryover.transfer.convert.held import Held, without

PREFIX = "net."
BUILDER = "build_carryover_backbone"
"""Name of carryover's backbone in Detectron2's registry."""
_OWN = re.compile(
    r"pos_embed|patch_embed\.proj\.(weight|bias)"
    r"|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)"
)
_SCALE = re.compile(r"(blocks\.\d+)\.ls([12])\.gamma")
_LAST_NORM = re.compile(r"(fc_)?norm\.(weight|bias)")


@dataclass(frozen=True)
class ViTShape:
    """Arguments of Detectron2's `ViT`."""

    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    qkv_bias: bool
    eps: float
    img_size: int
    class_position: bool


def alone(config: BackboneConfig) -> BackboneConfig:
    """Return the network that Detectron2's `ViT` computes: without class token and registers."""
    return config if not config.tokens else config.model_copy(update={"tokens": False})


@cache
def own_vit(config: BackboneConfig) -> ViTShape | None:
    """Return the shape of a network that Detectron2's own `ViT` can be; None for every other one.

    It has no rotary positions, no registers, no gated or normalized layers, no norm before the first block.
    """
    config = config.model_copy(update={"attention": None})
    if config.family != "timm" or (config.tokens and not can_drop_tokens(config)):
        return None
    with torch.device("meta"):
        network: Any = build_backbone(alone(config)).inner
        whole: Any = build_backbone(config).inner
    names = set(network.state_dict())
    wrong = [n for n in names if not (_OWN.fullmatch(n) or _SCALE.fullmatch(n) or _LAST_NORM.fullmatch(n))]
    if wrong or not {"pos_embed", "patch_embed.proj.bias"} <= names or not hasattr(network, "blocks"):
        return None
    block = network.blocks[0]
    heads, fc1, fc2 = block.attn.num_heads, block.mlp.fc1, block.mlp.fc2
    plain = isinstance(block.mlp.act, nn.GELU) and getattr(block.mlp.act, "approximate", "none") == "none"
    if not plain or fc1.out_features != fc2.in_features or type(block).__name__ != "Block":
        return None
    return ViTShape(
        patch_size=int(network.patch_embed.patch_size[0]),
        embed_dim=network.embed_dim,
        depth=len(network.blocks),
        num_heads=heads,
        mlp_ratio=fc1.out_features / network.embed_dim,
        qkv_bias=block.attn.qkv.bias is not None,
        eps=block.norm1.eps,
        img_size=int(network.patch_embed.img_size[0]),
        class_position=whole.pos_embed.shape[1] == network.pos_embed.shape[1] + 1,
    )


def hold(imported: Imported) -> Held:
    """Return a plain transformer as Detectron2's `ViT` holds it.

    Class token and registers are dropped (the class token's position stays in the file, where Detectron2
    looks for it and leaves it out), LayerScale is multiplied into the layer before it, and the last norm,
    behind which no detector looks, is not there.
    """
    config = imported.metadata.backbone
    state, kept = dict(imported.state), config
    reasons: dict[str, str] = {}
    if config.tokens:
        state, kept, reasons = patches_alone(imported.state, config)
    network = replace(
        imported,
        state=state,
        metadata=imported.metadata.model_copy(update={"backbone": kept}),
        fates=without(imported, reasons),
    )
    tensors, folded = _folded(state)
    last = [name for name in state if _LAST_NORM.fullmatch(name)]
    norms = dict.fromkeys(last, "the norm after the last block: detectors take the map before it")
    tensors = {n: v for n, v in tensors.items() if n not in norms}
    if config.tokens:
        tensors["pos_embed"] = imported.state["pos_embed"]
    notes = [f"{', '.join(reasons)}: {next(iter(reasons.values()))}"] if reasons else []
    notes += ["LayerScale is multiplied into the layer before it"] if folded else []
    notes += [
        "images of another size than the positions are for: Detectron2's own ViT interpolates positions"
        " bicubically without antialiasing, timm and carryover with it"
    ]
    if config.attention is not None:
        notes.append(f"attention {config.attention}; tables of relative positions begin at zero")
    network = replace(network, fates=without(network, norms))
    return Held(network, tensors, folded, tuple(notes))


def _folded(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Multiply every LayerScale into the linear layer before it, exactly but for rounding."""
    tensors, folded = dict(state), {}
    for name, gamma in state.items():
        if match := _SCALE.fullmatch(name):
            layer = f"{match[1]}.{'attn.proj' if match[2] == '1' else 'mlp.fc2'}"
            weight, bias = state[f"{layer}.weight"], state[f"{layer}.bias"]
            tensors[f"{layer}.weight"] = (weight.double() * gamma.double()[:, None]).to(weight.dtype)
            tensors[f"{layer}.bias"] = (bias.double() * gamma.double()).to(bias.dtype)
            del tensors[name]
            folded[name] = f"{layer}.weight"
    return tensors, folded


def vit_settings(config: BackboneConfig) -> dict[str, Any]:
    """Return the arguments of `detectron2.modeling.ViT` that build this network."""
    shape = own_vit(config)
    if shape is None:
        raise UserError(f"{config.label}: Detectron2's own ViT cannot be this network")
    attention = config.attention or AttentionConfig(grid=shape.img_size // shape.patch_size)
    windowed = attention.window > 0
    return {
        "img_size": attention.grid * shape.patch_size,
        "patch_size": shape.patch_size,
        "embed_dim": shape.embed_dim,
        "depth": shape.depth,
        "num_heads": shape.num_heads,
        "mlp_ratio": shape.mlp_ratio,
        "qkv_bias": shape.qkv_bias,
        "use_rel_pos": attention.relative_positions,
        "window_size": attention.window,
        "window_block_indexes": [
            block for block in range(shape.depth) if windowed and block not in attention.global_blocks
        ],
        "pretrain_img_size": shape.img_size,
        "pretrain_use_cls_token": shape.class_position,
    }
